//! Joining and cutting: rows below one another, columns side by side, and a run of either.
//!
//! concat_rows: (N_i, …) → (Σ N_i, …), concat_cols: (M, C_i) → (M, Σ C_i); backward each input gets its part of dy.
//! slice_rows, slice_cols: the rows or columns at .. at + len; backward dx is dy in its place and 0 elsewhere. A tensor
//! of higher rank counts as rows of its last size for columns, and as N rows of all other sizes for rows.

use super::{Arg, Case, copy_into};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Dtype, Elem, Shape, Tensor};
use crate::{Error, Result, on_real};

/// The tensors (N_i, …), whose other sizes are equal, below one another: (Σ N_i, …).
pub fn concat_rows(parts: &[&Tensor]) -> Result<Tensor> {
    let op = "concat_rows";
    let mut shape = first(op, parts)?.dims().to_vec();
    let mut starts = vec![0];
    for p in parts {
        let rows = split_rows(op, p.shape())?.0;
        if p.dims()[1..] != shape[1..] {
            return Err(p.shape().refuse(op, format!("(N, …) with the other sizes of {:?}", parts[0].shape())));
        }
        starts.push(starts[starts.len() - 1] + rows);
    }
    shape[0] = starts[parts.len()];
    let mut y = parts[0].stale_like(shape)?;
    match y.dtype() {
        Dtype::Bf16 => stack::<half::bf16>(op, &mut y, parts)?,
        _ => on_real!(op, parts[0], T => stack::<T>(op, &mut y, parts))?,
    }
    Ok(y.with_grad(op, parts, move |dy, need| {
        let part = |i: usize| slice_rows(&dy.detach(), starts[i], starts[i + 1] - starts[i]);
        (0..starts.len() - 1).map(|i| need.then(i, || part(i))).collect()
    }))
}

/// One part behind the other.
fn stack<T: Elem>(op: &'static str, y: &mut Tensor, parts: &[&Tensor]) -> Result<()> {
    let (device, mut at) = (y.device().clone(), 0);
    let y = y.buf_mut::<T>(op)?;
    for p in parts {
        copy_into(y, at, p.buf::<T>(op)?, &device)?;
        at += p.len();
    }
    Ok(())
}

/// The rows at .. at + len of x (N, …), any element type: (len, …). Free of copies where the first one lies on 16 bytes,
/// as kernels expect of a tensor's memory.
pub fn slice_rows(x: &Tensor, at: usize, len: usize) -> Result<Tensor> {
    let op = "slice_rows";
    let (n, width) = split_rows(op, x.shape())?;
    check_run(op, at, len, n, "rows")?;
    let mut shape = x.dims().to_vec();
    shape[0] = len;
    let y = match x.dtype() {
        Dtype::F32 => window::<f32>(op, x, at * width, shape),
        Dtype::Bf16 => window::<half::bf16>(op, x, at * width, shape),
        Dtype::F64 => window::<f64>(op, x, at * width, shape),
        Dtype::U8 => window::<u8>(op, x, at * width, shape),
        Dtype::U32 => window::<u32>(op, x, at * width, shape),
        Dtype::U64 => window::<u64>(op, x, at * width, shape),
    }?;
    let from = x.shape().clone();
    Ok(y.with_grad(op, &[x], move |dy, need| {
        let place = || {
            let mut dx = Tensor::zeros(dy.device(), from.clone(), dy.dtype())?;
            let device = dy.device();
            on_real!(op, dy, T => copy_into(dx.buf_mut::<T>(op)?, at * width, dy.buf::<T>(op)?, device))?;
            Ok(dx)
        };
        Ok(vec![need.then(0, place)?])
    }))
}

/// The matrices (M, C_i) side by side: (M, Σ C_i).
pub fn concat_cols(parts: &[&Tensor]) -> Result<Tensor> {
    let op = "concat_cols";
    let mut shape = first(op, parts)?.dims().to_vec();
    let last = shape.len().wrapping_sub(1);
    let mut starts = vec![0];
    for p in parts {
        let cols = p.shape().rows(op)?.1;
        if p.dims().len() != shape.len() || p.dims()[..last] != shape[..last] {
            return Err(p.shape().refuse(op, format!("(…, C) with the other sizes of {:?}", parts[0].shape())));
        }
        starts.push(starts[starts.len() - 1] + cols);
    }
    shape[last] = starts[parts.len()];
    let mut y = parts[0].stale_like(shape)?;
    for (p, at) in parts.iter().zip(&starts) {
        copy_cols(op, &mut y, *at, p, 0, p.dims()[last])?;
    }
    Ok(y.with_grad(op, parts, move |dy, need| {
        let part = |i: usize| slice_cols(&dy.detach(), starts[i], starts[i + 1] - starts[i]);
        (0..starts.len() - 1).map(|i| need.then(i, || part(i))).collect()
    }))
}

/// The columns at .. at + len of x (…, C): (…, len).
pub fn slice_cols(x: &Tensor, at: usize, len: usize) -> Result<Tensor> {
    let op = "slice_cols";
    let c = x.shape().rows(op)?.1;
    check_run(op, at, len, c, "columns")?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(len);
    let mut y = x.stale_like(shape)?;
    copy_cols(op, &mut y, 0, x, at, len)?;
    let from = x.shape().clone();
    Ok(y.with_grad(op, &[x], move |dy, need| {
        let place = || {
            let mut dx = Tensor::zeros(dy.device(), from.clone(), dy.dtype())?;
            copy_cols(op, &mut dx, at, dy, 0, len)?;
            Ok(dx)
        };
        Ok(vec![need.then(0, place)?])
    }))
}

fn first<'a>(op: &'static str, parts: &[&'a Tensor]) -> Result<&'a Tensor> {
    parts.first().copied().ok_or(Error::Shape { op, want: "at least one tensor".into(), got: "none".into() })
}

/// N and the product of the other sizes.
fn split_rows(op: &'static str, shape: &Shape) -> Result<(usize, usize)> {
    match shape.dims() {
        [n, inner @ ..] => Ok((*n, inner.iter().product())),
        [] => Err(shape.refuse(op, "(N, …)")),
    }
}

fn check_run(op: &'static str, at: usize, len: usize, n: usize, what: &str) -> Result<()> {
    match at.checked_add(len) {
        Some(end) if end <= n => Ok(()),
        _ => Err(Error::Shape { op, want: format!("a run within {n} {what}"), got: format!("{len} from {at} on") }),
    }
}

/// The elements from `at` on, as many as the shape has.
fn window<T: Elem>(op: &'static str, x: &Tensor, at: usize, shape: Vec<usize>) -> Result<Tensor> {
    let (device, shape) = (x.device(), Shape::from(shape));
    let part = x.buf::<T>(op)?.window(at, shape.len())?;
    if device.is_cpu() || part.ptr(op)? % 16 == 0 {
        return Tensor::from_buf(device, shape, part);
    }
    let mut y = x.stale_like(shape)?;
    copy_into(y.buf_mut::<T>(op)?, 0, &part, device)?;
    Ok(y)
}

/// y[i][y_at + j] = x[i][x_at + j] for every row i and j below `width`.
fn copy_cols(op: &'static str, y: &mut Tensor, y_at: usize, x: &Tensor, x_at: usize, width: usize) -> Result<()> {
    let ((m, y_width), (_, x_width)) = (y.shape().rows(op)?, x.shape().rows(op)?);
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            cpu::copy_cols(y.host_mut::<T>(op)?, [y_width, y_at], x.host::<T>(op)?, [x_width, x_at], width);
            Ok(())
        }),
        Device::Cuda(cuda) => {
            let (x, y) = (x.buf::<f32>(op)?, y.buf_mut::<f32>(op)?);
            let fours = [width, y_width, y_at, x_width, x_at].iter().all(|v| v % 4 == 0);
            let step = if fours && x.ptr(op)? % 16 == 0 && y.ptr(op)? % 16 == 0 { 4 } else { 1 };
            let total = m * width / step;
            let [w, yw, ya, xw, xa] = [width, y_width, y_at, x_width, x_at].map(|v| v as i32);
            launch::copy_cols_f32(cuda, Launch::elements(total), y, x, total as i32, w, yw, ya, xw, xa, step as i32)
        }
    }
}

mod cpu {
    use crate::device::cpu as threads;

    /// y[i][y_at + j] = x[i][x_at + j];   y: (M, y_width), x: (M, x_width)
    pub fn copy_cols<T: Copy + Send + Sync>(
        y: &mut [T],
        [y_width, y_at]: [usize; 2],
        x: &[T],
        [x_width, x_at]: [usize; 2],
        width: usize,
    ) {
        if width == 0 {
            return;
        }
        threads::chunks(y, y_width, |at, y| {
            for (y, x) in y.chunks_exact_mut(y_width).zip(x.chunks_exact(x_width).skip(at / y_width)) {
                y[y_at..][..width].copy_from_slice(&x[x_at..][..width]);
            }
        });
    }
}

macro_rules! case {
    ($name:literal, [$($shape:expr),*], $n:expr, $run:expr) => {
        Case {
            name: $name,
            inputs: &[$(Arg::Diff(&$shape, -2.0, 2.0)),*],
            run: $run,
            sum: 1,
            flops: 0,
            bytes: 2 * 4 * $n,
        }
    };
}

fn all(x: &[Tensor]) -> Vec<&Tensor> {
    x.iter().collect()
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("concat_rows/3x5-4x5-1x5", [[3, 5], [4, 5], [1, 5]], 40, |x| concat_rows(&all(x))),
    case!("concat_rows/2x3x3x2-1x3x3x2", [[2, 3, 3, 2], [1, 3, 3, 2]], 54, |x| concat_rows(&all(x))),
    case!("slice_rows/9x7/2+3", [[9, 7]], 21, |x| slice_rows(&x[0], 2, 3)),
    case!("slice_rows/6x2x2x4/3+2", [[6, 2, 2, 4]], 32, |x| slice_rows(&x[0], 3, 2)),
    case!("concat_cols/5x3-5x4-5x1", [[5, 3], [5, 4], [5, 1]], 40, |x| concat_cols(&all(x))),
    case!("concat_cols/7x8-7x16", [[7, 8], [7, 16]], 168, |x| concat_cols(&all(x))),
    case!("slice_cols/5x9/4+3", [[5, 9]], 15, |x| slice_cols(&x[0], 4, 3)),
    case!("slice_cols/2x3x12/8+4", [[2, 3, 12]], 24, |x| slice_cols(&x[0], 8, 4)),
];

/// Real sizes, for device agreement and benchmarks: MixMatch's batch, the four taps of the loss head, CoreGCN's score.
pub(super) const LARGE: &[Case] = &[
    case!("concat_rows/3of64x28x28x1", [[64, 28, 28, 1], [64, 28, 28, 1], [64, 28, 28, 1]], 3 * 64 * 784, |x| {
        concat_rows(&all(x))
    }),
    case!("slice_rows/768x100/256+256", [[768, 100]], 25600, |x| slice_rows(&x[0], 256, 256)),
    case!("concat_cols/4of256x128", [[256, 128], [256, 128], [256, 128], [256, 128]], 131_072, |x| {
        concat_cols(&all(x))
    }),
    case!("concat_cols/1000x128-1000x1", [[1000, 128], [1000, 1]], 129_000, |x| concat_cols(&all(x))),
    case!("slice_cols/1000x129/1+128", [[1000, 129]], 128_000, |x| slice_cols(&x[0], 1, 128)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(n: usize, c: usize) -> Tensor {
        Tensor::new(&Device::Cpu, [n, c], &(0..(n * c) as u32).map(|v| v as f32).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_is_cut_is_joined_again() {
        let x = matrix(6, 5);
        let rows = [(0, 2), (2, 0), (2, 4)].map(|(at, len)| slice_rows(&x, at, len).unwrap());
        let cols = [(0, 1), (1, 3), (4, 1), (5, 0)].map(|(at, len)| slice_cols(&x, at, len).unwrap());
        for y in [concat_rows(&all(&rows)).unwrap(), concat_cols(&all(&cols)).unwrap()] {
            assert_eq!((y.dims(), y.to_vec::<f32>().unwrap()), (x.dims(), x.to_vec().unwrap()));
        }
        let ids = Tensor::new(&Device::Cpu, [4], &[7u32, 8, 9, 10]).unwrap();
        assert_eq!(slice_rows(&ids, 1, 2).unwrap().to_vec::<u32>().unwrap(), [8, 9]);
    }

    #[test]
    fn one_tensor_used_twice_gets_both_gradients() {
        let x = matrix(2, 2).tracked();
        let y = concat_rows(&[&x, &x]).unwrap();
        let g = y.grad_from(&matrix(4, 2), &[&x]).unwrap();
        assert_eq!(g.of(&x).unwrap().to_vec::<f32>().unwrap(), [4.0, 6.0, 8.0, 10.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = matrix(6, 5);
        for (at, len) in [(0, 7), (6, 1), (7, 0), (usize::MAX, 2)] {
            assert!(slice_rows(&x, at, len).is_err(), "{at} {len}");
            assert!(slice_cols(&x, at, len).is_err(), "{at} {len}");
        }
        assert!(concat_rows(&[]).is_err() && concat_cols(&[]).is_err());
        assert!(concat_rows(&[&x, &matrix(6, 4)]).is_err());
        assert!(concat_cols(&[&x, &matrix(5, 5)]).is_err());
        let scalar = x.reshape([6, 5]).and_then(|x| crate::ops::sum_all(&x)).unwrap();
        assert!(
            concat_rows(&[&scalar]).is_err() && concat_cols(&[&scalar]).is_err() && slice_rows(&scalar, 0, 0).is_err()
        );
    }
}
