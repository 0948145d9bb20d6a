//! Softmax along the last axis, cross-entropy, and what is read off logits.   x: (N, C)
//!
//! softmax y = e^x / Σ e^x: dx = y ⊙ (dy − Σ y dy). log-softmax y = x − log Σ e^x: dx = dy − e^y Σ dy.
//! cross-entropy with labels l (N): L = mean_i −log softmax(x_i)_{l_i}: dx = dL (softmax(x) − onehot(l)) / N; with
//! targets t (N, C): L = mean_i −Σ_c t_ic log softmax(x_i)_c: dx_i = dL (softmax(x_i) Σ_c t_ic − t_i) / N.
//! All exponentials are of x − max x. A NaN in a row makes all its results NaN.

use super::{Arg, Case};
use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Buf, Dtype, Real, Tensor};
use crate::{Error, Result, on_real};

/// y = softmax(x) along the last axis.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let y = rows_to_rows("softmax", &[x], RowOp::Softmax)?;
    let saved = y.detach();
    Ok(y.with_grad("softmax", &[x], move |dy, need| {
        Ok(vec![need.then(0, || rows_to_rows("softmax", &[&saved, dy], RowOp::SoftmaxBwd))?])
    }))
}

/// y = log softmax(x) along the last axis.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let y = rows_to_rows("log_softmax", &[x], RowOp::LogSoftmax)?;
    let saved = y.detach();
    Ok(y.with_grad("log_softmax", &[x], move |dy, need| {
        Ok(vec![need.then(0, || rows_to_rows("log_softmax", &[&saved, dy], RowOp::LogSoftmaxBwd))?])
    }))
}

/// Mean cross-entropy of logits (N, C) with u32 labels (N): a scalar, NaN for an empty batch. A label that is no
/// class is an error on the CPU and makes the loss NaN on a device.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let [mean, _] = cross_entropy_each(logits, labels)?;
    Ok(mean)
}

/// As [`cross_entropy`], and beside the mean the loss of every row (N), which is not differentiable.
pub fn cross_entropy_each(logits: &Tensor, labels: &Tensor) -> Result<[Tensor; 2]> {
    let op = "cross_entropy";
    let (n, c) = logits.shape().rows(op)?;
    if labels.dims() != [n] {
        return Err(labels.shape().refuse(op, format!("({n}), a label for every row of the logits")));
    }
    let (mut losses, mut d) = (logits.stale_like([n])?, logits.like()?);
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let labels = labels.host::<u32>(op)?;
            check_labels(labels, c)?;
            cpu::cross_entropy(losses.host_mut::<T>(op)?, d.host_mut::<T>(op)?, logits.host::<T>(op)?, labels);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (y, x) = (losses.buf_mut(op)?, logits.buf(op)?);
            let l = Launch::warps(n, 256);
            launch::cross_entropy_f32(cuda, l, y, d.buf_mut(op)?, x, labels.buf(op)?, n as i32, c as i32)?;
        }
    }
    Ok([mean_with_grad(op, logits, &losses, d)?, losses])
}

/// Mean cross-entropy of logits (N, C) with target probabilities (N, C): a scalar. No gradient for the targets.
pub fn cross_entropy_soft(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let op = "cross_entropy_soft";
    let (n, c) = logits.shape().rows(op)?;
    if targets.shape() != logits.shape() {
        return Err(targets.shape().refuse(op, format!("{:?}, as the logits", logits.shape())));
    }
    let (mut losses, mut d) = (logits.stale_like([n])?, logits.like()?);
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let (x, t) = (logits.host::<T>(op)?, targets.host::<T>(op)?);
            cpu::cross_entropy_soft(losses.host_mut::<T>(op)?, d.host_mut::<T>(op)?, x, t);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (y, x, t) = (losses.buf_mut(op)?, logits.buf(op)?, targets.buf(op)?);
            let l = Launch::warps(n, 256);
            launch::cross_entropy_soft_f32(cuda, l, y, d.buf_mut(op)?, x, t, n as i32, c as i32)?;
        }
    }
    mean_with_grad(op, logits, &losses, d)
}

/// The class of the largest logit of each row: (N, C) → u32 (N). The lowest class at a tie; the first NaN if there
/// is one. Not differentiable.
pub fn argmax_rows(x: &Tensor) -> Result<Tensor> {
    let op = "argmax_rows";
    let (n, c) = some_classes(op, x)?;
    let mut y = Tensor::stale(x.device(), [n], Dtype::U32)?;
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let y = y.host_mut::<u32>(op)?;
            y.iter_mut().zip(x.host::<T>(op)?.chunks_exact(c)).for_each(|(y, x)| *y = cpu::argmax(x) as u32);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            launch::argmax_rows_f32(cuda, Launch::warps(n, 256), y.buf_mut(op)?, x.buf(op)?, n as i32, c as i32)?;
        }
    }
    Ok(y)
}

/// Adds the number of rows of `logits` (N, C) whose argmax is their label (u32, N) to `counter` (1). Stays on the
/// device.
pub fn count_correct(counter: &mut Buf<u32>, logits: &Tensor, labels: &Tensor) -> Result<()> {
    let op = "count_correct";
    let (n, c) = some_classes(op, logits)?;
    if labels.dims() != [n] {
        return Err(labels.shape().refuse(op, format!("({n}), a label for every row of the logits")));
    }
    if counter.len() != 1 {
        return Err(Error::Shape { op, want: "a counter of one word".into(), got: format!("({})", counter.len()) });
    }
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let rows = logits.host::<T>(op)?.chunks_exact(c).zip(labels.host::<u32>(op)?);
            counter.host_mut(op)?[0] += rows.filter(|(x, l)| cpu::argmax(x) == **l as usize).count() as u32;
            Ok(())
        }),
        Device::Cuda(cuda) => {
            let (l, x, labels) = (Launch::warps(n, 256), logits.buf(op)?, labels.buf(op)?);
            launch::count_correct_f32(cuda, l, counter, x, labels, n as i32, c as i32)
        }
    }
}

/// u_i = −log p_max of each row = log1p(Σ over the other classes of e^(x_ic − max)): (N, C) → (N). The order of
/// 1 − p_max with full resolution near certainty. Not differentiable.
pub fn least_confidence(logits: &Tensor) -> Result<Tensor> {
    let op = "least_confidence";
    let (n, c) = some_classes(op, logits)?;
    let mut y = logits.stale_like([n])?;
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let rows = logits.host::<T>(op)?.chunks_exact(c);
            y.host_mut::<T>(op)?.iter_mut().zip(rows).for_each(|(y, x)| *y = cpu::least_confidence(x));
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, x) = (Launch::warps(n, 256), y.buf_mut(op)?, logits.buf(op)?);
            launch::least_confidence_f32(cuda, l, y, x, n as i32, c as i32)?;
        }
    }
    Ok(y)
}

/// H_i = −Σ p_ic ln p_ic of each row, p = softmax(x): (N, C) → (N). Written with the classes that are not the largest only,
/// H = log1p(s) + Σ −d e^d / (1 + s) with d = x − max and s = Σ e^d, all terms of one sign: full resolution near
/// certainty, where the largest probability rounds to 1. Not differentiable.
pub fn entropy(logits: &Tensor) -> Result<Tensor> {
    let op = "entropy";
    let (n, c) = some_classes(op, logits)?;
    let mut y = logits.stale_like([n])?;
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let rows = logits.host::<T>(op)?.chunks_exact(c);
            y.host_mut::<T>(op)?.iter_mut().zip(rows).for_each(|(y, x)| *y = cpu::entropy(x));
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, x) = (Launch::warps(n, 256), y.buf_mut(op)?, logits.buf(op)?);
            launch::entropy_f32(cuda, l, y, x, n as i32, c as i32)?;
        }
    }
    Ok(y)
}

/// u_i = −log (p1 − p2) of each row, p1 ≥ p2 being the two largest of softmax(x): (N, C) → (N). As log1p(s) − log(1 − e^d)
/// with d = x2 − x1 and s = Σ over the classes but the largest of e^(x − x1), both of one sign: full resolution near
/// certainty and near a tie; +∞ at a tie, 0 for one class. Not differentiable.
pub fn margin(logits: &Tensor) -> Result<Tensor> {
    let op = "margin";
    let (n, c) = some_classes(op, logits)?;
    let mut y = logits.stale_like([n])?;
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let rows = logits.host::<T>(op)?.chunks_exact(c);
            y.host_mut::<T>(op)?.iter_mut().zip(rows).for_each(|(y, x)| *y = cpu::margin(x));
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, x) = (Launch::warps(n, 256), y.buf_mut(op)?, logits.buf(op)?);
            launch::margin_f32(cuda, l, y, x, n as i32, c as i32)?;
        }
    }
    Ok(y)
}

/// losses[clock.slot] = loss, without waiting for the device. A slot beyond the buffer is an error on the CPU and
/// ignored on a device.
pub fn write_loss(losses: &mut Buf<f32>, loss: &Tensor, clock: &Clock) -> Result<()> {
    let op = "write_loss";
    if loss.len() != 1 {
        return Err(loss.shape().refuse(op, "a scalar"));
    }
    match loss.device() {
        Device::Cpu => {
            let (value, slot, got) = (loss.host::<f32>(op)?[0], clock.host(Word::Slot)? as usize, losses.len());
            let place = losses.host_mut(op)?.get_mut(slot);
            let beyond = || Error::Shape { op, want: format!("more than {slot} losses"), got: format!("({got})") };
            *place.ok_or_else(beyond)? = value;
            Ok(())
        }
        Device::Cuda(cuda) => {
            let n = losses.len() as i32;
            launch::write_loss_f32(cuda, Launch::grid(1, 1, 1, 32), losses, loss.buf(op)?, &clock.words(), n)
        }
    }
}

fn some_classes(op: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match x.shape().rows(op)? {
        (_, 0) => Err(x.shape().refuse(op, "(N, C) with C above 0")),
        sizes => Ok(sizes),
    }
}

fn check_labels(labels: &[u32], c: usize) -> Result<()> {
    match labels.iter().position(|l| *l as usize >= c) {
        None => Ok(()),
        Some(i) => Err(Error::Data {
            path: "labels".into(),
            why: format!("label {} of example {i} of the batch is not among the {c} classes from 0", labels[i]),
        }),
    }
}

/// The mean of the row losses, with the gradient of their sum already known.
pub(super) fn mean_with_grad(op: &'static str, logits: &Tensor, losses: &Tensor, d: Tensor) -> Result<Tensor> {
    let n = losses.len();
    let mut y = losses.stale_like([])?;
    match losses.device() {
        Device::Cpu => on_real!(op, losses, T => {
            y.host_mut::<T>(op)?[0] = cpu::mean(losses.host::<T>(op)?);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            launch::mean_f32(cuda, Launch::grid(1, 1, 1, 256), y.buf_mut(op)?, losses.buf(op)?, n as i32)?;
        }
    }
    Ok(y.with_grad(op, &[logits], move |dy, need| Ok(vec![need.then(0, || mean_bwd(op, &d, dy, n))?])))
}

fn mean_bwd(op: &'static str, d: &Tensor, dy: &Tensor, rows: usize) -> Result<Tensor> {
    let (mut dx, n) = (d.like()?, d.len());
    match d.device() {
        Device::Cpu => on_real!(op, d, T => {
            cpu::mean_bwd(dx.host_mut::<T>(op)?, d.host::<T>(op)?, dy.host::<T>(op)?[0], rows);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, dx, d) = (Launch::elements(n), dx.buf_mut(op)?, d.buf(op)?);
            launch::mean_bwd_f32(cuda, l, dx, d, dy.buf(op)?, n as i32, rows as f32)?;
        }
    }
    Ok(dx)
}

#[derive(Clone, Copy)]
enum RowOp {
    Softmax,
    SoftmaxBwd,
    LogSoftmax,
    LogSoftmaxBwd,
}

/// One result row for every input row; the backward rules take (y, dy).
fn rows_to_rows(op: &'static str, inputs: &[&Tensor], how: RowOp) -> Result<Tensor> {
    let (x, last) = (inputs[0], inputs[inputs.len() - 1]);
    let (n, c) = x.shape().rows(op)?;
    let mut y = x.like()?;
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let (y, x, dy) = (y.host_mut::<T>(op)?, x.host::<T>(op)?, last.host::<T>(op)?);
            match how {
                RowOp::Softmax => cpu::rows(y, x, dy, c, |y, x, _| cpu::softmax(y, x)),
                RowOp::SoftmaxBwd => cpu::rows(y, x, dy, c, cpu::softmax_bwd),
                RowOp::LogSoftmax => cpu::rows(y, x, dy, c, |y, x, _| cpu::log_softmax(y, x)),
                RowOp::LogSoftmaxBwd => cpu::rows(y, x, dy, c, cpu::log_softmax_bwd),
            }
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, ni, ci) = (Launch::warps(n, 256), n as i32, c as i32);
            let (y, x, dy) = (y.buf_mut(op)?, x.buf(op)?, last.buf(op)?);
            match how {
                RowOp::Softmax => launch::softmax_fwd_f32(cuda, l, y, x, ni, ci)?,
                RowOp::SoftmaxBwd => launch::softmax_bwd_f32(cuda, l, y, x, dy, ni, ci)?,
                RowOp::LogSoftmax => launch::log_softmax_fwd_f32(cuda, l, y, x, ni, ci)?,
                RowOp::LogSoftmaxBwd => launch::log_softmax_bwd_f32(cuda, l, y, x, dy, ni, ci)?,
            }
        }
    }
    Ok(y)
}

pub(super) mod cpu {
    use super::Real;
    use crate::device::cpu as threads;

    /// y[i] = f(a[i], b[i]) by rows;   y, a, b: (N, C)
    pub fn rows<T: Real>(y: &mut [T], a: &[T], b: &[T], c: usize, f: impl Fn(&mut [T], &[T], &[T]) + Sync) {
        let c = c.max(1);
        threads::chunks(y, c, |at, y| {
            let inputs = a[at..].chunks_exact(c).zip(b[at..].chunks_exact(c));
            y.chunks_exact_mut(c).zip(inputs).for_each(|(y, (a, b))| f(y, a, b));
        });
    }

    /// The largest value (a NaN is left out) and Σ e^(x − largest).
    fn max_and_sum<T: Real>(x: &[T]) -> (f64, f64) {
        let top = x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(v.f64()));
        (top, x.iter().map(|v| (v.f64() - top).exp()).sum())
    }

    /// The probability of each class.
    pub fn softmax_of<T: Real>(x: &[T]) -> impl Fn(usize) -> f64 {
        let (top, sum) = max_and_sum(x);
        move |j| (x[j].f64() - top).exp() / sum
    }

    /// y = e^(x − max) / Σ
    pub fn softmax<T: Real>(y: &mut [T], x: &[T]) {
        let (top, sum) = max_and_sum(x);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = T::of((x.f64() - top).exp() / sum));
    }

    /// dx = y ⊙ (dy − Σ y dy)
    pub fn softmax_bwd<T: Real>(dx: &mut [T], y: &[T], dy: &[T]) {
        let sum: f64 = y.iter().zip(dy).map(|(y, dy)| y.f64() * dy.f64()).sum();
        for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = T::of(y.f64() * (dy.f64() - sum));
        }
    }

    /// y = x − max − log Σ
    pub fn log_softmax<T: Real>(y: &mut [T], x: &[T]) {
        let (top, sum) = max_and_sum(x);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = T::of(x.f64() - top - sum.ln()));
    }

    /// dx = dy − e^y Σ dy
    pub fn log_softmax_bwd<T: Real>(dx: &mut [T], y: &[T], dy: &[T]) {
        let sum: f64 = dy.iter().map(|v| v.f64()).sum();
        for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = T::of(dy.f64() - y.f64().exp() * sum);
        }
    }

    /// losses[i] = −log softmax(x[i])[labels[i]], d = softmax − onehot;   losses: (N), d, x: (N, C)
    pub fn cross_entropy<T: Real>(losses: &mut [T], d: &mut [T], x: &[T], labels: &[u32]) {
        let c = x.len() / labels.len().max(1);
        for (i, label) in labels.iter().enumerate() {
            let (x, d, label) = (&x[i * c..][..c], &mut d[i * c..][..c], *label as usize);
            let (top, sum) = max_and_sum(x);
            for (j, (d, x)) in d.iter_mut().zip(x).enumerate() {
                *d = T::of((x.f64() - top).exp() / sum - f64::from(u8::from(j == label)));
            }
            losses[i] = T::of(sum.ln() - (x[label].f64() - top));
        }
    }

    /// losses[i] = −Σ t log softmax(x[i]), d = softmax Σ t − t;   losses: (N), d, x, t: (N, C)
    pub fn cross_entropy_soft<T: Real>(losses: &mut [T], d: &mut [T], x: &[T], t: &[T]) {
        let c = x.len() / losses.len().max(1);
        for (i, loss) in losses.iter_mut().enumerate() {
            let (x, t, d) = (&x[i * c..][..c], &t[i * c..][..c], &mut d[i * c..][..c]);
            let (top, sum) = max_and_sum(x);
            let mass: f64 = t.iter().map(|t| t.f64()).sum();
            for ((d, x), t) in d.iter_mut().zip(x).zip(t) {
                *d = T::of((x.f64() - top).exp() / sum * mass - t.f64());
            }
            *loss = T::of(x.iter().zip(t).map(|(x, t)| -t.f64() * (x.f64() - top - sum.ln())).sum());
        }
    }

    /// Σ x / n, NaN for n = 0.
    pub fn mean<T: Real>(x: &[T]) -> T {
        T::of(x.iter().map(|v| v.f64()).sum::<f64>() / x.len() as f64)
    }

    /// dx = d · dy / rows
    pub fn mean_bwd<T: Real>(dx: &mut [T], d: &[T], dy: T, rows: usize) {
        let s = dy.f64() / rows as f64;
        dx.iter_mut().zip(d).for_each(|(dx, d)| *dx = T::of(d.f64() * s));
    }

    /// Index of the largest value, the lowest at a tie, the first NaN if there is one.
    pub fn argmax<T: Real>(x: &[T]) -> usize {
        let mut best = 0;
        for (j, v) in x.iter().enumerate() {
            if v.f64().is_nan() {
                return j;
            }
            if *v > x[best] {
                best = j;
            }
        }
        best
    }

    /// log1p(Σ over the others of e^(x − max))
    pub fn least_confidence<T: Real>(x: &[T]) -> T {
        let at = argmax(x);
        let top = x[at].f64();
        if top.is_nan() {
            return x[at];
        }
        let others = x.iter().enumerate().filter(|(j, _)| *j != at);
        T::of(others.map(|(_, v)| (v.f64() - top).exp()).sum::<f64>().ln_1p())
    }

    /// log1p(s) − log(1 − e^d), d being the second largest minus the largest.
    pub fn margin<T: Real>(x: &[T]) -> T {
        let at = argmax(x);
        let top = x[at].f64();
        if top.is_nan() {
            return x[at];
        }
        let (mut sum, mut second) = (0.0, f64::NEG_INFINITY);
        for (_, v) in x.iter().enumerate().filter(|(j, _)| *j != at) {
            let d = v.f64() - top;
            sum += d.exp();
            second = second.max(d);
        }
        // Each form where it does not cancel.
        let gap = if second > -0.7 { (-second.exp_m1()).ln() } else { (-second.exp()).ln_1p() };
        T::of(sum.ln_1p() - gap)
    }

    /// log1p(s) + Σ over the others of −d e^d / (1 + s), d = x − max, s = Σ e^d; a term of e^d = 0 is 0.
    pub fn entropy<T: Real>(x: &[T]) -> T {
        let at = argmax(x);
        let top = x[at].f64();
        if top.is_nan() {
            return x[at];
        }
        let (mut sum, mut spread) = (0.0, 0.0);
        for (_, v) in x.iter().enumerate().filter(|(j, _)| *j != at) {
            let d = v.f64() - top;
            let e = d.exp();
            sum += e;
            spread -= if e == 0.0 { 0.0 } else { d * e };
        }
        T::of(sum.ln_1p() + spread / (1.0 + sum))
    }
}

macro_rules! case {
    ($name:literal, [$n:literal, $c:literal], $f:expr $(, $extra:expr)*) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$n, $c], -3.0, 3.0) $(, $extra)*],
            run: $f,
            sum: $c + $n,
            flops: 4 * $n * $c,
            bytes: 2 * $n * $c * 4,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("softmax/1x1", [1, 1], |x| softmax(&x[0])),
    case!("softmax/7x33", [7, 33], |x| softmax(&x[0])),
    case!("softmax/3x31", [3, 31], |x| softmax(&x[0])),
    case!("softmax/0x10", [0, 10], |x| softmax(&x[0])),
    case!("log_softmax/7x33", [7, 33], |x| log_softmax(&x[0])),
    case!("log_softmax/9x10", [9, 10], |x| log_softmax(&x[0])),
    case!("log_softmax/1x257", [1, 257], |x| log_softmax(&x[0])),
    case!("cross_entropy/1x2", [1, 2], |x| cross_entropy(&x[0], &x[1]), Arg::Ids(&[1], 2)),
    case!("cross_entropy/33x10", [33, 10], |x| cross_entropy(&x[0], &x[1]), Arg::Ids(&[33], 10)),
    case!("cross_entropy/5x43", [5, 43], |x| cross_entropy(&x[0], &x[1]), Arg::Ids(&[5], 43)),
    case!("cross_entropy_soft/31x10", [31, 10], |x| cross_entropy_soft(&x[0], &x[1]), Arg::Fixed(&[31, 10], 0.0, 0.2)),
    case!("cross_entropy_soft/5x33", [5, 33], |x| cross_entropy_soft(&x[0], &x[1]), Arg::Fixed(&[5, 33], 0.0, 0.06)),
];

/// Real sizes, too large for a gradient check: device agreement and benchmarks.
pub(super) const LARGE: &[Case] = &[
    case!("softmax/1024x10", [1024, 10], |x| softmax(&x[0])),
    case!("softmax/64x1000", [64, 1000], |x| softmax(&x[0])),
    case!("log_softmax/257x200", [257, 200], |x| log_softmax(&x[0])),
    case!("cross_entropy/128x10", [128, 10], |x| cross_entropy(&x[0], &x[1]), Arg::Ids(&[128], 10)),
    case!("cross_entropy/300x200", [300, 200], |x| cross_entropy(&x[0], &x[1]), Arg::Ids(&[300], 200)),
    case!(
        "cross_entropy_soft/128x10",
        [128, 10],
        |x| cross_entropy_soft(&x[0], &x[1]),
        Arg::Fixed(&[128, 10], 0.0, 0.2)
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(&Device::Cpu, shape, v).unwrap()
    }

    #[test]
    fn hard_rows() {
        let nan = f32::NAN;
        let x = tensor(&[4, 3], &[1e30, 1e30, -1e30, 500.0, 500.0, 500.0, 0.0, nan, 1.0, -1e4, 1e4, 0.0]);
        let y = softmax(&x).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(y[..3], [0.5, 0.5, 0.0]);
        assert_eq!(y[3..6], [1.0 / 3.0; 3]);
        assert!(y[6..9].iter().all(|v| v.is_nan()));
        assert_eq!(y[9..], [0.0, 1.0, 0.0]);
        let labels = Tensor::new(&Device::Cpu, [4], &[0u32, 1, 0, 1]).unwrap();
        assert!(cross_entropy(&x, &labels).unwrap().to_vec::<f32>().unwrap()[0].is_nan());
        assert_eq!(argmax_rows(&x).unwrap().to_vec::<u32>().unwrap(), [0, 0, 1, 1]);
    }

    #[test]
    fn least_confidence_is_minus_log_of_the_largest_probability() {
        // E1 of the method's specification: 1 - p_max = .5 .6 .1 .66 .51 .45 puts rows 3 and 1 first.
        let top = [0.5f32, 0.4, 0.9, 0.34, 0.49, 0.55];
        let logits: Vec<f32> =
            top.iter().flat_map(|p| [p.ln(), ((1.0 - p) / 2.0).ln(), ((1.0 - p) / 2.0).ln()]).collect();
        let u = least_confidence(&tensor(&[6, 3], &logits)).unwrap().to_vec::<f32>().unwrap();
        for (u, p) in u.iter().zip(top) {
            assert!((u + p.ln()).abs() < 1e-6, "{u} {p}");
        }
        // Certain rows keep their order although their probabilities round to 1; NaN is reported, even alone.
        let sure = least_confidence(&tensor(&[2, 2], &[30.0, 0.0, 40.0, 0.0])).unwrap().to_vec::<f32>().unwrap();
        assert!(sure[0] > sure[1] && sure[1] > 0.0, "{sure:?}");
        assert!(least_confidence(&tensor(&[1, 1], &[f32::NAN])).unwrap().to_vec::<f32>().unwrap()[0].is_nan());
    }

    #[test]
    fn entropy_is_that_of_the_probabilities_and_does_not_saturate() {
        // METHODS 6.0, E1.
        let p = [[0.5f32, 0.3, 0.2], [0.4, 0.35, 0.25], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33], [0.49, 0.49, 0.02]];
        let logits: Vec<f32> = p.as_flattened().iter().map(|p| p.ln() + 3.0).collect();
        let h = entropy(&tensor(&[5, 3], &logits)).unwrap().to_vec::<f32>().unwrap();
        for (h, want) in h.iter().zip([1.029_653, 1.080_528, 0.394_398, 1.098_513, 0.777_323]) {
            assert!((h - want).abs() < 1e-6, "{h} {want}");
        }
        // One other class at distance d: (1 + d) e^-d to first order, of which nothing is left of 1 - p log p.
        let sure = entropy(&tensor(&[3, 2], &[30.0, 0.0, 0.0, 40.0, 90.0, 0.0])).unwrap().to_vec::<f32>().unwrap();
        for (h, d) in sure.iter().zip([30.0f64, 40.0, 90.0]) {
            let want = (1.0 + d) * (-d).exp();
            assert!((f64::from(*h) / want - 1.0).abs() < 1e-5, "{h} {want}");
        }
        let inf = f32::INFINITY;
        let odd = entropy(&tensor(&[4, 2], &[0.0, -inf, -inf, -inf, inf, 0.0, 0.0, f32::NAN])).unwrap();
        let odd = odd.to_vec::<f32>().unwrap();
        assert!(odd[0] == 0.0 && odd[1].is_nan() && odd[3].is_nan(), "{odd:?}");
        assert_eq!(entropy(&tensor(&[1, 1], &[5.0])).unwrap().to_vec::<f32>().unwrap(), [0.0]);
    }

    #[test]
    fn margin_is_that_of_the_probabilities_and_does_not_saturate() {
        // METHODS 6.0, E1.
        let p = [[0.5f32, 0.3, 0.2], [0.4, 0.35, 0.25], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33], [0.55, 0.225, 0.225]];
        let logits: Vec<f32> = p.as_flattened().iter().map(|p| p.ln() + 3.0).collect();
        let m = margin(&tensor(&[5, 3], &logits)).unwrap().to_vec::<f32>().unwrap();
        for (m, want) in m.iter().zip([0.2f32, 0.05, 0.85, 0.01, 0.325]) {
            assert!(((-m).exp() - want).abs() < 1e-6, "{m} {want}");
        }
        // Sure rows to first order 2 e^-d, near ties - log (d / 2), a tie infinitely uncertain.
        let x = tensor(&[6, 2], &[30.0, 0.0, 0.0, 60.0, 1e-6, 0.0, 0.0, 1e-12, 7.0, 7.0, f32::NAN, 0.0]);
        let m = margin(&x).unwrap().to_vec::<f32>().unwrap();
        let want = [2.0 * (-30.0f64).exp(), 2.0 * (-60.0f64).exp(), -(0.5e-6f64).ln(), -(0.5e-12f64).ln()];
        for (m, want) in m.iter().zip(want) {
            assert!((f64::from(*m) / want - 1.0).abs() < 1e-5, "{m} {want}");
        }
        assert!(m[4] == f32::INFINITY && m[5].is_nan());
        assert_eq!(margin(&tensor(&[1, 1], &[5.0])).unwrap().to_vec::<f32>().unwrap(), [0.0]);
    }

    #[test]
    fn labels_are_checked_and_correct_rows_counted() {
        let x = tensor(&[3, 2], &[1.0, 2.0, 5.0, 5.0, 3.0, 1.0]);
        let labels = |l: &[u32]| Tensor::new(&Device::Cpu, [l.len()], l).unwrap();
        let e = cross_entropy(&x, &labels(&[0, 2, 1])).unwrap_err().to_string();
        assert!(e.contains("label 2 of example 1") && e.contains("2 classes"), "{e}");
        assert!(cross_entropy(&x, &labels(&[0, 1])).is_err());
        let mut counter = Buf::from_host(&Device::Cpu, &[10u32]).unwrap();
        count_correct(&mut counter, &x, &labels(&[1, 0, 1])).unwrap();
        assert_eq!(counter.to_host().unwrap(), [12]);
        let empty = cross_entropy(&tensor(&[0, 3], &[]), &labels(&[])).unwrap();
        assert!(empty.to_vec::<f32>().unwrap()[0].is_nan());
    }

    #[test]
    fn losses_land_in_the_slot_of_the_clock() {
        let clock = Clock::new(&Device::Cpu).unwrap();
        clock.advance(4).unwrap();
        let mut losses = Buf::zeros(&Device::Cpu, 2).unwrap();
        write_loss(&mut losses, &tensor(&[], &[2.5]), &clock).unwrap();
        assert_eq!(losses.to_host().unwrap(), [0.0, 2.5]);
        clock.advance(4).unwrap();
        assert!(write_loss(&mut losses, &tensor(&[], &[2.5]), &clock).is_err());
    }
}
