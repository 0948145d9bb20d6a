//! Sums and maxima: s_j = Σ_i x_ij, s_i = Σ_j x_ij, s = Σ x, mean = Σ x / n, m_i = max_j x_ij.   x: (M, C)
//!
//! Backward: dx_ij = ds_j, ds_i, ds, ds / n; the maximum has none. A sum over rows is made of partial sums over
//! fixed runs of rows, so it is the same whatever the number of threads or blocks.

use super::{Arg, Case, cast, scale};
use crate::device::{Cuda, Device, Launch, cpu as threads, launch};
use crate::tensor::{Buf, Dtype, Real, Shape, Tensor};
use crate::{Result, on_real, on_stored};

/// Rows of one partial sum; the same number in `kernels/reduce.cu`.
const ROWS: usize = 512;

/// s_j = Σ_i x_ij: (…, C) → (C), f32 for bf16.
pub fn sum_rows(x: &Tensor) -> Result<Tensor> {
    if x.is_rounded() {
        return sum_rows(&cast(x, Dtype::F32)?);
    }
    let y = sum_rows_fwd(x)?;
    let from = x.shape().clone();
    Ok(y.with_grad("sum_rows", &[x], move |dy, need| Ok(vec![need.then(0, || broadcast(dy, &from, Spread::Rows))?])))
}

/// s_i = Σ_j x_ij: (…, C) → (M), M being the product of the outer sizes.
pub fn sum_cols(x: &Tensor) -> Result<Tensor> {
    let y = each_row("sum_cols", x, RowOp::Sum)?;
    let from = x.shape().clone();
    Ok(y.with_grad("sum_cols", &[x], move |dy, need| Ok(vec![need.then(0, || broadcast(dy, &from, Spread::Cols))?])))
}

/// Σ x: any shape → scalar.
pub fn sum_all(x: &Tensor) -> Result<Tensor> {
    sum_rows(&x.reshape([x.len(), 1])?)?.reshape([])
}

/// Σ x / n: any shape → scalar. NaN when there is no element.
pub fn mean_all(x: &Tensor) -> Result<Tensor> {
    scale(&sum_all(x)?, 1.0 / x.len() as f32)
}

/// m_i = max_j x_ij, NaN if there is one: (…, C) → (M). Not differentiable.
pub fn max_cols(x: &Tensor) -> Result<Tensor> {
    if x.shape().rows("max_cols")?.1 == 0 {
        return Err(x.shape().refuse("max_cols", "(M, C) with C above 0"));
    }
    each_row("max_cols", x, RowOp::Max)
}

fn sum_rows_fwd(x: &Tensor) -> Result<Tensor> {
    let op = "sum_rows";
    let (m, c) = x.shape().rows(op)?;
    if m == 0 {
        return Tensor::zeros(x.device(), [c], x.sum_dtype());
    }
    let mut y = Tensor::stale(x.device(), [c], x.sum_dtype())?;
    match x.device() {
        Device::Cpu if x.dtype() == Dtype::F32 => fast::sum_rows(y.host_mut(op)?, x.host(op)?),
        Device::Cpu => on_real!(op, x, T => {
            cpu::sum_rows(y.host_mut::<T>(op)?, x.host::<T>(op)?);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let chunks = m.div_ceil(ROWS);
            let first = Launch::grid(chunks, c.div_ceil(256), 1, 256);
            let (mi, ci) = (m as i32, c as i32);
            let sum = |to: &mut Buf<f32>| on_stored!(op, x, S => launch::sum_rows_part(cuda, first, to, x.buf::<S>(op)?, mi, ci));
            if chunks == 1 {
                sum(y.buf_mut(op)?)?;
            } else {
                let mut part = y.stale_like([chunks, c])?;
                sum(part.buf_mut(op)?)?;
                sum_chunks(cuda, y.buf_mut(op)?, part.buf(op)?, [1, c, c], chunks)?;
            }
        }
    }
    Ok(y)
}

/// The second stage of a sum cut into chunks: part (chunks, rows, wide) → y (rows, c), c ≤ wide.
pub(super) fn sum_chunks(
    cuda: &Cuda,
    y: &mut Buf<f32>,
    part: &Buf<f32>,
    [rows, c, wide]: [usize; 3],
    chunks: usize,
) -> Result<()> {
    let of_a_block = if chunks <= 8 { 1024 } else { 32 };
    let l = Launch::grid((rows * wide).div_ceil(of_a_block), 1, 1, 256);
    launch::sum_chunks_f32(cuda, l, y, part, rows as i32, c as i32, wide as i32, chunks as i32)
}

#[derive(Clone, Copy)]
enum RowOp {
    Sum,
    Max,
}

fn each_row(op: &'static str, x: &Tensor, how: RowOp) -> Result<Tensor> {
    let (m, c) = x.shape().rows(op)?;
    let mut y = x.stale_like([m])?;
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let (y, x) = (y.host_mut::<T>(op)?, x.host::<T>(op)?);
            match how {
                RowOp::Sum => cpu::each_row(y, x, c, cpu::sum),
                RowOp::Max => cpu::each_row(y, x, c, cpu::max),
            }
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, x) = (Launch::warps(m, 256), y.buf_mut(op)?, x.buf(op)?);
            match how {
                RowOp::Sum => launch::sum_cols_f32(cuda, l, y, x, m as i32, c as i32)?,
                RowOp::Max => launch::max_cols_f32(cuda, l, y, x, m as i32, c as i32)?,
            }
        }
    }
    Ok(y)
}

/// Which way a vector is spread over a matrix.
#[derive(Clone, Copy)]
enum Spread {
    /// Every row is the vector.
    Rows,
    /// Every column is the vector.
    Cols,
}

fn broadcast(a: &Tensor, to: &Shape, how: Spread) -> Result<Tensor> {
    let op = "broadcast";
    let (_, c) = to.rows(op)?;
    let mut y = a.stale_like(to.clone())?;
    let n = y.len();
    match a.device() {
        Device::Cpu => on_real!(op, a, T => {
            let (y, a) = (y.host_mut::<T>(op)?, a.host::<T>(op)?);
            match how {
                Spread::Rows => cpu::broadcast_rows(y, a),
                Spread::Cols => cpu::broadcast_cols(y, a, c),
            }
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, y, a) = (Launch::elements(n), y.buf_mut(op)?, a.buf(op)?);
            match how {
                Spread::Rows => launch::broadcast_rows_f32(cuda, l, y, a, n as i32, c as i32)?,
                Spread::Cols => launch::broadcast_cols_f32(cuda, l, y, a, n as i32, c as i32)?,
            }
        }
    }
    Ok(y)
}

mod cpu {
    use super::{Real, threads};

    /// y[j] = Σ_i x[i][j];   y: (C), x: (M, C)
    pub fn sum_rows<T: Real>(y: &mut [T], x: &[T]) {
        let c = y.len();
        for (j, y) in y.iter_mut().enumerate() {
            *y = T::of(x.iter().skip(j).step_by(c).map(|v| v.f64()).sum());
        }
    }

    /// y[i] = f(row i of x);   y: (M), x: (M, C)
    pub fn each_row<T: Real>(y: &mut [T], x: &[T], c: usize, f: impl Fn(&[T]) -> f64 + Sync) {
        threads::chunks(y, 1, |at, y| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = T::of(f(&x[(at + i) * c..][..c]));
            }
        });
    }

    /// The sum.
    pub fn sum<T: Real>(row: &[T]) -> f64 {
        row.iter().map(|v| v.f64()).sum()
    }

    /// The largest value, NaN if there is one.
    pub fn max<T: Real>(row: &[T]) -> f64 {
        row.iter().map(|v| v.f64()).fold(f64::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a })
    }

    /// y[i][j] = a[j];   y: (M, C), a: (C)
    pub fn broadcast_rows<T: Real>(y: &mut [T], a: &[T]) {
        let c = a.len().max(1);
        threads::chunks(y, c, |_, y| y.chunks_exact_mut(c).for_each(|y| y.copy_from_slice(a)));
    }

    /// y[i][j] = a[i];   y: (M, C), a: (M)
    pub fn broadcast_cols<T: Real>(y: &mut [T], a: &[T], c: usize) {
        let c = c.max(1);
        threads::chunks(y, c, |at, y| y.chunks_exact_mut(c).zip(&a[at / c..]).for_each(|(y, a)| y.fill(*a)));
    }
}

mod fast {
    use rayon::prelude::*;

    /// Floats added side by side: a multiple of any vector's width, small enough for the first-level cache.
    const WIDE: usize = 256;
    /// Floats of one task.
    const TASK: usize = 1 << 15;

    /// As `cpu::sum_rows`: f32 sums of at most a task's rows, added up in f64.
    pub fn sum_rows(y: &mut [f32], x: &[f32]) {
        let c = y.len();
        if c == 0 {
            return;
        }
        let task = (TASK / c).max(1) * c;
        let mut part = vec![0.0f32; x.len().div_ceil(task) * c];
        if part.len() == c {
            sum_task(&mut part, x);
        } else {
            part.par_chunks_exact_mut(c).zip(x.par_chunks(task)).for_each(|(p, x)| sum_task(p, x));
        }
        for (j, y) in y.iter_mut().enumerate() {
            *y = part.iter().skip(j).step_by(c).map(|v| f64::from(*v)).sum::<f64>() as f32;
        }
    }

    crate::simd! {
        /// One task. Narrow rows are added several at a time, so that the registers are full.
        fn sum_task(y: &mut [f32], x: &[f32]) {
            let c = y.len();
            if c >= WIDE {
                y.fill(0.0);
                for row in x.chunks_exact(c) {
                    y.iter_mut().zip(row).for_each(|(y, x)| *y += x);
                }
                return;
            }
            let width = WIDE / c * c;
            let mut wide = [0.0f32; WIDE];
            let wide = &mut wide[..width];
            for rows in x.chunks(width) {
                wide.iter_mut().zip(rows).for_each(|(w, x)| *w += x);
            }
            y.fill(0.0);
            for row in wide.chunks_exact(c) {
                y.iter_mut().zip(row).for_each(|(y, w)| *y += w);
            }
        }
    }
}

macro_rules! case {
    ($name:literal, [$($d:literal),*], $f:expr, $sum:expr, $out:expr) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$($d),*], -2.0, 2.0)],
            run: |x| $f(&x[0]),
            sum: $sum,
            flops: 1 $(* $d)*,
            bytes: (1 $(* $d)* + $out) * 4,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("sum_rows/1x1", [1, 1], sum_rows, 1, 1),
    case!("sum_rows/33x10", [33, 10], sum_rows, 33, 10),
    case!("sum_rows/1x257", [1, 257], sum_rows, 1, 257),
    case!("sum_rows/2x3x3x20", [2, 3, 3, 20], sum_rows, 18, 20),
    case!("sum_rows/0x7", [0, 7], sum_rows, 1, 7),
    case!("sum_cols/1x31", [1, 31], sum_cols, 31, 1),
    case!("sum_cols/9x33", [9, 33], sum_cols, 33, 9),
    case!("sum_cols/0x7", [0, 7], sum_cols, 7, 0),
    case!("sum_all/3x5x7", [3, 5, 7], sum_all, 105, 1),
    case!("mean_all/31x11", [31, 11], mean_all, 341, 1),
];

/// Real sizes, too large for a gradient check: device agreement and benchmarks.
pub(super) const LARGE: &[Case] = &[
    case!("sum_rows/511x10", [511, 10], sum_rows, 511, 10),
    case!("sum_rows/513x10", [513, 10], sum_rows, 513, 10),
    case!("sum_rows/128x300", [128, 300], sum_rows, 128, 300),
    case!("sum_rows/8192x20", [8192, 20], sum_rows, 8192, 20),
    case!("sum_rows/73728x10", [73728, 10], sum_rows, 73728, 10),
    case!("sum_cols/1000x257", [1000, 257], sum_cols, 257, 1000),
    case!("sum_all/100003", [100003], sum_all, 100003, 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(&Device::Cpu, shape, v).unwrap()
    }

    #[test]
    fn fast_sums_agree_with_plain_ones() {
        let r = crate::rng::Rng::new(3);
        for (m, c) in [(1, 1), (7, 300), (31, 33), (3277, 10), (40000, 3), (2, 40000)] {
            let x: Vec<f32> = (0..(m * c) as u64).map(|e| r.uniform(e)).collect();
            let (mut plain, mut quick) = (vec![0.0f32; c], vec![7.0f32; c]);
            cpu::sum_rows(&mut plain, &x);
            fast::sum_rows(&mut quick, &x);
            for (p, q) in plain.iter().zip(&quick) {
                // Each lane adds at most a task's rows in f32, all of one sign.
                let bound = m.min(32768) as f32 * f32::EPSILON * p.abs();
                assert!((p - q).abs() <= bound, "{m}x{c}: {p} {q}");
            }
        }
    }

    #[test]
    fn maxima_and_means_of_hard_rows() {
        let x =
            tensor(&[4, 3], &[1.0, 3.0, 2.0, -5.0, -4.0, -6.0, 1.0, f32::NAN, 9.0, f32::NEG_INFINITY, -1e30, -2e30]);
        let m = max_cols(&x).unwrap().to_vec::<f32>().unwrap();
        assert!(m[0] == 3.0 && m[1] == -4.0 && m[2].is_nan() && m[3] == -1e30, "{m:?}");
        assert!(max_cols(&tensor(&[2, 0], &[])).is_err());
        let mean = mean_all(&tensor(&[2, 2], &[1.0, 2.0, 3.0, 6.0])).unwrap();
        assert_eq!((mean.dims(), mean.to_vec::<f32>().unwrap()), (&[][..], vec![3.0]));
        assert!(mean_all(&tensor(&[0], &[])).unwrap().to_vec::<f32>().unwrap()[0].is_nan());
    }
}
