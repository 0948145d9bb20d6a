//! What the suites share: comparisons that say what differs, and the CUDA device under test.
#![allow(dead_code)]

use std::rc::Rc;

use dalcore::Result;
use dalcore::device::{Cuda, Device};
use dalcore::ops::{Arg, Case};
use dalcore::tensor::Tensor;

/// Output and gradients of a case, in the order of its inputs.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub out: Vec<f64>,
    pub grads: Vec<Option<Vec<f64>>>,
}

/// Runs a case forward and backward with its random gradient.
pub fn outcome(case: &Case, inputs: &[Tensor]) -> Result<Outcome> {
    let y = (case.run)(inputs)?;
    let wrt: Vec<&Tensor> = inputs.iter().filter(|t| t.is_tracked()).collect();
    let grads = y.grad_from(&case.cotangent(&y)?, &wrt)?;
    let one = |t: &Tensor| t.is_tracked().then(|| grads.of(t).map(Tensor::to_f64)).flatten().transpose();
    Ok(Outcome { out: y.to_f64()?, grads: inputs.iter().map(one).collect::<Result<_>>()? })
}

pub fn differentiable(a: &Arg) -> bool {
    matches!(a, Arg::Diff(..) | Arg::Kinked(..))
}

/// Every element within `tolerance(want)`; NaN and infinities must be equal. Prints the first ten that are not.
pub fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: impl Fn(f64) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let equal = |g: f64, w: f64| {
        if w.is_finite() { (g - w).abs() <= tolerance(w) } else { g == w || (g.is_nan() && w.is_nan()) }
    };
    let bad: Vec<String> = got
        .iter()
        .zip(want)
        .enumerate()
        .filter(|(_, (g, w))| !equal(**g, **w))
        .map(|(i, (g, w))| format!("  [{i}] {g:e} is not {w:e} (off by {:e}, {:e} allowed)", g - w, tolerance(*w)))
        .collect();
    assert!(bad.is_empty(), "{what}: {} of {} differ\n{}", bad.len(), got.len(), bad[..bad.len().min(10)].join("\n"));
}

/// A reference that is all zero, or all the same, proves nothing.
pub fn assert_not_degenerate(what: &str, v: &[f64]) {
    if v.len() > 1 {
        assert!(v.iter().any(|x| x.abs() > 1e-3), "{what}: the reference is all but zero");
        assert!(v.iter().any(|x| (x - v[0]).abs() > 1e-6), "{what}: the reference is uniform");
    }
}

/// The tolerance of an f32 computation: each of the `sum` terms of magnitude up to `scale` is rounded to 2^-24 of
/// its size, and so is each partial sum; the factor 4 covers exp and log, which are good to a few units.
pub fn f32_tolerance(sum: usize, scale: f64) -> f64 {
    4.0 * (sum as f64 + 2.0) * 2f64.powi(-24) * scale.max(0.1)
}

/// The largest magnitude.
pub fn scale(v: &[f64]) -> f64 {
    v.iter().filter(|x| x.is_finite()).fold(0.0, |m, x| m.max(x.abs()))
}

/// The CUDA device under test and what keeps other tests of this process away from it.
pub struct Session {
    pub device: Device,
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    _guard: Option<dalcore_emulator::Guard>,
}

/// A schedule of the emulated driver: 0 is the natural order, others shuffle blocks and threads.
pub fn cuda(schedule: u64) -> Option<Session> {
    cuda_with(schedule, None)
}

/// As [`cuda`], with a limit of device memory in bytes (emulated drivers only).
pub fn cuda_with(schedule: u64, memory: Option<u64>) -> Option<Session> {
    let kind = std::env::var("DALCORE_TEST_DEVICE").unwrap_or_else(|_| "emulated".into());
    if kind == "cuda" {
        // No skipping: asked for a device, there must be one.
        let cuda =
            Cuda::open(0).unwrap_or_else(|why| panic!("DALCORE_TEST_DEVICE=cuda, but CUDA cannot be used: {why}"));
        return Some(Session {
            device: Device::Cuda(Rc::new(cuda)),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            _guard: None,
        });
    }
    emulated(&kind, schedule, memory)
}

/// True on the checked emulated driver, which is slow.
pub fn is_emulated() -> bool {
    std::env::var("DALCORE_TEST_DEVICE").as_deref() != Ok("cuda")
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn emulated(kind: &str, schedule: u64, memory: Option<u64>) -> Option<Session> {
    use dalcore_emulator::{Kind, Options, exclusive};
    let kind = match kind {
        "emulated" => Kind::Checked,
        "emulated-fast" => Kind::Fast,
        other => panic!("DALCORE_TEST_DEVICE={other} is none of emulated, emulated-fast, cuda"),
    };
    let mut options = Options { shuffle: schedule > 0, seed: schedule.max(1), ..Options::default() };
    options.memory = memory.unwrap_or(options.memory);
    let guard = exclusive(kind, &options).unwrap_or_else(|why| panic!("the emulated driver: {why}"));
    let cuda = Cuda::open(0).unwrap_or_else(|why| panic!("the emulated driver cannot be used: {why}"));
    Some(Session { device: Device::Cuda(Rc::new(cuda)), _guard: Some(guard) })
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn emulated(_: &str, _: u64, _: Option<u64>) -> Option<Session> {
    println!("skipped: the emulated driver runs on x86-64 Linux only");
    None
}
