//! What this machine can do at most, measured: bytes copied, multiply-adds, tensor-core products a second. A kernel's
//! speed is judged by its share of these.

use std::time::Instant;

use rayon::prelude::*;

use super::{Cuda, Device, Launch, launch};
use crate::tensor::Buf;
use crate::{Result, ops};

/// Measured rates of a device.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes read plus bytes written per second by a large copy.
    pub copy: f64,
    /// f32 operations per second, two for each multiply-add.
    pub fma: f64,
    /// bf16 operations per second on tensor cores; none on the CPU.
    pub tensor: Option<f64>,
}

/// Threads of a block of the kernels.
const BLOCK: usize = 256;
/// Independent chains of a thread: they hide the latency of one.
const CHAINS: usize = 8;
/// Operations of one tensor-core product of a warp: 2 · 16 · 8 · 16.
const PRODUCT: usize = 4096;

/// Best of several runs after one to warm up: what disturbs only slows down.
fn best(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut least = f64::MAX;
    for _ in 0..8 {
        let start = Instant::now();
        run()?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

/// Measures; takes about a second.
pub fn rates(device: &Device) -> Result<Rates> {
    let n: usize = if device.is_cpu() { 1 << 25 } else { 1 << 27 };
    let from = Buf::<f32>::zeros(device, n)?;
    let mut to = Buf::<f32>::zeros(device, n)?;
    let seconds = best(|| {
        match device {
            Device::Cpu => {
                let (to, from) = (to.host_mut("copy")?.par_chunks_mut(1 << 16), from.host("copy")?.par_chunks(1 << 16));
                to.zip(from).for_each(|(to, from)| to.copy_from_slice(from));
            }
            Device::Cuda(_) => ops::copy_into(&mut to, 0, &from, device)?,
        }
        device.synchronize()
    })?;
    let copy = 8.0 * n as f64 / seconds;
    let (fma, tensor) = match device {
        Device::Cpu => (cpu::fma_rate()?, None),
        Device::Cuda(cuda) => {
            let blocks = 8 * cuda.multiprocessors() as usize;
            let threads = (blocks * BLOCK) as f64;
            let mut y = Buf::stale(device, blocks * BLOCK)?;
            let mut rate = |turns: usize, work: f64, spin: Spin| -> Result<f64> {
                let seconds = best(|| {
                    spin(cuda, &mut y, turns)?;
                    device.synchronize()
                })?;
                Ok((turns * CHAINS) as f64 * work / seconds)
            };
            let fma = rate(1 << 14, 2.0 * threads, fma_chains)?;
            // Without tensor cores for bf16 the kernel does not load.
            let tensor = if cuda.capability().0 < 8 {
                None
            } else {
                Some(rate(1 << 12, PRODUCT as f64 * threads / 32.0, mma_chains)?)
            };
            (fma, tensor)
        }
    };
    Ok(Rates { copy, fma, tensor })
}

type Spin = fn(&Cuda, &mut Buf<f32>, usize) -> Result<()>;

/// Eight chains of `turns` multiply-adds for each element of y.
pub fn fma_chains(cuda: &Cuda, y: &mut Buf<f32>, turns: usize) -> Result<()> {
    launch::roofline_fma(cuda, Launch::elements(y.len()), y, turns as i32)
}

/// Eight chains of `turns` tensor-core products for each 32 elements of y.
pub fn mma_chains(cuda: &Cuda, y: &mut Buf<f32>, turns: usize) -> Result<()> {
    launch::roofline_mma(cuda, Launch::elements(y.len()), y, turns as i32)
}

mod cpu {
    use super::{Result, best};
    use crate::device::lane::{LANES, Lane};
    use crate::lanes;

    /// Independent chains: enough to hide the latency of a multiply-add, few enough for the registers.
    const CHAINS: usize = 12;
    const TURNS: usize = 1 << 20;

    /// Operations per second of all threads.
    pub fn fma_rate() -> Result<f64> {
        let threads = rayon::current_num_threads();
        let mut width = 0;
        let seconds = best(|| {
            // Room for the widest register there is.
            let ran = std::hint::black_box(rayon::broadcast(|_| {
                let mut sum = [0.0; 2 * LANES];
                (spin(&mut sum, TURNS, 0.5), sum)
            }));
            width = ran[0].0;
            Ok(())
        })?;
        Ok((2 * width * CHAINS * TURNS * threads) as f64 / seconds)
    }

    lanes! {
        widest:
        /// Twelve chains v ← v · a + 1, and the end of the last; returns the floats of a chain.
        fn spin(end: &mut [f32], turns: usize, a: f32) -> usize = spin_body;
    }

    #[inline(always)]
    fn spin_body<V: Lane>(end: &mut [f32], turns: usize, a: f32) -> usize {
        let (a, one) = (V::splat(a), V::splat(1.0));
        let mut v = [one; CHAINS];
        for _ in 0..turns {
            // Loops and no closures, which would not be compiled for the register's instructions.
            for chain in &mut v {
                *chain = chain.mul_add(a, one);
            }
        }
        // Each chain into the next, so that none can be left out.
        let mut sum = one;
        for chain in v {
            sum = chain.mul_add(a, sum);
        }
        sum.store(end);
        V::N
    }
}
