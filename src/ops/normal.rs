//! Normal numbers made where they are used, and the sample of a variational auto-encoder: z = μ + e^(l/2) ⊙ ε with
//! l = ln σ² and ε_e the normal number e of the stream `rng` at the step of the clock ([`Rng::normal`]).
//!
//! Backward: dμ = dz, dl = ½ e^(l/2) ⊙ ε ⊙ dz; ε is computed again and never stored. Host and device agree on ε to about
//! 1e-6, not to the bit.

use std::rc::Rc;

use super::{Arg, Case};
use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::rng::{Purpose, Rng};
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Result, on_real};

/// Independent numbers from N(0, 1), f32: element e is number e of the stream at the step of the clock.
pub fn normals(device: &Device, shape: impl Into<Shape>, rng: Rng, clock: &Clock) -> Result<Tensor> {
    let op = "normals";
    let mut y = Tensor::stale(device, shape, Dtype::F32)?;
    let n = y.len();
    match device {
        Device::Cpu => cpu::normals(y.host_mut::<f32>(op)?, rng.with_b(clock.host(Word::Step)?)),
        Device::Cuda(cuda) => {
            let (l, [lo, hi, s, a]) = (Launch::elements(n.div_ceil(4)), rng.words());
            launch::normals_f32(cuda, l, y.buf_mut(op)?, &clock.words(), n as i32, lo, hi, s, a)?;
        }
    }
    Ok(y)
}

/// z = μ + e^(logvar/2) ⊙ ε, of one shape. The backward pass must run before the clock moves on.
pub fn reparameterize(mu: &Tensor, logvar: &Tensor, rng: Rng, clock: &Rc<Clock>) -> Result<Tensor> {
    let op = "reparameterize";
    if mu.shape() != logvar.shape() {
        return Err(logvar.shape().refuse(op, format!("{:?}, as the means", mu.shape())));
    }
    // A kernel reads the step when it runs; the host's clock may have moved on by the time of the backward pass.
    let rng = if mu.device().is_cpu() { rng.with_b(clock.host(Word::Step)?) } else { rng };
    let z = noisy(op, mu, logvar, rng, clock, Pass::Forward)?;
    let (logvar_, clock) = (logvar.detach(), clock.clone());
    Ok(z.with_grad(op, &[mu, logvar], move |dz, need| {
        let dlogvar = || noisy("reparameterize_bwd", dz, &logvar_, rng, &clock, Pass::Backward);
        Ok(vec![need.then(0, || Ok(dz.clone()))?, need.then(1, dlogvar)?])
    }))
}

#[derive(Clone, Copy)]
enum Pass {
    /// a + e^(l/2) ⊙ ε
    Forward,
    /// ½ a ⊙ e^(l/2) ⊙ ε
    Backward,
}

fn noisy(op: &'static str, a: &Tensor, logvar: &Tensor, rng: Rng, clock: &Clock, pass: Pass) -> Result<Tensor> {
    let (mut y, n) = (a.like()?, a.len());
    match a.device() {
        Device::Cpu => on_real!(op, a, T => {
            let (y, a, l) = (y.host_mut::<T>(op)?, a.host::<T>(op)?, logvar.host::<T>(op)?);
            match pass {
                Pass::Forward => cpu::noisy(y, a, l, rng, |a, noise| a + noise),
                Pass::Backward => cpu::noisy(y, a, l, rng, |a, noise| 0.5 * a * noise),
            }
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, words, [lo, hi, s, r]) = (Launch::elements(n.div_ceil(4)), &clock.words(), rng.words());
            let (y, a, logvar, n) = (y.buf_mut(op)?, a.buf(op)?, logvar.buf(op)?, n as i32);
            match pass {
                Pass::Forward => launch::reparameterize_fwd_f32(cuda, l, y, a, logvar, words, n, lo, hi, s, r)?,
                Pass::Backward => launch::reparameterize_bwd_f32(cuda, l, y, a, logvar, words, n, lo, hi, s, r)?,
            }
        }
    }
    Ok(y)
}

mod cpu {
    use crate::device::cpu as threads;
    use crate::rng::{Rng, normals_of};
    use crate::tensor::Real;

    /// y[e] = normal number e.
    pub fn normals<T: Real>(y: &mut [T], rng: Rng) {
        blocks(y, rng, |_, y, normal| y.iter_mut().zip(normal).for_each(|(y, x)| *y = T::of(x)));
    }

    /// y[e] = f(a[e], e^(l[e] / 2) · normal number e)
    pub fn noisy<T: Real>(y: &mut [T], a: &[T], l: &[T], rng: Rng, f: impl Fn(f64, f64) -> f64 + Sync) {
        blocks(y, rng, |at, y, normal| {
            for (((y, x), a), l) in y.iter_mut().zip(normal).zip(&a[at..]).zip(&l[at..]) {
                *y = T::of(f(a.f64(), (0.5 * l.f64()).exp() * x));
            }
        });
    }

    /// `f(first element, up to four elements of y, their normal numbers)`: each Philox block is computed once.
    fn blocks<T: Real>(y: &mut [T], rng: Rng, f: impl Fn(usize, &mut [T], [f64; 4]) + Sync) {
        threads::chunks(y, 4, |at, y| {
            for (b, y) in (at / 4..).zip(y.chunks_mut(4)) {
                f(4 * b, y, normals_of(rng.block(b as u32)));
            }
        });
    }
}

fn stream() -> Rng {
    Rng::new(12).at(Purpose::Vae, 3, 0).lane(4)
}

macro_rules! case {
    ($name:literal, [$($d:literal),*]) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$($d),*], -2.0, 2.0), Arg::Diff(&[$($d),*], -3.0, 1.0)],
            run: |x| {
                let clock = Rc::new(Clock::new(x[0].device())?);
                clock.start(9, 1, 0.1)?;
                reparameterize(&x[0], &x[1], stream(), &clock)
            },
            // A normal number is good to 1e-6: some ten roundings.
            sum: 16,
            flops: 4 $(* $d)*,
            bytes: 12 $(* $d)*,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] =
    &[case!("reparameterize/7x2", [7, 2]), case!("reparameterize/5x33", [5, 33]), case!("reparameterize/1x1", [1, 1])];

/// Real sizes, for device agreement and benchmarks: the codes of VAAL's auto-encoders.
pub(super) const LARGE: &[Case] =
    &[case!("reparameterize/256x64", [256, 64]), case!("reparameterize/5001x7", [5001, 7])];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_stream_at_the_step_of_the_clock() {
        let (d, clock) = (Device::Cpu, Rc::new(Clock::new(&Device::Cpu).unwrap()));
        clock.start(40, 3, 0.1).unwrap();
        for n in [1, 3, 4, 5, 50_001] {
            let r = stream().with_b(clock.host(Word::Step).unwrap());
            let want: Vec<f32> = (0..n as u64).map(|e| r.normal(e) as f32).collect();
            assert_eq!(normals(&d, [n], stream(), &clock).unwrap().to_vec::<f32>().unwrap(), want);
            // μ = 0 and σ = 1 give the noise itself; the gradient of ln σ² is half of it, wherever the clock is by then.
            let zero = Tensor::zeros(&d, [n], Dtype::F32).unwrap().tracked();
            let (mu, logvar) = (zero.detach(), zero);
            let z = reparameterize(&mu, &logvar, stream(), &clock).unwrap();
            clock.advance(1).unwrap();
            let dz = Tensor::new(&d, [n], &vec![2.0f32; n]).unwrap();
            let g = z.grad_from(&dz, &[&logvar]).unwrap();
            assert_eq!(z.to_vec::<f32>().unwrap(), want);
            assert_eq!(g.of(&logvar).unwrap().to_vec::<f32>().unwrap(), want);
        }
        let mu = Tensor::zeros(&d, [3], Dtype::F32).unwrap();
        let logvar = Tensor::zeros(&d, [4], Dtype::F32).unwrap();
        assert!(reparameterize(&mu, &logvar, stream(), &clock).is_err());
    }
}
