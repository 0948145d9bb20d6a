//! Losses over all elements, each a scalar: mean squared error, binary cross-entropy of logits, the divergence of
//! diagonal normals from N(0, I), and that of soft targets from predictions.
//!
//! mse = mean (x − t)²: dx = 2 (x − t) / n, dt = −dx. bce = mean [max(x, 0) − x·t + ln(1 + e^−|x|)], which is
//! −t ln σ(x) − (1 − t) ln(1 − σ(x)) without its overflow: dx = (σ(x) − t) / n. gauss_kl = −½ Σ (1 + l − μ² − e^l)
//! with l = ln σ², summed over batch and dimensions: dμ = μ, dl = ½ (e^l − 1). kl_soft = Σ t ln (t / p) / N.
//! All gradients are times that of the scalar.

use super::activation::sigmoid_of;
use super::elementwise::cpu as pointwise;
use super::{Arg, Case, add, cross_entropy_soft, scale};
use crate::device::{Cuda, Device, Launch, launch};
use crate::tensor::{Buf, Real, Tensor};
use crate::{Result, on_real};

/// Elements of one partial sum; the same number in `kernels/loss.cu`.
const CHUNK: usize = 4096;

/// The mean over all elements of (x − t)², x and t of one shape. Both may be differentiated.
pub fn mse(x: &Tensor, t: &Tensor) -> Result<Tensor> {
    let y = total("mse", Term::Mse, [x, t])?;
    let (sx, st) = (x.detach(), t.detach());
    Ok(y.with_grad("mse", &[x, t], move |dy, need| {
        Ok(vec![
            need.then(0, || gradient("mse", Term::Mse, dy, [&sx, &st]))?,
            need.then(1, || gradient("mse", Term::Mse, dy, [&st, &sx]))?,
        ])
    }))
}

/// The mean over all elements of the binary cross-entropy between σ(x) and the targets t, x and t of one shape. Only
/// the logits x are differentiated.
pub fn bce_with_logits(x: &Tensor, t: &Tensor) -> Result<Tensor> {
    let y = total("bce_with_logits", Term::Bce, [x, t])?;
    let (sx, t) = (x.detach(), t.detach());
    Ok(y.with_grad("bce_with_logits", &[x], move |dy, need| {
        Ok(vec![need.then(0, || gradient("bce_with_logits", Term::Bce, dy, [&sx, &t]))?])
    }))
}

/// The Kullback–Leibler divergence of N(μ, σ²) from N(0, 1), summed over all elements; `logvar` is ln σ².
pub fn gauss_kl(mu: &Tensor, logvar: &Tensor) -> Result<Tensor> {
    let y = total("gauss_kl", Term::GaussKl, [mu, logvar])?;
    let (smu, slogvar) = (mu.detach(), logvar.detach());
    Ok(y.with_grad("gauss_kl", &[mu, logvar], move |dy, need| {
        let [dmu, dlogvar] = gauss_kl_bwd(dy, &smu, &slogvar)?;
        Ok(vec![need.then(0, || Ok(dmu))?, need.then(1, || Ok(dlogvar))?])
    }))
}

/// The mean over rows of the divergence Σ_c t ln (t / p) of the predictions p = softmax(logits) from the targets t, both
/// (N, C). Only the logits are differentiated.
pub fn kl_soft(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let rows = logits.shape().rows("kl_soft")?.0;
    let crossed = cross_entropy_soft(logits, targets)?;
    add(&crossed, &total("kl_soft", Term::NegEntropy { rows }, [targets, targets])?)
}

/// What is summed over pairs (a, b).
#[derive(Clone, Copy)]
enum Term {
    Mse,
    Bce,
    GaussKl,
    /// Of a alone; the mean is over `rows`.
    NegEntropy {
        rows: usize,
    },
}

impl Term {
    /// What the sum of `n` terms is multiplied by.
    fn scale(self, n: usize) -> f64 {
        match self {
            Term::Mse | Term::Bce => 1.0 / n as f64,
            Term::GaussKl => 1.0,
            Term::NegEntropy { rows } => 1.0 / rows as f64,
        }
    }
}

fn total(op: &'static str, term: Term, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
    let n = a.len();
    if a.shape() != b.shape() {
        return Err(b.shape().refuse(op, format!("{:?}, as the other input", a.shape())));
    }
    if n == 0 {
        return Err(a.shape().refuse(op, "at least one element"));
    }
    let (mut y, scale) = (a.stale_like([])?, term.scale(n));
    match a.device() {
        Device::Cpu => on_real!(op, a, T => {
            let (y, a, b) = (y.host_mut::<T>(op)?, a.host::<T>(op)?, b.host::<T>(op)?);
            match term {
                Term::Mse => cpu::total(y, a, b, scale, |x, t| (x - t) * (x - t)),
                Term::Bce => cpu::total(y, a, b, scale, |x, t| {
                    (if x > 0.0 { x } else { 0.0 }) - x * t + (-x.abs()).exp().ln_1p()
                }),
                Term::GaussKl => cpu::total(y, a, b, scale, |m, l| 0.5 * (m * m + (l.exp_m1() - l))),
                Term::NegEntropy { .. } => cpu::total(y, a, b, scale, |t, _| if t == 0.0 { 0.0 } else { t * t.ln() }),
            }
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (chunks, scale) = (n.div_ceil(CHUNK), scale as f32);
            let parts = |part: &mut Buf<f32>| partial_sums(op, cuda, part, term, [a, b], scale);
            if chunks == 1 {
                parts(y.buf_mut(op)?)?;
            } else {
                let mut part = a.stale_like([chunks])?;
                parts(part.buf_mut(op)?)?;
                let last = Launch::warps(1, 32);
                launch::sum_cols_f32(cuda, last, y.buf_mut(op)?, part.buf(op)?, 1, chunks as i32)?;
            }
        }
    }
    Ok(y)
}

fn partial_sums(
    op: &'static str,
    cuda: &Cuda,
    part: &mut Buf<f32>,
    term: Term,
    [a, b]: [&Tensor; 2],
    scale: f32,
) -> Result<()> {
    let l = Launch::grid(a.len().div_ceil(CHUNK), 1, 1, 256);
    let (a, b, n) = (a.buf(op)?, b.buf(op)?, a.len() as i32);
    match term {
        Term::Mse => launch::mse_fwd_f32(cuda, l, part, a, b, n, scale),
        Term::Bce => launch::bce_with_logits_fwd_f32(cuda, l, part, a, b, n, scale),
        Term::GaussKl => launch::gauss_kl_fwd_f32(cuda, l, part, a, b, n, scale),
        Term::NegEntropy { .. } => launch::neg_entropy_fwd_f32(cuda, l, part, a, n, scale),
    }
}

/// The gradient of x for the gradient dy () of the scalar; only for terms with one gradient.
fn gradient(op: &'static str, term: Term, dy: &Tensor, [x, t]: [&Tensor; 2]) -> Result<Tensor> {
    let (mut dx, n, scale) = (x.like()?, x.len(), term.scale(x.len()));
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let d = scale * cpu::value(dy.host::<T>(op)?);
            let (dx, x, t) = (dx.host_mut::<T>(op)?, x.host::<T>(op)?, t.host::<T>(op)?);
            match term {
                Term::Bce => pointwise::zip(dx, x, t, |x, t| d * (sigmoid_of(x) - t)),
                _ => pointwise::zip(dx, x, t, |x, t| 2.0 * d * (x - t)),
            }
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, dx, dy) = (Launch::elements(n.div_ceil(4)), dx.buf_mut(op)?, dy.buf(op)?);
            let (x, t, n, scale) = (x.buf(op)?, t.buf(op)?, n as i32, scale as f32);
            match term {
                Term::Bce => launch::bce_with_logits_bwd_f32(cuda, l, dx, dy, x, t, n, scale)?,
                _ => launch::mse_bwd_f32(cuda, l, dx, dy, x, t, n, scale)?,
            }
        }
    }
    Ok(dx)
}

fn gauss_kl_bwd(dy: &Tensor, mu: &Tensor, logvar: &Tensor) -> Result<[Tensor; 2]> {
    let op = "gauss_kl_bwd";
    let (mut dmu, mut dlogvar, n) = (mu.like()?, mu.like()?, mu.len());
    match mu.device() {
        Device::Cpu => on_real!(op, mu, T => {
            let d = cpu::value(dy.host::<T>(op)?);
            pointwise::map(dmu.host_mut::<T>(op)?, mu.host::<T>(op)?, |m| d * m);
            pointwise::map(dlogvar.host_mut::<T>(op)?, logvar.host::<T>(op)?, |l| 0.5 * d * l.exp_m1());
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, dy, mu, logvar) = (Launch::elements(n.div_ceil(4)), dy.buf(op)?, mu.buf(op)?, logvar.buf(op)?);
            launch::gauss_kl_bwd_f32(cuda, l, dmu.buf_mut(op)?, dlogvar.buf_mut(op)?, dy, mu, logvar, n as i32)?;
        }
    }
    Ok([dmu, dlogvar])
}

mod cpu {
    use rayon::prelude::*;

    use super::{CHUNK, Real};

    /// y = scale Σ term(a[i], b[i]), over fixed chunks and then over those, whatever the number of threads.
    pub fn total<T: Real>(y: &mut [T], a: &[T], b: &[T], scale: f64, term: impl Fn(f64, f64) -> f64 + Sync) {
        let chunk = |(a, b): (&[T], &[T])| a.iter().zip(b).map(|(a, b)| term(a.f64(), b.f64())).sum::<f64>();
        // A few chunks a task: less is not worth another thread.
        let parts = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).with_min_len(4).map(chunk);
        y[0] = T::of(scale * parts.collect::<Vec<f64>>().iter().sum::<f64>());
    }

    /// The number in a scalar.
    pub fn value<T: Real>(y: &[T]) -> f64 {
        y[0].f64()
    }
}

macro_rules! case {
    ($name:literal, [$($d:literal),*], [$a:expr, $b:expr], $f:expr, $sum:expr) => {
        Case {
            name: $name,
            inputs: &[$a, $b],
            run: |x| {
                let f: fn(&Tensor, &Tensor) -> Result<Tensor> = $f;
                f(&x[0], &x[1])
            },
            sum: $sum,
            flops: 4 $(* $d)*,
            bytes: (2 $(* $d)* + 1) * 4,
        }
    };
}
macro_rules! diff {
    ($($d:literal),*; $lo:literal, $hi:literal) => { Arg::Diff(&[$($d),*], $lo, $hi) };
}
macro_rules! fixed {
    ($($d:literal),*; $lo:literal, $hi:literal) => { Arg::Fixed(&[$($d),*], $lo, $hi) };
}

/// Shapes every suite runs these operations on. A mean's terms are divided by their number: its sum counts as short.
pub(super) const CASES: &[Case] = &[
    case!("mse/7x33", [7, 33], [diff!(7, 33; -2.0, 2.0), diff!(7, 33; -2.0, 2.0)], mse, 8),
    case!("mse/1x4100", [1, 4100], [diff!(1, 4100; -2.0, 2.0), fixed!(1, 4100; -2.0, 2.0)], mse, 8),
    case!("bce_with_logits/33x1", [33, 1], [diff!(33, 1; -6.0, 6.0), fixed!(33, 1; 0.0, 1.0)], bce_with_logits, 8),
    case!("bce_with_logits/9x31", [9, 31], [diff!(9, 31; -2.0, 2.0), fixed!(9, 31; 0.0, 1.0)], bce_with_logits, 8),
    case!("gauss_kl/5x32", [5, 32], [diff!(5, 32; -2.0, 2.0), diff!(5, 32; -2.0, 2.0)], gauss_kl, 16),
    case!("gauss_kl/3x7", [3, 7], [diff!(3, 7; -0.5, 0.5), diff!(3, 7; -3.0, 1.0)], gauss_kl, 16),
    case!("kl_soft/31x10", [31, 10], [diff!(31, 10; -3.0, 3.0), fixed!(31, 10; 0.0, 0.2)], kl_soft, 10),
];

/// Real sizes, for device agreement and benchmarks: what a VAE reconstructs, its code, a discriminator's verdicts, and
/// soft labels. As sums: a mean's gradients would be as small as their tolerance.
pub(super) const LARGE: &[Case] = &[
    case!(
        "mse/64x32x32x3",
        [64, 32, 32, 3],
        [diff!(64, 32, 32, 3; -2.0, 2.0), fixed!(64, 32, 32, 3; -2.0, 2.0)],
        |x, t| scale(&mse(x, t)?, x.len() as f32),
        64
    ),
    case!(
        "bce_with_logits/20001x1",
        [20001, 1],
        [diff!(20001, 1; -6.0, 6.0), fixed!(20001, 1; 0.0, 1.0)],
        |x, t| scale(&bce_with_logits(x, t)?, x.len() as f32),
        64
    ),
    case!("gauss_kl/256x64", [256, 64], [diff!(256, 64; -2.0, 2.0), diff!(256, 64; -2.0, 2.0)], gauss_kl, 64),
    case!(
        "kl_soft/512x100",
        [512, 100],
        [diff!(512, 100; -3.0, 3.0), fixed!(512, 100; 0.0, 0.02)],
        |x, t| scale(&kl_soft(x, t)?, 512.0),
        100
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::sigmoid;

    fn row(v: &[f32]) -> Tensor {
        Tensor::new(&Device::Cpu, [1, v.len()], v).unwrap()
    }

    fn value(t: Result<Tensor>) -> f32 {
        t.unwrap().to_vec::<f32>().unwrap()[0]
    }

    /// METHODS: μ = (1, 0), ln σ² = (0, ln 2); D(μ_L) = .9, D(μ_U) = .2.
    #[test]
    fn the_worked_examples_of_vaal() {
        let close = |got: f32, want: f32| assert!((got - want).abs() < 1e-6, "{got}, not {want}");
        close(value(gauss_kl(&row(&[1.0, 0.0]), &row(&[0.0, 2f32.ln()]))), 0.653_426);
        let logit = |p: f32| row(&[(p / (1.0 - p)).ln()]);
        assert!((value(sigmoid(&logit(0.9))) - 0.9).abs() < 1e-6);
        let bce = |p, t| value(bce_with_logits(&logit(p), &row(&[t])));
        close(bce(0.9, 1.0) + bce(0.2, 0.0), 0.328_504);
        close(bce(0.9, 1.0) + bce(0.2, 1.0), 1.714_798);
        // MixMatch: p = (.7, .2, .1) against (.5, .5, 0).
        close(value(mse(&row(&[0.7, 0.2, 0.1]), &row(&[0.5, 0.5, 0.0]))), 0.046_667);
    }

    #[test]
    fn extremes_stay_finite_and_nans_show() {
        let x = row(&[-1e4, 1e4, 0.0]).tracked();
        let y = bce_with_logits(&x, &row(&[1.0, 0.0, 0.5])).unwrap();
        assert!((y.to_vec::<f32>().unwrap()[0] - (2e4 + 2f32.ln()) / 3.0).abs() < 1e-3);
        let dx = y.grad(&[&x]).unwrap().of(&x).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(dx, [-1.0 / 3.0, 1.0 / 3.0, 0.0]);
        assert!(value(bce_with_logits(&row(&[f32::NAN]), &row(&[1.0]))).is_nan());
        assert!(value(mse(&row(&[f32::NAN]), &row(&[1.0]))).is_nan());
        assert!(value(gauss_kl(&row(&[0.0]), &row(&[f32::NAN]))).is_nan());
        // Near N(0, 1), where 1 + l − e^l cancels: l²/4 to second order.
        let near = value(gauss_kl(&row(&[0.0]), &row(&[1e-3])));
        assert!((near / 2.500_833e-7 - 1.0).abs() < 1e-4, "{near}");
    }

    #[test]
    fn the_divergence_of_equal_distributions_is_zero() {
        let logits = row(&[0.3, -1.0, 2.0, 0.0]);
        let p = crate::ops::softmax(&logits).unwrap();
        assert!(value(kl_soft(&logits, &p)).abs() < 1e-6);
        // A target of zeros: 0 ln 0 is 0.
        assert_eq!(value(kl_soft(&logits, &row(&[0.0; 4]))), 0.0);
    }

    #[test]
    fn empty_and_unequal_inputs_are_refused() {
        assert!(mse(&row(&[]), &row(&[])).is_err());
        assert!(bce_with_logits(&row(&[1.0]), &row(&[1.0, 2.0])).is_err());
    }
}
