//! Lengths of rows and rows of length one: n_i = ‖x_i‖ = √Σ_j x_ij², y_i = x_i / ‖x_i‖ for x (M, C).
//!
//! Backward: dx_i = dn_i·x_i / n_i, and dx_i = (dy_i − y_i (y_i · dy_i)) / n_i. A row of zeros has length 0, is its own
//! normalised row, and has no gradient.
//!
//! **Canonical order.** Selections compare normalised rows, so all devices give the same bits: the squares, exact in f64,
//! are added in 32 sums, one for each column modulo 32, and those pairwise, 16 apart, then 8, 4, 2, 1.

use super::{Arg, Case};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Real, Tensor};
use crate::{Result, on_real};

/// ‖x_i‖ for every row: (…, C) → (M), M being the product of the outer sizes.
pub fn row_norms(x: &Tensor) -> Result<Tensor> {
    let op = "row_norms";
    let (m, c) = x.shape().rows(op)?;
    let mut y = x.stale_like([m])?;
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            cpu::norms(y.host_mut::<T>(op)?, x.host::<T>(op)?, c);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, x) = (Launch::warps(m, 256), y.buf_mut(op)?, x.buf(op)?);
            launch::row_norms_fwd_f32(cuda, l, y, x, m as i32, c as i32)?;
        }
    }
    let (sx, norms) = (x.detach(), y.detach());
    Ok(y.with_grad(op, &[x], move |dy, need| Ok(vec![need.then(0, || row_norms_bwd(dy, &sx, &norms))?])))
}

/// x_i / ‖x_i‖ for every row of x (…, C); a row of zeros stays one.
pub fn normalize_rows(x: &Tensor) -> Result<Tensor> {
    let op = "normalize_rows";
    let (m, c) = x.shape().rows(op)?;
    let (mut y, mut norms) = (x.like()?, x.stale_like([m])?);
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let (x, norms) = (x.host::<T>(op)?, norms.host_mut::<T>(op)?);
            cpu::norms(norms, x, c);
            cpu::normalize(y.host_mut::<T>(op)?, x, norms, c);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, norms) = (Launch::warps(m, 256), y.buf_mut(op)?, norms.buf_mut(op)?);
            launch::normalize_rows_fwd_f32(cuda, l, y, norms, x.buf(op)?, m as i32, c as i32)?;
        }
    }
    let saved = y.detach();
    Ok(y.with_grad(op, &[x], move |dy, need| Ok(vec![need.then(0, || normalize_rows_bwd(dy, &saved, &norms))?])))
}

fn row_norms_bwd(dy: &Tensor, x: &Tensor, norms: &Tensor) -> Result<Tensor> {
    let op = "row_norms_bwd";
    let (m, c) = x.shape().rows(op)?;
    let mut dx = x.like()?;
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let (dy, x, norms) = (dy.host::<T>(op)?, x.host::<T>(op)?, norms.host::<T>(op)?);
            cpu::norms_bwd(dx.host_mut::<T>(op)?, dy, x, norms, c);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, dx, dy) = (Launch::warps(m, 256), dx.buf_mut(op)?, dy.buf(op)?);
            launch::row_norms_bwd_f32(cuda, l, dx, dy, x.buf(op)?, norms.buf(op)?, m as i32, c as i32)?;
        }
    }
    Ok(dx)
}

fn normalize_rows_bwd(dy: &Tensor, y: &Tensor, norms: &Tensor) -> Result<Tensor> {
    let op = "normalize_rows_bwd";
    let (m, c) = y.shape().rows(op)?;
    let mut dx = y.like()?;
    match y.device() {
        Device::Cpu => on_real!(op, y, T => {
            let (dy, y, norms) = (dy.host::<T>(op)?, y.host::<T>(op)?, norms.host::<T>(op)?);
            cpu::normalize_bwd(dx.host_mut::<T>(op)?, dy, y, norms, c);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, dx, dy) = (Launch::warps(m, 256), dx.buf_mut(op)?, dy.buf(op)?);
            launch::normalize_rows_bwd_f32(cuda, l, dx, dy, y.buf(op)?, norms.buf(op)?, m as i32, c as i32)?;
        }
    }
    Ok(dx)
}

mod cpu {
    use super::super::elementwise::cpu as pointwise;
    use super::Real;
    use crate::device::cpu as threads;

    /// norms[i] = |row i of x|;   norms: (M), x: (M, C)
    pub fn norms<T: Real>(norms: &mut [T], x: &[T], c: usize) {
        threads::chunks(norms, 1, |at, norms| {
            for (i, n) in norms.iter_mut().enumerate() {
                *n = T::of(sum_of_squares(&x[(at + i) * c..][..c]).sqrt());
            }
        });
    }

    /// In the canonical order: what the 32 lanes of a warp add up to.
    fn sum_of_squares<T: Real>(x: &[T]) -> f64 {
        let mut sums = [0.0; 32];
        for x in x.chunks(32) {
            sums.iter_mut().zip(x).for_each(|(s, v)| *s += v.f64() * v.f64());
        }
        for apart in [16, 8, 4, 2, 1] {
            for lane in 0..apart {
                sums[lane] += sums[lane + apart];
            }
        }
        sums[0]
    }

    /// y[i] = x[i] / norms[i];   y, x: (M, C), norms: (M)
    pub fn normalize<T: Real>(y: &mut [T], x: &[T], norms: &[T], c: usize) {
        rows(y, c, |i, y| {
            let n = norms[i].f64();
            pointwise::map(y, &x[i * c..][..c], |x| if n == 0.0 { 0.0 } else { x / n });
        });
    }

    /// dx[i] = dy[i] x[i] / norms[i];   dx, x: (M, C), dy, norms: (M)
    pub fn norms_bwd<T: Real>(dx: &mut [T], dy: &[T], x: &[T], norms: &[T], c: usize) {
        rows(dx, c, |i, dx| {
            let n = norms[i].f64();
            let f = if n == 0.0 { 0.0 } else { dy[i].f64() / n };
            pointwise::map(dx, &x[i * c..][..c], |x| f * x);
        });
    }

    /// dx[i] = (dy[i] - y[i] (y[i] . dy[i])) / norms[i];   dx, dy, y: (M, C), norms: (M)
    pub fn normalize_bwd<T: Real>(dx: &mut [T], dy: &[T], y: &[T], norms: &[T], c: usize) {
        rows(dx, c, |i, dx| {
            let (dy, y, n) = (&dy[i * c..][..c], &y[i * c..][..c], norms[i].f64());
            let dot: f64 = y.iter().zip(dy).map(|(y, dy)| y.f64() * dy.f64()).sum();
            pointwise::zip(dx, dy, y, |dy, y| if n == 0.0 { 0.0 } else { (dy - y * dot) / n });
        });
    }

    /// `f(i, row i of y)` for every row.
    fn rows<T: Real>(y: &mut [T], c: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let c = c.max(1);
        threads::chunks(y, c, |at, y| (at / c..).zip(y.chunks_exact_mut(c)).for_each(|(i, y)| f(i, y)));
    }
}

macro_rules! case {
    ($name:literal, [$($d:literal),*], $f:ident, $sum:literal) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$($d),*], -2.0, 2.0)],
            run: |x| $f(&x[0]),
            sum: $sum,
            flops: 3 $(* $d)*,
            bytes: 2 * 4 $(* $d)*,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("row_norms/1x3", [1, 3], row_norms, 3),
    case!("row_norms/9x33", [9, 33], row_norms, 33),
    case!("row_norms/0x7", [0, 7], row_norms, 7),
    case!("normalize_rows/7x31", [7, 31], normalize_rows, 31),
    case!("normalize_rows/33x2", [33, 2], normalize_rows, 2),
    case!("normalize_rows/2x3x64", [2, 3, 64], normalize_rows, 64),
];

/// Real sizes, for device agreement and benchmarks: the features of a graph, of ResNet-18 w64, and critic gradients.
pub(super) const LARGE: &[Case] = &[
    case!("normalize_rows/2000x128", [2000, 128], normalize_rows, 128),
    case!("normalize_rows/300x512", [300, 512], normalize_rows, 512),
    case!("row_norms/768x320", [768, 320], row_norms, 320),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// METHODS §6.12: h = 0 gives f = 0; and it must not poison what comes before it.
    #[test]
    fn a_row_of_zeros_stays_one_and_has_no_gradient() {
        let x = Tensor::new(&Device::Cpu, [3, 2], &[3.0f32, 4.0, 0.0, 0.0, f32::NAN, 1.0]).unwrap().tracked();
        let dy = |shape: &[usize]| Tensor::new(&Device::Cpu, shape, &vec![1.0f32; shape.iter().product()]).unwrap();
        let (n, y) = (row_norms(&x).unwrap(), normalize_rows(&x).unwrap());
        let (dn, dx) = (n.grad_from(&dy(&[3]), &[&x]).unwrap(), y.grad_from(&dy(&[3, 2]), &[&x]).unwrap());
        let all = [&n, &y, dn.of(&x).unwrap(), dx.of(&x).unwrap()].map(|t| t.to_vec::<f32>().unwrap());
        assert_eq!(
            (&all[0][..2], &all[1][..4], &all[2][..4]),
            (&[5.0, 0.0][..], &[0.6, 0.8, 0.0, 0.0][..], &all[1][..4])
        );
        // (1, 1) − (.6, .8)·1.4, over 5.
        assert!((all[3][0] - 0.032).abs() < 1e-7 && (all[3][1] + 0.024).abs() < 1e-7 && all[3][2..4] == [0.0, 0.0]);
        assert!(all.iter().all(|v| v.last().unwrap().is_nan()));
    }
}
