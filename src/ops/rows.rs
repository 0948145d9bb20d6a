//! Rows by id: y[i] = x[ids[i]]; dx[r] = Σ dy[i] over all i with ids[i] = r, in ascending order of i.

use super::{Arg, Case};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Real, Tensor};
use crate::{Result, on_real};

/// The rows `ids` (M, u32) of x (N, D), as (M, D).
pub fn gather_rows(x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let [n, d] = x.shape().matrix("gather_rows")?;
    let y = forward(x, ids)?;
    let ids = ids.detach();
    Ok(y.with_grad("gather_rows", &[x], move |dy, need| Ok(vec![need.then(0, || backward(dy, &ids, n, d))?])))
}

fn forward(x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    const OP: &str = "gather_rows";
    let ([n, d], m) = (x.shape().matrix(OP)?, ids.len());
    let mut y = x.stale_like([m, d])?;
    match x.device() {
        Device::Cpu => {
            let at = ids.host::<u32>(OP)?;
            if let Some(bad) = at.iter().find(|i| **i as usize >= n) {
                return Err(x.shape().refuse(OP, format!("more than {bad} rows")));
            }
            on_real!(OP, x, T => {
                let x = x.host::<T>(OP)?;
                for (y, i) in y.host_mut::<T>(OP)?.chunks_exact_mut(d.max(1)).zip(at) {
                    y.copy_from_slice(&x[*i as usize * d..][..d]);
                }
                Ok(())
            })?;
        }
        Device::Cuda(c) => {
            let (l, y, x, ids) = (Launch::elements(m * d), y.buf_mut(OP)?, x.buf(OP)?, ids.buf(OP)?);
            launch::gather_rows_f32(c, l, y, x, ids, m as i32, d as i32, n as i32)?;
        }
    }
    Ok(y)
}

fn backward(dy: &Tensor, ids: &Tensor, n: usize, d: usize) -> Result<Tensor> {
    const OP: &str = "gather_rows";
    let mut dx = dy.stale_like([n, d])?;
    match dy.device() {
        Device::Cpu => on_real!(OP, dy, T => {
            cpu::scatter(dx.host_mut::<T>(OP)?, dy.host::<T>(OP)?, ids.host::<u32>(OP)?, d);
            Ok(())
        })?,
        Device::Cuda(c) => {
            let (l, m) = (Launch::elements(n * d), ids.len() as i32);
            let (dx, dy, ids) = (dx.buf_mut(OP)?, dy.buf(OP)?, ids.buf(OP)?);
            launch::gather_rows_bwd_f32(c, l, dx, dy, ids, m, d as i32, n as i32)?;
        }
    }
    Ok(dx)
}

mod cpu {
    use super::Real;

    /// dx (n, d), dy (m, d), ids (m)
    pub fn scatter<T: Real>(dx: &mut [T], dy: &[T], ids: &[u32], d: usize) {
        dx.fill(T::default());
        for (dy, i) in dy.chunks_exact(d.max(1)).zip(ids) {
            for (dx, dy) in dx[*i as usize * d..][..d].iter_mut().zip(dy) {
                *dx = T::of(dx.f64() + dy.f64());
            }
        }
    }
}

/// Shapes every suite runs these operations on.
pub const CASES: &[Case] = &[Case {
    name: "gather_rows/9x5",
    inputs: &[Arg::Diff(&[9, 5], -2.0, 2.0), Arg::Ids(&[14], 9)],
    run: |x| gather_rows(&x[0], &x[1]),
    sum: 14,
    flops: 0,
    bytes: (2 * 14 * 5 + 14) * 4,
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn an_id_beyond_the_rows_is_refused() {
        let x = Tensor::zeros(&Device::Cpu, [3, 2], Dtype::F32).unwrap();
        let e = gather_rows(&x, &Tensor::new(&Device::Cpu, [1], &[3u32]).unwrap()).unwrap_err().to_string();
        assert!(e.contains("gather_rows") && e.contains("(3, 2)"), "{e}");
    }
}
