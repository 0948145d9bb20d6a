//! The CPU: its name, its threads, and how work is cut for them.

use rayon::prelude::*;

/// Model name and number of threads, for manifests.
pub fn name() -> String {
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|t| {
        let line = t.lines().find(|l| l.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_string())
    });
    format!("{} ({})", model.unwrap_or_else(|| std::env::consts::ARCH.into()), super::simd::level())
}

/// Sets the number of threads, once per process; the calling thread is one of them, which saves waking another for
/// every loop. 0 means one per core.
pub fn set_threads(n: usize) -> crate::Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .use_current_thread()
        .build_global()
        .map_err(|e| crate::Error::Config { key: "--threads".into(), why: format!("cannot start {n} threads: {e}") })
}

/// Below this many elements of simple work a second thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 14;

/// Runs `f(first element of the chunk, chunk of y)` over `y` cut into chunks of whole `unit`s, in parallel when
/// it is worth it. The cut depends on the length only, so results never depend on the number of threads.
pub fn chunks<T: Send>(y: &mut [T], unit: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let unit = unit.max(1);
    if y.len() <= WORTH_A_THREAD {
        return f(0, y);
    }
    let chunk = WORTH_A_THREAD.div_ceil(unit) * unit;
    y.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i * chunk, c));
}
