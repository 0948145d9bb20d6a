//! MixMatch (METHODS 4.2): guesses for unlabelled images, mixtures of a step's rows, and its loss.   B: batch, C: classes
//!
//! guess q_c = p̄_c^(1/T) / Σ p̄^(1/T) with p̄ = ½ (softmax a + softmax b).
//! Rows of a step: i in 0 .. 3B of [x; u; v], x labelled, u and v two views of the same unlabelled images. Row i is mixed
//! with its partner π(i): λ x_i + (1 − λ) x_π(i), targets likewise. They are interleaved into three batches of B: the
//! places of a batch are three slots of ⌊B/3⌋, the last B mod 3 of them one longer, and slot s of batch s is exchanged
//! with slot s of batch 0, so that every batch has labelled and unlabelled rows.
//! loss = Σ over the labelled rows of −Σ_c t_c log p_c / B + w Σ over the others of Σ_c (p_c − t_c)² / (2BC), p = softmax z:
//! dz = (p Σ t − t) / B of the former, dz = w p (d − Σ p d) / (BC) with d = p − t of the latter. The weight w rises
//! linearly with the epoch and the step in it, which are the clock's. Partners and shares are those of the clock's step.

use super::softmax::mean_with_grad;
use super::{Arg, Case, add, cast, slice_rows};
use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Dtype, Tensor};
use crate::{Error, Result, on_real, on_stored};

/// The mean of softmax(a) and softmax(b), sharpened: (N, C) logits twice → (N, C). Not differentiable.
pub fn guess(a: &Tensor, b: &Tensor, temperature: f32) -> Result<Tensor> {
    let op = "guess";
    let [n, c] = same(op, a, b)?;
    let (mut q, power) = (a.stale_like([n, c])?, 1.0 / temperature);
    match a.device() {
        Device::Cpu => on_real!(op, a, T => {
            cpu::guess(q.host_mut::<T>(op)?, a.host::<T>(op)?, b.host::<T>(op)?, c, f64::from(power));
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, q, a, b) = (Launch::warps(n, 256), q.buf_mut(op)?, a.buf(op)?, b.buf(op)?);
            launch::guess_f32(cuda, l, q, a, b, n as i32, c as i32, power)?;
        }
    }
    Ok(q)
}

/// u_i = −log (p1 − p2) of each row, p1 ≥ p2 being the two largest of the mean of softmax(a) and softmax(b): (N, C) logits
/// twice → (N). As [`super::margin`], it keeps its resolution near certainty; +∞ at a tie, 0 for one class.
pub fn margin_of_mean(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let op = "margin_of_mean";
    let [n, c] = same(op, a, b)?;
    let mut y = a.stale_like([n])?;
    match a.device() {
        Device::Cpu => on_real!(op, a, T => {
            cpu::margin_of_mean(y.host_mut::<T>(op)?, a.host::<T>(op)?, b.host::<T>(op)?, c);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, a, b) = (Launch::warps(n, 256), y.buf_mut(op)?, a.buf(op)?, b.buf(op)?);
            launch::margin_of_mean_f32(cuda, l, y, a, b, n as i32, c as i32)?;
        }
    }
    Ok(y)
}

fn same(op: &'static str, a: &Tensor, b: &Tensor) -> Result<[usize; 2]> {
    let [n, c] = a.shape().matrix(op)?;
    if c == 0 {
        return Err(a.shape().refuse(op, "(N, C) with C above 0"));
    }
    if a.shape() != b.shape() {
        return Err(b.shape().refuse(op, format!("{:?}, as the other view", a.shape())));
    }
    Ok([n, c])
}

/// With whom the rows of each step of an epoch are mixed, and how.
pub struct Mixtures {
    /// (S · 3B) u32: π of each step, one after the other.
    pub partners: Tensor,
    /// λ of each step (S), or of each row of each step (S · 3B), in [½, 1].
    pub shares: Tensor,
}

impl Mixtures {
    /// A share for every row, and not for every step.
    fn each(&self) -> bool {
        self.shares.len() == self.partners.len()
    }
}

/// The row of [x; u; v] at row `r` of the interleaved batches.
fn mixed_from(r: usize, batch: usize) -> usize {
    let (j, p, small, rest) = (r / batch, r % batch, batch / 3, batch % 3);
    let first = small * (3 - rest);
    let s = if p < first { p / small } else { 3 - rest + (p - first) / (small + 1) };
    let from = match j {
        0 => s,
        _ if j == s => 0,
        _ => j,
    };
    from * batch + p
}

/// The images of a step's three batches: x, u, v (B, H, W, C) → (3B, H, W, C). A mixture that does not exist is an error
/// on the CPU and NaN on a device, which stops the run.
pub fn mix_images([x, u, v]: [&Tensor; 3], mixtures: &Mixtures, clock: &Clock) -> Result<Tensor> {
    let op = "mix_images";
    let [batch, h, w, c] = x.shape().nhwc(op)?;
    if let Some(other) = [u, v].into_iter().find(|t| t.shape() != x.shape()) {
        return Err(other.shape().refuse(op, format!("{:?}, as the labelled images", x.shape())));
    }
    let (shape, width) = ([3 * batch, h, w, c], h * w * c);
    match x.device() {
        Device::Cpu => {
            let wide = [cast(x, Dtype::F32)?, cast(u, Dtype::F32)?, cast(v, Dtype::F32)?];
            let parts = [wide[0].host(op)?, wide[1].host(op)?, wide[2].host(op)?];
            let mut y = Tensor::stale(x.device(), shape, Dtype::F32)?;
            fast::mix(y.host_mut(op)?, parts, &pairs(op, mixtures, clock, batch)?, width);
            cast(&y, x.dtype())
        }
        Device::Cuda(cuda) => {
            let mut y = x.stale_like(shape)?;
            on_stored!(op, x, S => {
                let (l, words) = (Launch::elements(3 * batch * width), &clock.words());
                let (y, x, u, v) = (y.buf_mut::<S>(op)?, x.buf(op)?, u.buf(op)?, v.buf(op)?);
                let (partners, shares) = (mixtures.partners.buf(op)?, mixtures.shares.buf(op)?);
                let [b, w, len, each] = [batch, width, partners.len(), mixtures.each().into()].map(|v| v as i32);
                launch::mix_images(cuda, l, y, x, u, v, partners, shares, words, b, w, len, each)
            })?;
            Ok(y)
        }
    }
}

/// The targets of a step's three batches: labels u32 (B) of x and the guesses q (B, C) of both u and v → (3B, C).
pub fn mix_targets(labels: &Tensor, q: &Tensor, mixtures: &Mixtures, clock: &Clock) -> Result<Tensor> {
    let op = "mix_targets";
    let [batch, c] = q.shape().matrix(op)?;
    if labels.dims() != [batch] {
        return Err(labels.shape().refuse(op, format!("({batch}), a label for every labelled image")));
    }
    let mut y = q.stale_like([3 * batch, c])?;
    match q.device() {
        Device::Cpu => {
            let (labels, q) = (labels.host::<u32>(op)?, q.host::<f32>(op)?);
            if let Some(l) = labels.iter().find(|l| **l as usize >= c) {
                let why = format!("label {l} is not among the {c} classes from 0");
                return Err(Error::Data { path: "labels".into(), why });
            }
            let mut known = vec![0.0f32; batch * c];
            known.chunks_exact_mut(c).zip(labels).for_each(|(row, l)| row[*l as usize] = 1.0);
            fast::mix(y.host_mut(op)?, [&known, q, q], &pairs(op, mixtures, clock, batch)?, c);
        }
        Device::Cuda(cuda) => {
            let (l, words) = (Launch::elements(3 * batch * c), &clock.words());
            let (partners, shares) = (mixtures.partners.buf(op)?, mixtures.shares.buf(op)?);
            let [b, c, len, each] = [batch, c, partners.len(), mixtures.each().into()].map(|v| v as i32);
            let (y, labels, q) = (y.buf_mut(op)?, labels.buf(op)?, q.buf(op)?);
            launch::mix_targets_f32(cuda, l, y, labels, q, partners, shares, words, b, c, len, each)?;
        }
    }
    Ok(y)
}

/// For each row of the three batches the two rows of [x; u; v] that make it, and the share of the first.
fn pairs(op: &'static str, mixtures: &Mixtures, clock: &Clock, batch: usize) -> Result<Vec<([usize; 2], f32)>> {
    let (partners, shares) = (mixtures.partners.host::<u32>(op)?, mixtures.shares.host::<f32>(op)?);
    let start = 3 * clock.host(Word::Offset)? as usize;
    let one = |r: usize| {
        let a = mixed_from(r, batch);
        let at = start + a;
        let b = partners.get(at).map(|b| *b as usize).filter(|b| *b < 3 * batch);
        let share = shares.get(if mixtures.each() { at } else { at / (3 * batch) });
        let lost = || Error::Shape {
            op,
            want: format!("partners and shares of step {} with {} rows", start / (3 * batch).max(1), 3 * batch),
            got: format!("({}) and ({})", partners.len(), shares.len()),
        };
        b.zip(share).map(|(b, share)| ([a, b], *share)).ok_or_else(lost)
    };
    (0..3 * batch).map(one).collect()
}

/// How much the unlabelled rows count: linearly from 0 to `most` in `ramp` epochs of `steps` steps, `most` from the start
/// where `ramp` is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rise {
    /// The weight in the end.
    pub most: f32,
    /// Epochs.
    pub ramp: f32,
    /// Steps of an epoch.
    pub steps: u32,
}

impl Rise {
    /// The weight at a step of an epoch, both from 0.
    pub fn at(self, epoch: u32, step: u32) -> f32 {
        let now = epoch as f32 + step as f32 / self.steps as f32;
        if now < self.ramp { self.most * (now / self.ramp) } else { self.most }
    }
}

/// What some rows add to the loss of a step, a scalar, and what each of them adds (n), times n: logits (n, C) of the rows
/// from `first` on of the interleaved batches, whose targets are (3B, C). Only the logits are differentiated.
pub fn mixmatch_loss(
    logits: &Tensor,
    first: usize,
    targets: &Tensor,
    rise: Rise,
    clock: &Clock,
) -> Result<[Tensor; 2]> {
    let op = "mixmatch_loss";
    let ([n, c], [all, wide]) = (logits.shape().matrix(op)?, targets.shape().matrix(op)?);
    if all == 0 || all % 3 != 0 {
        return Err(targets.shape().refuse(op, "(3B, C) with B above 0"));
    }
    if n == 0 || c == 0 || c != wide || first + n > all {
        return Err(logits.shape().refuse(op, format!("rows from {first} on of the targets' {:?}", targets.shape())));
    }
    let (mut losses, mut d) = (logits.stale_like([n])?, logits.like()?);
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let (x, t) = (logits.host::<T>(op)?, targets.host::<T>(op)?);
            let weight = f64::from(rise.at(clock.host(Word::Epoch)?, clock.host(Word::Slot)?));
            let rows = first..first + n;
            cpu::loss(losses.host_mut::<T>(op)?, d.host_mut::<T>(op)?, x, &t[first * c..], rows, all / 3, weight);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, x, t) = (Launch::warps(n, 256), losses.buf_mut(op)?, logits.buf(op)?, targets.buf(op)?);
            let [n, first, b, c] = [n, first, all / 3, c].map(|v| v as i32);
            let (words, Rise { most, ramp, steps }) = (&clock.words(), rise);
            launch::mixmatch_loss_f32(
                cuda,
                l,
                y,
                d.buf_mut(op)?,
                x,
                t,
                words,
                n,
                first,
                b,
                c,
                most,
                ramp,
                steps as f32,
            )?;
        }
    }
    Ok([mean_with_grad(op, logits, &losses, d)?, losses])
}

mod cpu {
    use std::ops::Range;

    use super::mixed_from;
    use crate::ops::softmax::cpu::softmax_of;
    use crate::tensor::Real;

    fn mean_of<T: Real>(p: &mut [f64], a: &[T], b: &[T]) {
        let (a, b) = (softmax_of(a), softmax_of(b));
        p.iter_mut().enumerate().for_each(|(j, p)| *p = 0.5 * (a(j) + b(j)));
    }

    /// q, a, b: (N, C)
    pub fn guess<T: Real>(q: &mut [T], a: &[T], b: &[T], c: usize, power: f64) {
        let mut p = vec![0.0; c];
        for (q, (a, b)) in q.chunks_exact_mut(c).zip(a.chunks_exact(c).zip(b.chunks_exact(c))) {
            mean_of(&mut p, a, b);
            p.iter_mut().for_each(|p| *p = p.powf(power));
            let sum: f64 = p.iter().sum();
            q.iter_mut().zip(&p).for_each(|(q, p)| *q = T::of(p / sum));
        }
    }

    /// y: (N), a, b: (N, C)
    pub fn margin_of_mean<T: Real>(y: &mut [T], a: &[T], b: &[T], c: usize) {
        let mut p = vec![0.0; c];
        for (y, (a, b)) in y.iter_mut().zip(a.chunks_exact(c).zip(b.chunks_exact(c))) {
            mean_of(&mut p, a, b);
            let first = (0..c).fold(0, |best, j| if p[j] > p[best] { j } else { best });
            let others = || p.iter().enumerate().filter(|(j, _)| *j != first).map(|(_, p)| *p);
            let second = others().fold(0.0, f64::max);
            let lost = others().sum::<f64>() + second;
            let margin = if lost > 0.5 { -(p[first] - second).ln() } else { -(-lost).ln_1p() };
            *y = T::of(if p.iter().any(|p| p.is_nan()) { f64::NAN } else { margin });
        }
    }

    /// losses: (n), d, x: (n, C), t: from their rows on
    pub fn loss<T: Real>(losses: &mut [T], d: &mut [T], x: &[T], t: &[T], at: Range<usize>, batch: usize, weight: f64) {
        let c = x.len() / losses.len();
        let scale = losses.len() as f64 / batch as f64;
        let weight = 0.5 * scale * weight / c as f64;
        let rows = x.chunks_exact(c).zip(t.chunks_exact(c)).zip(d.chunks_exact_mut(c));
        for (r, (loss, ((x, t), d))) in at.zip(losses.iter_mut().zip(rows)) {
            let p = softmax_of(x);
            if mixed_from(r, batch) < batch {
                let mass: f64 = t.iter().map(|t| t.f64()).sum();
                d.iter_mut().enumerate().for_each(|(j, d)| *d = T::of(scale * (p(j) * mass - t[j].f64())));
                let top = x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(v.f64()));
                let log_sum = x.iter().map(|v| (v.f64() - top).exp()).sum::<f64>().ln();
                *loss = T::of(x.iter().zip(t).map(|(x, t)| -scale * t.f64() * (x.f64() - top - log_sum)).sum());
            } else {
                let off = |j: usize| p(j) - t[j].f64();
                let slope: f64 = (0..c).map(|j| p(j) * off(j)).sum();
                d.iter_mut().enumerate().for_each(|(j, d)| *d = T::of(2.0 * weight * p(j) * (off(j) - slope)));
                *loss = T::of(weight * (0..c).map(|j| off(j) * off(j)).sum::<f64>());
            }
        }
    }
}

mod fast {
    use crate::device::cpu as threads;

    /// y[r] = share · row a + (1 − share) · row b of the three parts;   y: (3B, width), parts: (B, width) each
    pub fn mix(y: &mut [f32], parts: [&[f32]; 3], pairs: &[([usize; 2], f32)], width: usize) {
        let batch = pairs.len() / 3;
        let row = |i: usize| &parts[i / batch][i % batch * width..][..width];
        threads::chunks(y, width, |at, y| {
            for (y, ([a, b], share)) in y.chunks_exact_mut(width).zip(&pairs[at / width..]) {
                blend(y, row(*a), row(*b), *share);
            }
        });
    }

    crate::simd! {
        fn blend(y: &mut [f32], a: &[f32], b: &[f32], share: f32) {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = share * a + (1.0 - share) * b;
            }
        }
    }
}

/// The third step of epoch 20.
fn clock_of_cases(x: &Tensor) -> Result<Clock> {
    let clock = Clock::new(x.device())?;
    clock.start(0, 20, 0.1)?;
    (0..3).try_for_each(|_| clock.advance(1))?;
    Ok(clock)
}

macro_rules! case {
    ($name:literal, $n:literal, $c:literal, $f:expr) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$n, $c], -3.0, 3.0), Arg::Fixed(&[$n, $c], 0.0, 2.0 / $c as f32)],
            run: $f,
            sum: 2 * $c + $n,
            flops: 8 * $n * $c,
            bytes: 3 * $n * $c * 4,
        }
    };
}

const RISE: Rise = Rise { most: 100.0, ramp: 80.0, steps: 10 };

/// The loss of a case's rows at once, or of its three batches one after the other.
fn loss_of_case(x: &[Tensor], at_once: bool) -> Result<Tensor> {
    let ([n, _], clock) = (x[0].shape().matrix("mixmatch_loss")?, clock_of_cases(&x[0])?);
    let rows = if at_once { n } else { n / 3 };
    let part = |first| Ok(mixmatch_loss(&slice_rows(&x[0], first, rows)?, first, &x[1], RISE, &clock)?[0].clone());
    let mut parts = (0..n).step_by(rows).map(part);
    let first = parts.next().unwrap_or_else(|| Err(x[0].shape().refuse("mixmatch_loss", "some rows")))?;
    parts.try_fold(first, |sum, part| add(&sum, &part?))
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("mixmatch_loss/3x2", 3, 2, |x| loss_of_case(x, true)),
    case!("mixmatch_loss/15x10", 15, 10, |x| loss_of_case(x, false)),
    case!("mixmatch_loss/12x43", 12, 43, |x| loss_of_case(x, true)),
];

/// Real sizes: device agreement and benchmarks.
pub(super) const LARGE: &[Case] = &[case!("mixmatch_loss/384x10", 384, 10, |x| loss_of_case(x, false))];

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(&Device::Cpu, shape, v).unwrap()
    }

    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln() + 2.0).collect()
    }

    fn close(got: &[f32], want: &[f32]) {
        assert!(got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} {want:?}");
    }

    /// METHODS 4.2: {x0,u1,u2,v3,v4}, {u0,x1,x2,u3,u4}, {v0,v1,v2,x3,x4}.
    #[test]
    fn interleaving_is_that_of_the_specification_and_its_own_inverse() {
        let from: Vec<usize> = (0..15).map(|r| mixed_from(r, 5)).collect();
        assert_eq!(from, [0, 6, 7, 13, 14, 5, 1, 2, 8, 9, 10, 11, 12, 3, 4]);
        for batch in 1..20 {
            for r in 0..3 * batch {
                assert_eq!(mixed_from(mixed_from(r, batch), batch), r, "batch {batch}");
                assert_eq!(mixed_from(r, batch) % batch, r % batch, "rows keep their place");
            }
            let labelled = |j: usize| (0..batch).filter(|p| mixed_from(j * batch + p, batch) < batch).count();
            let sizes = [batch / 3, batch.div_ceil(3)];
            assert!((0..3).all(|j| sizes.contains(&labelled(j))), "batch {batch}");
        }
    }

    #[test]
    fn guesses_are_sharpened_means() {
        // Of the first row the mean is (.6, .3, .1).
        let (a, b) = (logs(&[0.8, 0.1, 0.1, 0.25, 0.25, 0.5]), logs(&[0.4, 0.5, 0.1, 0.75, 0.25, 1e-9]));
        let (a, b) = (tensor(&[2, 3], &a), tensor(&[2, 3], &b));
        let q = guess(&a, &b, 0.5).unwrap().to_vec::<f32>().unwrap();
        close(&q[..3], &[0.782_608_7, 0.195_652_17, 0.021_739_13]);
        close(&q[3..], &[0.25 / 0.375, 0.0625 / 0.375, 0.0625 / 0.375]);
        close(&guess(&a, &b, 1.0).unwrap().to_vec::<f32>().unwrap()[..3], &[0.6, 0.3, 0.1]);
        assert!(guess(&a, &tensor(&[1, 3], &[0.0; 3]), 0.5).is_err());
    }

    /// METHODS 6.17.
    #[test]
    fn margins_are_those_of_the_mean() {
        let a = logs(&[0.6, 0.3, 0.1, 0.5, 0.4, 0.1, 0.9, 0.05, 0.05, 0.8, 0.1, 0.1]);
        let b = logs(&[0.3, 0.6, 0.1, 0.5, 0.4, 0.1, 0.2, 0.7, 0.1, 0.8, 0.1, 0.1]);
        let u = margin_of_mean(&tensor(&[4, 3], &a), &tensor(&[4, 3], &b)).unwrap().to_vec::<f32>().unwrap();
        close(&u.iter().map(|u| (-u).exp()).collect::<Vec<_>>(), &[0.0, 0.1, 0.175, 0.7]);
        // Sure rows keep their order, one class is certain, and a NaN is reported.
        let sure = tensor(&[3, 2], &[30.0, 0.0, 40.0, 0.0, 0.0, f32::NAN]);
        let u = margin_of_mean(&sure, &sure).unwrap().to_vec::<f32>().unwrap();
        assert!(u[0] > u[1] && u[1] > 0.0 && u[2].is_nan(), "{u:?}");
        let one = tensor(&[1, 1], &[5.0]);
        assert_eq!(margin_of_mean(&one, &one).unwrap().to_vec::<f32>().unwrap(), [0.0]);
    }

    #[test]
    fn the_loss_is_that_of_the_specification() {
        // B = 1: slots of 0, 0 and 1, so that the batches are v, u, x.
        let (p, hard, soft) = ([0.7f32, 0.2, 0.1], [0.7f32, 0.3, 0.0], [0.5f32, 0.5, 0.0]);
        assert_eq!([0, 1, 2].map(|r| mixed_from(r, 1)), [2, 1, 0]);
        let x = tensor(&[3, 3], &logs(&[p; 3].concat())).tracked();
        let t = tensor(&[3, 3], &[soft, soft, hard].concat());
        let clock = Clock::new(&Device::Cpu).unwrap();
        clock.start(0, 30, 0.1).unwrap();
        (0..5).for_each(|_| clock.advance(1).unwrap());
        // METHODS 4.2: weight 15.25 at t = 30.5.
        let rise = Rise { most: 100.0, ramp: 200.0, steps: 10 };
        assert_eq!(rise.at(30, 5), 15.25);
        assert_eq!((rise.at(0, 0), rise.at(200, 0), rise.at(500, 3)), (0.0, 100.0, 100.0));
        assert_eq!(Rise { ramp: 0.0, ..rise }.at(0, 0), 100.0);
        let [loss, rows] = mixmatch_loss(&x, 0, &t, rise, &clock).unwrap();
        let rows = rows.to_vec::<f32>().unwrap();
        close(&[rows[2] / 3.0, rows[0] / 1.5 / 15.25], &[0.732_504, 0.046_667]);
        close(&loss.to_vec::<f32>().unwrap(), &[0.732_504_4 + 15.25 * 0.046_666_667]);
        let last = slice_rows(&x, 2, 1).unwrap();
        close(&mixmatch_loss(&last, 2, &t, rise, &clock).unwrap()[0].to_vec::<f32>().unwrap(), &[0.732_504_4]);
        assert!(mixmatch_loss(&last, 3, &t, rise, &clock).is_err());
        assert!(mixmatch_loss(&tensor(&[4, 3], &[0.0; 12]), 0, &tensor(&[4, 3], &[0.0; 12]), rise, &clock).is_err());
    }

    #[test]
    fn rows_are_mixed_with_their_partners() {
        let batch = 2; // batches: u0 v1, x0 u1, v0 x1
        let parts: Vec<Tensor> =
            (0..3).map(|k| tensor(&[2, 1, 1, 2], &[10.0, 11.0, 20.0, 21.0].map(|v| v + 100.0 * k as f32))).collect();
        let partners: Vec<u32> = vec![0, 0, 0, 0, 0, 0, 5, 4, 3, 2, 1, 0];
        let clock = Clock::new(&Device::Cpu).unwrap();
        clock.advance(batch).unwrap(); // the second step
        let row = |i: usize, e: usize| [10.0, 11.0, 20.0, 21.0][i % 2 * 2 + e] + 100.0 * (i / 2) as f32;
        for each in [false, true] {
            let shares = if each { (0..12).map(|i| 0.5 + i as f32 / 24.0).collect() } else { vec![0.9, 0.75] };
            let mixtures = Mixtures {
                partners: Tensor::new(&Device::Cpu, [12], &partners).unwrap(),
                shares: tensor(&[shares.len()], &shares),
            };
            let y = mix_images([&parts[0], &parts[1], &parts[2]], &mixtures, &clock).unwrap();
            assert_eq!(y.dims(), [6, 1, 1, 2]);
            let share = |i: usize| if each { shares[6 + i] } else { 0.75 };
            let want: Vec<f32> = [2, 5, 0, 3, 4, 1]
                .into_iter()
                .flat_map(|i| [0, 1].map(|e| share(i) * row(i, e) + (1.0 - share(i)) * row(5 - i, e)))
                .collect();
            close(&y.to_vec::<f32>().unwrap(), &want);
            let labels = Tensor::new(&Device::Cpu, [2], &[1u32, 0]).unwrap();
            let q = tensor(&[2, 2], &[0.25, 0.75, 0.5, 0.5]);
            let t = mix_targets(&labels, &q, &mixtures, &clock).unwrap().to_vec::<f32>().unwrap();
            let target = |i: usize| [[0.0, 1.0], [1.0, 0.0], [0.25, 0.75], [0.5, 0.5]][if i < 4 { i } else { i - 2 }];
            let want: Vec<f32> = [2, 5, 0, 3, 4, 1]
                .into_iter()
                .flat_map(|i| [0, 1].map(|e| share(i) * target(i)[e] + (1.0 - share(i)) * target(5 - i)[e]))
                .collect();
            close(&t, &want);
            let bad = Tensor::new(&Device::Cpu, [2], &[1u32, 2]).unwrap();
            assert!(mix_targets(&bad, &q, &mixtures, &clock).is_err());
        }
        clock.advance(batch).unwrap();
        let none =
            Mixtures { partners: Tensor::new(&Device::Cpu, [12], &partners).unwrap(), shares: tensor(&[2], &[1.0; 2]) };
        assert!(mix_images([&parts[0], &parts[1], &parts[2]], &none, &clock).is_err(), "there is no third step");
    }
}
