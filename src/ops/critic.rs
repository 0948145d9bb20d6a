//! What WAAL needs of a critic g = σ(w₂·(k ∘ relu(W₁z + b₁)) + b₂) with dropout mask k: its score and the length of its
//! slope ∇_z g, points between two batches, and the query's score.
//!
//! The slope is σ′(s)·t, t = W₁ᵀ(w₂ ∘ k ∘ 1[h > 0]): an expression of first order, so that one ordinary backward pass gives
//! the gradient of a penalty on its length. gate v_ij = w_j where h_ij > 0, else 0: dw_j = Σ_i dv_ij 1[h_ij > 0].
//! sigmoid_slope n = y (1 − y) q: dy = dn (1 − 2y) q, dq = dn y (1 − y). A slope of zero, where dropout removes every active
//! unit, has no gradient (see `row_norms`).

use std::rc::Rc;

use super::elementwise::{cpu as pointwise, relu_bwd};
use super::{Arg, Case, dropout, linear, matmul_nn, relu, row_norms, sigmoid, sum_rows};
use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::rng::{Purpose, Rng};
use crate::tensor::{Real, Tensor};
use crate::{Error, Result, on_real};

/// log p is never below this, the logarithm of the least f32 (METHODS 0.3).
const FLOOR: f32 = -103.0;

/// The critic's scores (N, 1) and the lengths of its slopes (N) at z (N, D), given W₁ (H, D), b₁ (H), w₂ (1, H) and b₂ (1).
/// `drop` applies its dropout to (N, H): twice, with one mask.
pub fn score_and_slope(
    z: &Tensor,
    [w1, b1, w2, b2]: [&Tensor; 4],
    drop: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<[Tensor; 2]> {
    let h = relu(&linear(z, w1, Some(b1))?)?;
    let y = sigmoid(&linear(&drop(&h)?, w2, Some(b2))?)?;
    let v = drop(&gate(&w2.reshape([w2.len()])?, &h)?)?;
    let n = sigmoid_slope(&y.reshape([y.len()])?, &row_norms(&matmul_nn(&v, w1)?)?)?;
    Ok([y, n])
}

/// v_ij = w_j where h_ij > 0, else 0: w (H), h (N, H) → (N, H). No gradient for h.
pub fn gate(w: &Tensor, h: &Tensor) -> Result<Tensor> {
    let op = "gate";
    let (m, c) = h.shape().rows(op)?;
    if w.dims() != [c] {
        return Err(w.shape().refuse(op, format!("({c})")));
    }
    let mut v = h.like()?;
    match h.device() {
        Device::Cpu => on_real!(op, h, T => {
            cpu::gate(v.host_mut::<T>(op)?, w.host::<T>(op)?, h.host::<T>(op)?);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, v, w, h) = (Launch::elements(m * c), v.buf_mut(op)?, w.buf(op)?, h.buf(op)?);
            launch::gate_fwd_f32(cuda, l, v, w, h, (m * c) as i32, c as i32)?;
        }
    }
    let h = h.detach();
    Ok(v.with_grad(op, &[w], move |dv, need| Ok(vec![need.then(0, || sum_rows(&relu_bwd(dv, &h)?))?])))
}

/// n = y (1 − y) q, element by element: σ′ from σ, times q.
pub fn sigmoid_slope(y: &Tensor, q: &Tensor) -> Result<Tensor> {
    let op = "sigmoid_slope";
    if y.shape() != q.shape() {
        return Err(q.shape().refuse(op, format!("{:?}, as the other input", y.shape())));
    }
    let (mut n, len) = (q.like()?, q.len());
    match y.device() {
        Device::Cpu => on_real!(op, y, T => {
            let (n, y, q) = (n.host_mut::<T>(op)?, y.host::<T>(op)?, q.host::<T>(op)?);
            pointwise::zip(n, y, q, |y, q| y * (1.0 - y) * q);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, n, y, q) = (Launch::elements(len), n.buf_mut(op)?, y.buf(op)?, q.buf(op)?);
            launch::sigmoid_slope_fwd_f32(cuda, l, n, y, q, len as i32)?;
        }
    }
    let (sy, sq) = (y.detach(), q.detach());
    Ok(n.with_grad(op, &[y, q], move |dn, need| {
        let [dy, dq] = sigmoid_slope_bwd(dn, &sy, &sq)?;
        Ok(vec![need.then(0, || Ok(dy))?, need.then(1, || Ok(dq))?])
    }))
}

fn sigmoid_slope_bwd(dn: &Tensor, y: &Tensor, q: &Tensor) -> Result<[Tensor; 2]> {
    let op = "sigmoid_slope_bwd";
    let (mut dy, mut dq, len) = (y.like()?, q.like()?, y.len());
    match y.device() {
        Device::Cpu => on_real!(op, y, T => {
            let (dn, y, q) = (dn.host::<T>(op)?, y.host::<T>(op)?, q.host::<T>(op)?);
            cpu::sigmoid_slope_bwd(dy.host_mut::<T>(op)?, dq.host_mut::<T>(op)?, dn, y, q);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, dy, dq) = (Launch::elements(len), dy.buf_mut(op)?, dq.buf_mut(op)?);
            launch::sigmoid_slope_bwd_f32(cuda, l, dy, dq, dn.buf(op)?, y.buf(op)?, q.buf(op)?, len as i32)?;
        }
    }
    Ok([dy, dq])
}

/// Where a critic's slope is looked at, for two batches a and b (N, D): (3N, D), the rows τ_i a_i + (1 − τ_i) b_i, then b,
/// then a. τ_i in [0, 1) is word i of the stream `rng` at the step of the clock. Not differentiable.
pub fn between(a: &Tensor, b: &Tensor, rng: Rng, clock: &Clock) -> Result<Tensor> {
    let op = "between";
    let (n, d) = a.shape().rows(op)?;
    if a.shape() != b.shape() {
        return Err(b.shape().refuse(op, format!("{:?}, as the other input", a.shape())));
    }
    let mut y = a.stale_like([3 * n, d])?;
    match a.device() {
        Device::Cpu => {
            let rng = rng.with_b(clock.host(Word::Step)?);
            on_real!(op, a, T => {
                cpu::between(y.host_mut::<T>(op)?, a.host::<T>(op)?, b.host::<T>(op)?, d, rng);
                Ok(())
            })?;
        }
        Device::Cuda(cuda) => {
            let (l, y, [lo, hi, s, round]) = (Launch::elements(n * d), y.buf_mut(op)?, rng.words());
            let (a, b, words) = (a.buf(op)?, b.buf(op)?, &clock.words());
            launch::between_f32(cuda, l, y, a, b, words, n as i32, d as i32, lo, hi, s, round)?;
        }
    }
    Ok(y)
}

/// ½‖log p_i‖₂ + ½‖log p_i‖₁ − weight·g_i of each row, p = softmax(logits), log p not below −103: logits (N, C), g of N
/// elements → (N). Smallest for the most uniform p. Not differentiable.
pub fn uniform_scores(logits: &Tensor, g: &Tensor, weight: f32) -> Result<Tensor> {
    let op = "uniform_scores";
    let (n, c) = logits.shape().rows(op)?;
    if c == 0 {
        return Err(logits.shape().refuse(op, "(N, C) with C above 0"));
    }
    if g.len() != n {
        return Err(Error::Shape { op, want: format!("{n} verdicts"), got: format!("{:?}", g.shape()) });
    }
    let mut y = logits.stale_like([n])?;
    match logits.device() {
        Device::Cpu => on_real!(op, logits, T => {
            let (x, g) = (logits.host::<T>(op)?, g.host::<T>(op)?);
            cpu::uniform_scores(y.host_mut::<T>(op)?, x, g, c, weight.into());
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, x, g) = (Launch::warps(n, 256), y.buf_mut(op)?, logits.buf(op)?, g.buf(op)?);
            launch::uniform_scores_f32(cuda, l, y, x, g, n as i32, c as i32, weight, FLOOR)?;
        }
    }
    Ok(y)
}

mod cpu {
    use super::{FLOOR, Real, Rng};
    use crate::device::cpu as threads;

    /// v[i][j] = w[j] where h[i][j] > 0;   v, h: (N, H), w: (H)
    pub fn gate<T: Real>(v: &mut [T], w: &[T], h: &[T]) {
        let c = w.len().max(1);
        threads::chunks(v, c, |at, v| {
            for (v, h) in v.chunks_exact_mut(c).zip(h[at..].chunks_exact(c)) {
                for ((v, h), w) in v.iter_mut().zip(h).zip(w) {
                    *v = if h.f64() > 0.0 { *w } else { T::default() };
                }
            }
        });
    }

    /// dy = dn (1 − 2y) q, dq = dn y (1 − y)
    pub fn sigmoid_slope_bwd<T: Real>(dy: &mut [T], dq: &mut [T], dn: &[T], y: &[T], q: &[T]) {
        for ((dy, dq), ((dn, y), q)) in dy.iter_mut().zip(dq).zip(dn.iter().zip(y).zip(q)) {
            let (dn, y, q) = (dn.f64(), y.f64(), q.f64());
            (*dy, *dq) = (T::of(dn * (1.0 - 2.0 * y) * q), T::of(dn * y * (1.0 - y)));
        }
    }

    /// τ a + (1 − τ) b, then b, then a;   y: (3N, D), a, b: (N, D)
    pub fn between<T: Real>(y: &mut [T], a: &[T], b: &[T], d: usize, rng: Rng) {
        let (mixed, ends) = y.split_at_mut(a.len());
        let d = d.max(1);
        for (i, mixed) in mixed.chunks_exact_mut(d).enumerate() {
            let tau = f64::from(rng.uniform(i as u64));
            for (e, m) in (i * d..).zip(mixed) {
                *m = T::of(tau * a[e].f64() + (1.0 - tau) * b[e].f64());
            }
        }
        ends[..b.len()].copy_from_slice(b);
        ends[b.len()..].copy_from_slice(a);
    }

    /// ½‖log p‖₂ + ½‖log p‖₁ − weight·g;   y, g: (N), x: (N, C)
    pub fn uniform_scores<T: Real>(y: &mut [T], x: &[T], g: &[T], c: usize, weight: f64) {
        threads::chunks(y, 1, |at, y| {
            for ((y, x), g) in y.iter_mut().zip(x[at * c..].chunks_exact(c)).zip(&g[at..]) {
                let top = x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(v.f64()));
                let log = x.iter().map(|v| (v.f64() - top).exp()).sum::<f64>().ln();
                // Not f64::max, which would swallow a NaN.
                let floor = |v: f64| if v < f64::from(FLOOR) { f64::from(FLOOR) } else { v };
                let each = x.iter().map(|v| floor(v.f64() - top - log));
                let (squares, sizes) = each.fold((0.0, 0.0), |(s, a), v| (s + v * v, a + v.abs()));
                *y = T::of(0.5 * squares.sqrt() + 0.5 * sizes - weight * g.f64());
            }
        });
    }
}

/// n of a critic with dropout, given z, W₁, b₁, w₂ and b₂.
fn slopes(x: &[Tensor]) -> Result<Tensor> {
    let clock = Rc::new(Clock::new(x[0].device())?);
    let [_, n] = score_and_slope(&x[0], [&x[1], &x[2], &x[3], &x[4]], |h| {
        dropout(h, 0.5, Rng::new(7).at(Purpose::Critic, 1, 0).lane(3), &clock)
    })?;
    Ok(n)
}

macro_rules! gate_case {
    ($n:literal, $h:literal) => {
        Case {
            name: concat!("gate/", $n, "x", $h),
            inputs: &[Arg::Diff(&[$h], -2.0, 2.0), Arg::Fixed(&[$n, $h], -1.0, 1.0)],
            run: |x| gate(&x[0], &x[1]),
            sum: $n,
            flops: $n * $h,
            bytes: 4 * (2 * $n * $h + $h),
        }
    };
}

macro_rules! sigmoid_slope_case {
    ($n:literal) => {
        Case {
            name: concat!("sigmoid_slope/", $n),
            inputs: &[Arg::Diff(&[$n], 0.0, 1.0), Arg::Diff(&[$n], 0.0, 4.0)],
            run: |x| sigmoid_slope(&x[0], &x[1]),
            sum: 1,
            flops: 3 * $n,
            bytes: 4 * 3 * $n,
        }
    };
}

macro_rules! slopes_case {
    ($n:literal, $d:literal, $h:literal, $w:literal) => {
        Case {
            name: concat!("critic_slopes/", $n, "x", $d, "x", $h),
            inputs: &[
                Arg::Diff(&[$n, $d], -1.0, 2.0),
                Arg::Diff(&[$h, $d], -$w, $w),
                Arg::Diff(&[$h], -$w, $w),
                Arg::Diff(&[1, $h], -1.0, 1.0),
                Arg::Diff(&[1], -1.0, 1.0),
            ],
            run: slopes,
            sum: if $n > $d { $n } else { $d },
            flops: 4 * $n * $d * $h,
            bytes: 4 * ($n * $d + $h * $d + 2 * $h + $n),
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    gate_case!(1, 3),
    gate_case!(33, 50),
    gate_case!(9, 31),
    sigmoid_slope_case!(1),
    sigmoid_slope_case!(300),
    slopes_case!(9, 7, 5, 0.5),
    slopes_case!(33, 40, 50, 0.2),
];

/// Real sizes, for device agreement and benchmarks: the hidden units and slopes of a step of LeNet.
pub(super) const LARGE: &[Case] = &[gate_case!(384, 50), sigmoid_slope_case!(768), slopes_case!(384, 320, 50, 0.06)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{mse, mul};

    const SIZES: [usize; 3] = [11, 7, 5];

    fn noise(shape: &[usize], lane: u32) -> Tensor {
        let r = Rng::new(3).lane(lane);
        let n = shape.iter().product::<usize>() as u64;
        Tensor::new(&Device::Cpu, shape, &(0..n).map(|e| f64::from(2.0 * r.uniform(e) - 1.0)).collect::<Vec<_>>())
            .unwrap()
    }

    /// z, then W₁, b₁, w₂, b₂, tracked.
    fn critic() -> (Tensor, [Tensor; 4]) {
        let [n, d, h] = SIZES;
        let w = [noise(&[h, d], 1), noise(&[h], 2), noise(&[1, h], 3), noise(&[1], 4)];
        (noise(&[n, d], 0), w.map(|t| t.tracked()))
    }

    /// Mean of (n − 1)², and the gradients of W₁, b₁, w₂, b₂.
    fn penalty(z: &Tensor, w: &[Tensor; 4], mask: &Tensor) -> (f64, [Vec<f64>; 4]) {
        let [_, n] = score_and_slope(z, w.each_ref(), |h| mul(h, mask)).unwrap();
        let gp = mse(&n, &Tensor::new(&Device::Cpu, [n.len()], &vec![1.0f64; n.len()]).unwrap()).unwrap();
        let grads = gp.grad(&w.each_ref()).unwrap();
        (gp.to_f64().unwrap()[0], w.each_ref().map(|w| grads.of(w).unwrap().to_f64().unwrap()))
    }

    /// METHODS 6.15: the derivatives written out by hand. Row 4 keeps no unit, so that its slope is 0.
    #[test]
    fn one_backward_pass_gives_the_penalty_s_gradient() {
        let ([n, d, h], (z, w)) = (SIZES, critic());
        let mut mask: Vec<f64> = (0..n * h).map(|e| if e * 7 % 3 > 0 { 2.0 } else { 0.0 }).collect();
        mask[4 * h..5 * h].fill(0.0);
        let (gp, got) = penalty(&z, &w, &Tensor::new(&Device::Cpu, [n, h], &mask).unwrap());
        let [w1, b1, w2, b2] = w.each_ref().map(|t| t.to_f64().unwrap());
        let z = z.to_f64().unwrap();
        let mut want = [vec![0.0; h * d], vec![0.0; h], vec![0.0; h], vec![0.0; 1]];
        let mut mean = 0.0;
        for (x, m) in z.chunks_exact(d).zip(mask.chunks_exact(h)) {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let pre: Vec<f64> = (0..h).map(|i| dot(&w1[i * d..][..d], x) + b1[i]).collect();
            let open: Vec<f64> = (0..h).map(|i| if pre[i] > 0.0 { m[i] } else { 0.0 }).collect();
            let v: Vec<f64> = (0..h).map(|i| w2[i] * open[i]).collect();
            let y = 1.0 / (1.0 + (-dot(&v, &pre) - b2[0]).exp());
            let (first, second) = (y * (1.0 - y), y * (1.0 - y) * (1.0 - 2.0 * y));
            let t: Vec<f64> = (0..d).map(|j| (0..h).map(|i| w1[i * d + j] * v[i]).sum()).collect();
            let q = dot(&t, &t).sqrt();
            let along = (first * q - 1.0) / n as f64;
            mean += along * along * n as f64;
            if q == 0.0 {
                continue;
            }
            for i in 0..h {
                for j in 0..d {
                    want[0][i * d + j] += 2.0 * along * v[i] * (first * t[j] / q + second * q * x[j]);
                }
                want[1][i] += 2.0 * along * second * q * v[i];
                let row = dot(&w1[i * d..][..d], &t);
                want[2][i] += 2.0 * along * open[i] * (first * row / q + second * q * pre[i]);
            }
            want[3][0] += 2.0 * along * second * q;
        }
        assert!((gp - mean).abs() < 1e-12, "{gp} {mean}");
        for (got, want) in got.iter().zip(&want) {
            assert!(want.iter().any(|w| w.abs() > 1e-3));
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?} {want:?}");
        }
    }

    /// Without an active unit the score is constant: slope 0, penalty 1, and a gradient of 0 that is a number.
    #[test]
    fn a_slope_of_zero_has_no_gradient() {
        let ([n, _, h], (z, w)) = (SIZES, critic());
        let (gp, grads) = penalty(&z, &w, &Tensor::new(&Device::Cpu, [n, h], &vec![0.0f64; n * h]).unwrap());
        assert!(gp == 1.0 && grads.iter().flatten().all(|g| *g == 0.0), "{gp} {grads:?}");
        // A unit that is exactly 0 is not active.
        let zeros = Tensor::new(&Device::Cpu, [1, 2], &[0.0f32, 1.0]).unwrap();
        let w = Tensor::new(&Device::Cpu, [2], &[3.0f32, 4.0]).unwrap();
        assert_eq!(gate(&w, &zeros).unwrap().to_vec::<f32>().unwrap(), [0.0, 4.0]);
    }

    #[test]
    fn points_between_two_batches() {
        let (d, rng) = (Device::Cpu, Rng::new(5).at(Purpose::Critic, 2, 0).lane(9));
        let clock = Clock::new(&d).unwrap();
        let of = |v: f32| Tensor::new(&d, [40, 3], &(0..120).map(|e| v * (e + 1) as f32).collect::<Vec<_>>()).unwrap();
        let (a, b) = (of(1.0), of(-1.0));
        let y = between(&a, &b, rng, &clock).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(y[120..240], b.to_vec::<f32>().unwrap());
        assert_eq!(y[240..], a.to_vec::<f32>().unwrap());
        for (e, v) in y[..120].iter().enumerate() {
            let tau = rng.uniform(e as u64 / 3);
            assert!((v / (e + 1) as f32 - (2.0 * tau - 1.0)).abs() < 1e-6, "{e}: {v}");
        }
        clock.advance(40).unwrap();
        let next = between(&a, &b, rng, &clock).unwrap().to_vec::<f32>().unwrap();
        assert!(next[..120].iter().zip(&y[..120]).all(|(n, y)| n != y), "another step, other points");
        assert!(between(&a, &of(1.0).reshape([3, 40]).unwrap(), rng, &clock).is_err());
    }

    #[test]
    fn scores_at_the_floor_and_at_nan() {
        let rows = [0.0f32, -1e6, 0.0, 0.0, f32::NAN, 0.0, 0.0, f32::NEG_INFINITY, f32::INFINITY, 0.0];
        let x = Tensor::new(&Device::Cpu, [5, 2], &rows).unwrap();
        let g = Tensor::new(&Device::Cpu, [5, 1], &[0.0f32, 0.5, 0.5, 0.0, 0.0]).unwrap();
        let y = uniform_scores(&x, &g, 10.0).unwrap().to_vec::<f32>().unwrap();
        let two = 2f32.ln() * (0.5 * 2f32.sqrt() + 1.0) - 5.0;
        assert!(y[0] == 103.0 && y[3] == 103.0 && (y[1] - two).abs() < 1e-6 && y[2].is_nan() && y[4].is_nan(), "{y:?}");
        assert!(uniform_scores(&x, &g.reshape([5]).unwrap(), 1.0).is_ok());
        let four = Tensor::new(&Device::Cpu, [4], &[0.0f32; 4]).unwrap();
        assert!(uniform_scores(&x, &four, 1.0).is_err());
    }
}
