//! Rows by number: y_i = x_{ids_i} for x (N, D), ids u32 (M), y (M, D); and the labels of a batch.
//!
//! Backward: dx_r = Σ dy_i over the i with ids_i = r, in the order of i.

use super::{Arg, Case};
use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Buf, Dtype, Real, Shape, Tensor};
use crate::{Error, Result, on_real};

/// The rows `ids` (u32, M) of x (N, D): (M, D). An id beyond N is an error on the CPU and a row of NaN on a device.
/// The backward pass on a device takes N·M steps: meant for rows of a batch.
pub fn gather_rows(x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let y = gather_rows_fwd(x, ids)?;
    let (from, ids) = (x.shape().clone(), ids.detach());
    Ok(y.with_grad("gather_rows", &[x], move |dy, need| Ok(vec![need.then(0, || gather_rows_bwd(dy, &ids, &from))?])))
}

/// labels[order[offset + i]] for i below `n`, the offset being that of the clock: u32 (n). Outside of the order or
/// the pool it is an error on the CPU; on a device the label becomes 2³² − 1, which makes a loss NaN.
pub fn gather_labels(labels: &Buf<u32>, order: &Tensor, clock: &Clock, n: usize) -> Result<Tensor> {
    let op = "gather_labels";
    let mut y = Tensor::stale(order.device(), [n], Dtype::U32)?;
    match order.device() {
        Device::Cpu => {
            let labels = labels.host(op)?;
            let ids = batch(op, order.host(op)?, clock, n)?;
            check_ids(op, ids, labels.len())?;
            y.host_mut(op)?.iter_mut().zip(ids).for_each(|(y, id)| *y = labels[*id as usize]);
        }
        Device::Cuda(cuda) => {
            let (l, y, words) = (Launch::elements(n), y.buf_mut(op)?, &clock.words());
            let (len, pool) = (order.len() as i32, labels.len() as i32);
            launch::gather_labels(cuda, l, y, labels, order.buf(op)?, words, n as i32, len, pool)?;
        }
    }
    Ok(y)
}

/// The ids of the batch of `n` at which the clock is; on the CPU.
pub(super) fn batch<'a>(op: &'static str, order: &'a [u32], clock: &Clock, n: usize) -> Result<&'a [u32]> {
    let first = clock.host(Word::Offset)? as usize;
    order.get(first..first + n).ok_or_else(|| {
        let want = format!("an order of at least {first} + {n} examples");
        Error::Shape { op, want, got: format!("{} examples", order.len()) }
    })
}

/// Refuses ids that are no rows of a matrix of `n`; on the CPU.
pub(super) fn check_ids(op: &'static str, ids: &[u32], n: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= n) {
        None => Ok(()),
        Some(id) => Err(Error::Shape { op, want: format!("ids below {n}"), got: format!("id {id}") }),
    }
}

fn gather_rows_fwd(x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let op = "gather_rows";
    let [n, d] = x.shape().matrix(op)?;
    let m = ids.len();
    let mut y = x.stale_like([m, d])?;
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let ids = ids.host::<u32>(op)?;
            check_ids(op, ids, n)?;
            cpu::gather(y.host_mut::<T>(op)?, x.host::<T>(op)?, ids, d);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, total) = (Launch::elements(m * d), (m * d) as i32);
            let (y, x, ids) = (y.buf_mut(op)?, x.buf(op)?, ids.buf(op)?);
            launch::gather_rows_fwd_f32(cuda, l, y, x, ids, total, n as i32, d as i32)?;
        }
    }
    Ok(y)
}

fn gather_rows_bwd(dy: &Tensor, ids: &Tensor, from: &Shape) -> Result<Tensor> {
    let op = "gather_rows_bwd";
    let [n, d] = from.matrix(op)?;
    let mut dx = dy.stale_like([n, d])?;
    match dy.device() {
        Device::Cpu => on_real!(op, dy, T => {
            cpu::scatter(dx.host_mut::<T>(op)?, dy.host::<T>(op)?, ids.host::<u32>(op)?, d);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, m) = (Launch::warps(n, 256), ids.len() as i32);
            let (dx, dy, ids) = (dx.buf_mut(op)?, dy.buf(op)?, ids.buf(op)?);
            launch::gather_rows_bwd_f32(cuda, l, dx, dy, ids, n as i32, m, d as i32)?;
        }
    }
    Ok(dx)
}

mod cpu {
    use super::Real;
    use crate::device::cpu as threads;

    /// y[i] = x[ids[i]];   y: (M, D), x: (N, D)
    pub fn gather<T: Real>(y: &mut [T], x: &[T], ids: &[u32], d: usize) {
        let d = d.max(1);
        threads::chunks(y, d, |at, y| {
            let rows = y.chunks_exact_mut(d).zip(&ids[at / d..]);
            rows.for_each(|(y, id)| y.copy_from_slice(&x[*id as usize * d..][..d]));
        });
    }

    /// dx[ids[i]] += dy[i], in the order of i, from zero;   dx: (N, D), dy: (M, D)
    pub fn scatter<T: Real>(dx: &mut [T], dy: &[T], ids: &[u32], d: usize) {
        dx.fill(T::default());
        for (dy, id) in dy.chunks_exact(d.max(1)).zip(ids) {
            for (dx, dy) in dx[*id as usize * d..][..d].iter_mut().zip(dy) {
                *dx = T::of(dx.f64() + dy.f64());
            }
        }
    }
}

macro_rules! case {
    ($name:literal, [$n:literal, $d:literal], $m:literal, $sum:expr) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$n, $d], -2.0, 2.0), Arg::Ids(&[$m], $n)],
            run: |x| gather_rows(&x[0], &x[1]),
            sum: $sum,
            flops: 0,
            bytes: (2 * $m * $d + $m) * 4,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("gather_rows/1x1/1", [1, 1], 1, 1),
    case!("gather_rows/9x33/31", [9, 33], 31, 16),
    case!("gather_rows/33x7/70", [33, 7], 70, 16),
    case!("gather_rows/5x3/0", [5, 3], 0, 1),
];

/// Real sizes, too large for a gradient check: device agreement and benchmarks.
pub(super) const LARGE: &[Case] = &[case!("gather_rows/1000x50/257", [1000, 50], 257, 16)];

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(v: &[u32]) -> Tensor {
        Tensor::new(&Device::Cpu, [v.len()], v).unwrap()
    }

    #[test]
    fn rows_picked_twice_get_both_gradients() {
        let x = Tensor::new(&Device::Cpu, [3, 2], &[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap().tracked();
        let y = gather_rows(&x, &ids(&[2, 0, 2])).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        let dy = Tensor::new(&Device::Cpu, [3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let g = y.grad_from(&dy, &[&x]).unwrap();
        assert_eq!(g.of(&x).unwrap().to_vec::<f32>().unwrap(), [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
        assert!(gather_rows(&x, &ids(&[3])).is_err());
    }

    #[test]
    fn labels_follow_the_order_from_the_offset_on() {
        let clock = Clock::new(&Device::Cpu).unwrap();
        let (labels, order) = (Buf::from_host(&Device::Cpu, &[7u32, 8, 9]).unwrap(), ids(&[2, 0, 1, 1]));
        clock.advance(1).unwrap();
        let y = gather_labels(&labels, &order, &clock, 3).unwrap();
        assert_eq!(y.to_vec::<u32>().unwrap(), [7, 8, 8]);
        assert!(gather_labels(&labels, &order, &clock, 4).is_err());
        assert!(gather_labels(&labels, &ids(&[0, 3]), &clock, 1).is_err());
    }
}
