//! How well predicted losses rank true ones: R = (1/P) Σ_{i<P} max(0, ξ − σ_i (p_i − p_j)), j = 2P − 1 − i, P = ⌊N/2⌋,
//! σ_i = +1 if l_i > l_j, else −1 (also where they are equal); 0 without a pair. An odd last element is in no pair.
//!
//! Backward, where the term is above 0: dp_i = −σ_i dR / P and dp_j = σ_i dR / P. The losses l have no gradient.

use super::{Arg, Case};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Real, Tensor};
use crate::{Result, on_real};

/// The ranking loss of predicted against true losses, both (N), with margin ξ: a scalar.
pub fn ranking_loss(predicted: &Tensor, losses: &Tensor, margin: f32) -> Result<Tensor> {
    let op = "ranking_loss";
    let &[n] = predicted.dims() else { return Err(predicted.shape().refuse(op, "(N)")) };
    if losses.dims() != [n] {
        return Err(losses.shape().refuse(op, format!("({n}), a loss for every prediction")));
    }
    let mut y = predicted.stale_like([])?;
    match predicted.device() {
        Device::Cpu => on_real!(op, predicted, T => {
            let (p, l) = (predicted.host::<T>(op)?, losses.host::<T>(op)?);
            y.host_mut::<T>(op)?[0] = cpu::loss(p, l, margin.into());
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (p, l) = (predicted.buf(op)?, losses.buf(op)?);
            launch::ranking_loss_fwd_f32(cuda, Launch::grid(1, 1, 1, 256), y.buf_mut(op)?, p, l, n as i32, margin)?;
        }
    }
    let (p, l) = (predicted.detach(), losses.detach());
    Ok(y.with_grad(op, &[predicted], move |dy, need| Ok(vec![need.then(0, || ranking_loss_bwd(dy, &p, &l, margin))?])))
}

fn ranking_loss_bwd(dy: &Tensor, p: &Tensor, l: &Tensor, margin: f32) -> Result<Tensor> {
    let (op, n) = ("ranking_loss_bwd", p.len());
    let mut dp = p.like()?;
    match p.device() {
        Device::Cpu => on_real!(op, p, T => {
            let (dy, p, l) = (dy.host::<T>(op)?, p.host::<T>(op)?, l.host::<T>(op)?);
            cpu::gradient(dp.host_mut::<T>(op)?, dy, p, l, margin.into());
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (dy, p, l) = (dy.buf(op)?, p.buf(op)?, l.buf(op)?);
            launch::ranking_loss_bwd_f32(cuda, Launch::elements(n), dp.buf_mut(op)?, dy, p, l, n as i32, margin)?;
        }
    }
    Ok(dp)
}

mod cpu {
    use super::Real;

    /// Every pair (i, j) with its σ and ξ − σ (p_i − p_j).
    fn pairs<T: Real>(p: &[T], l: &[T], margin: f64) -> impl Iterator<Item = (usize, usize, f64, f64)> {
        let pairs = p.len() / 2;
        (0..pairs).map(move |i| {
            let j = 2 * pairs - 1 - i;
            let sign = if l[i].f64() > l[j].f64() { 1.0 } else { -1.0 };
            (i, j, sign, margin - sign * (p[i].f64() - p[j].f64()))
        })
    }

    /// The loss;   p, l: (N)
    pub fn loss<T: Real>(p: &[T], l: &[T], margin: f64) -> T {
        // Not f64::max, which would swallow a NaN.
        let sum: f64 = pairs(p, l, margin).map(|(.., term)| if term < 0.0 { 0.0 } else { term }).sum();
        T::of(sum / (p.len() / 2).max(1) as f64)
    }

    /// The gradient of p for that of the loss, dy (1).
    pub fn gradient<T: Real>(dp: &mut [T], dy: &[T], p: &[T], l: &[T], margin: f64) {
        let each = dy[0].f64() / (p.len() / 2).max(1) as f64;
        dp.fill(T::of(0.0));
        for (i, j, sign, term) in pairs(p, l, margin) {
            let d = if term > 0.0 { sign * each } else { 0.0 };
            (dp[i], dp[j]) = (T::of(-d), T::of(d));
        }
    }
}

macro_rules! case {
    ($n:literal) => {
        Case {
            name: concat!("ranking_loss/", $n),
            inputs: &[Arg::Diff(&[$n], -2.0, 2.0), Arg::Fixed(&[$n], 0.0, 4.0)],
            run: |x| ranking_loss(&x[0], &x[1], 1.0),
            sum: $n,
            flops: 3 * $n,
            bytes: 2 * 4 * $n,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[case!(2), case!(33), case!(128), case!(601)];

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(p: &[f32], l: &[f32]) -> (f32, Vec<f32>) {
        let [p, l] = [p, l].map(|v| Tensor::new(&Device::Cpu, [v.len()], v).unwrap());
        let p = p.tracked();
        let y = ranking_loss(&p, &l, 1.0).unwrap();
        (y.to_vec::<f32>().unwrap()[0], y.grad(&[&p]).unwrap().of(&p).unwrap().to_vec().unwrap())
    }

    /// METHODS 6.10: pair (0, 3) gives .9, pair (1, 2) gives 1.5.
    #[test]
    fn the_worked_example_of_learning_loss() {
        let (r, d) = loss(&[0.2, 0.9, 0.4, 0.1], &[1.0, 0.5, 0.7, 0.3]);
        assert!((r - 1.2).abs() < 1e-6, "{r}");
        assert_eq!(d, [-0.5, 0.5, -0.5, 0.5]);
    }

    #[test]
    fn odd_single_and_equal() {
        // The third is in no pair, whatever it is.
        assert_eq!(loss(&[0.5, 0.0, 9.0], &[1.0, 0.0, 5.0]), (0.5, vec![-1.0, 1.0, 0.0]));
        assert_eq!(loss(&[3.0], &[1.0]), (0.0, vec![0.0]));
        // Equal losses: the first should be the smaller.
        assert_eq!(loss(&[0.0, 0.25], &[1.0, 1.0]).0, 0.75);
        assert!(loss(&[f32::NAN, 0.0], &[1.0, 0.0]).0.is_nan());
    }
}
