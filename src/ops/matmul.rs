//! Dense products: C = A·B, C = A·Bᵀ, C = Aᵀ·B, and the linear layer y = x·Wᵀ + b with the bias fused.
//!
//! | product | C (M, N) from | dA | dB |
//! |---|---|---|---|
//! | nn | A (M, K), B (K, N) | dC·Bᵀ | Aᵀ·dC |
//! | nt | A (M, K), B (N, K) | dC·B | dCᵀ·A |
//! | tn | A (K, M), B (K, N) | B·dCᵀ | A·dC |
//!
//! Every element is one in-order sum over K, so a row never depends on how many rows there are.

use super::{Arg, Case, longest, sum_rows};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Dtype, Real, Tensor};
use crate::{Result, on_real};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Nn,
    Nt,
    Tn,
}

/// C = A·B: a (M, K), b (K, N).
pub fn matmul_nn(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = product(Layout::Nn, a, b, None)?;
    let (sa, sb) = (a.detach(), b.detach());
    Ok(y.with_grad("matmul_nn", &[a, b], move |dy, need| {
        let da = need.then(0, || product(Layout::Nt, dy, &sb, None))?;
        Ok(vec![da, need.then(1, || product(Layout::Tn, &sa, dy, None))?])
    }))
}

/// C = A·Bᵀ: a (M, K), b (N, K).
pub fn matmul_nt(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    linear(a, b, None)
}

/// C = Aᵀ·B: a (K, M), b (K, N).
pub fn matmul_tn(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = product(Layout::Tn, a, b, None)?;
    let (sa, sb) = (a.detach(), b.detach());
    Ok(y.with_grad("matmul_tn", &[a, b], move |dy, need| {
        let da = need.then(0, || product(Layout::Nt, &sb, dy, None))?;
        Ok(vec![da, need.then(1, || product(Layout::Nn, &sa, dy, None))?])
    }))
}

/// y = x·Wᵀ + b: x (N, I), w (O, I), b (O).
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = product(Layout::Nt, x, w, b)?;
    let (sx, sw) = (x.detach(), w.detach());
    let inputs: Vec<&Tensor> = [x, w].into_iter().chain(b).collect();
    let bias = b.is_some();
    Ok(y.with_grad("linear", &inputs, move |dy, need| {
        let dx = need.then(0, || product(Layout::Nn, dy, &sw, None))?;
        let dw = need.then(1, || product(Layout::Tn, dy, &sx, None))?;
        let mut grads = vec![dx, dw];
        if bias {
            grads.push(need.then(2, || sum_rows(dy))?);
        }
        Ok(grads)
    }))
}

/// Columns of a block of the CUDA kernels; the same rule as `tile_cols` in `kernels/tile.cuh`.
pub(super) fn tile_cols(cols: usize) -> usize {
    match cols {
        0..=16 => 16,
        17..=32 => 32,
        _ => 64,
    }
}

/// Rows of a block of the CUDA kernels.
pub(super) const TILE_ROWS: usize = 64;

fn product(layout: Layout, a: &Tensor, b: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "matmul";
    let ([a0, a1], [b0, b1]) = (a.shape().matrix(OP)?, b.shape().matrix(OP)?);
    let (m, k, kb, n, want) = match layout {
        Layout::Nn => (a0, a1, b0, b1, format!("({a1}, N)")),
        Layout::Nt => (a0, a1, b1, b0, format!("(N, {a1})")),
        Layout::Tn => (a1, a0, b0, b1, format!("({a0}, N)")),
    };
    if k != kb {
        return Err(b.shape().refuse(OP, format!("{want} for {:?}", a.shape())));
    }
    if let Some(bias) = bias.filter(|t| t.dims() != [n]) {
        return Err(bias.shape().refuse(OP, format!("a bias of ({n})")));
    }
    let mut c = a.stale_like([m, n])?;
    match a.device() {
        Device::Cpu if a.dtype() == Dtype::F32 => {
            let (a, b) = (a.host::<f32>(OP)?, b.host::<f32>(OP)?);
            let bias = bias.map(|t| t.host::<f32>(OP)).transpose()?;
            fast::product(layout, c.host_mut::<f32>(OP)?, a, b, bias, [m, n, k]);
        }
        Device::Cpu => on_real!(OP, a, T => {
            let (a, b) = (a.host::<T>(OP)?, b.host::<T>(OP)?);
            let bias = bias.map(|t| t.host::<T>(OP)).transpose()?;
            cpu::product(layout, c.host_mut::<T>(OP)?, a, b, bias, [m, n, k]);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let l = Launch::grid(n.div_ceil(tile_cols(n)), m.div_ceil(TILE_ROWS), 1, 256);
            let (a, b) = (a.buf::<f32>(OP)?, b.buf::<f32>(OP)?);
            let (on, bias) = (i32::from(bias.is_some()), bias.map_or(Ok(b), |t| t.buf(OP))?);
            let (c, m, n, k) = (c.buf_mut(OP)?, m as i32, n as i32, k as i32);
            match layout {
                Layout::Nn => launch::gemm_nn_f32(cuda, l, c, a, b, bias, m, n, k, on)?,
                Layout::Nt => launch::gemm_nt_f32(cuda, l, c, a, b, bias, m, n, k, on)?,
                Layout::Tn => launch::gemm_tn_f32(cuda, l, c, a, b, bias, m, n, k, on)?,
            }
        }
    }
    Ok(c)
}

mod cpu {
    use super::{Layout, Real};

    /// c (m, n) = sums in f64, one element after another.
    pub fn product<T: Real>(layout: Layout, c: &mut [T], a: &[T], b: &[T], bias: Option<&[T]>, [m, n, k]: [usize; 3]) {
        for i in 0..m {
            for j in 0..n {
                let mut sum = bias.map_or(0.0, |b| b[j].f64());
                for p in 0..k {
                    let x = if layout == Layout::Tn { a[p * m + i] } else { a[i * k + p] };
                    let y = if layout == Layout::Nt { b[j * k + p] } else { b[p * n + j] };
                    sum += x.f64() * y.f64();
                }
                c[i * n + j] = T::of(sum);
            }
        }
    }
}

mod fast {
    use super::Layout;
    use crate::device::microkernel::{Panels, product as rows, product_tn};

    /// The same on packed panels.
    pub fn product(layout: Layout, c: &mut [f32], a: &[f32], b: &[f32], bias: Option<&[f32]>, [m, n, k]: [usize; 3]) {
        match layout {
            Layout::Nn => rows(c, a, &Panels::in_place(b, k, n), bias),
            Layout::Nt => rows(c, a, &Panels::from_cols(b, k, n), bias),
            Layout::Tn => product_tn(c, a, b, m, n, k),
        }
    }
}

const fn case(name: &'static str, inputs: &'static [Arg], run: fn(&[Tensor]) -> Result<Tensor>, mnk: [u64; 3]) -> Case {
    let [m, n, k] = mnk;
    Case { name, inputs, run, sum: longest([k, n, m]), flops: 2 * m * n * k, bytes: 4 * (m * k + k * n + m * n) }
}

/// Shapes every suite runs these operations on.
pub const CASES: &[Case] = &[
    case(
        "matmul_nn/5x3x7",
        &[Arg::Diff(&[5, 7], -1.0, 1.0), Arg::Diff(&[7, 3], -1.0, 1.0)],
        |x| matmul_nn(&x[0], &x[1]),
        [5, 3, 7],
    ),
    case(
        "matmul_nn/1x1x1",
        &[Arg::Diff(&[1, 1], 0.5, 1.0), Arg::Diff(&[1, 1], 0.5, 1.0)],
        |x| matmul_nn(&x[0], &x[1]),
        [1, 1, 1],
    ),
    case(
        "matmul_nt/5x3x7",
        &[Arg::Diff(&[5, 7], -1.0, 1.0), Arg::Diff(&[3, 7], -1.0, 1.0)],
        |x| matmul_nt(&x[0], &x[1]),
        [5, 3, 7],
    ),
    case(
        "matmul_tn/33x5x17",
        &[Arg::Diff(&[17, 33], -1.0, 1.0), Arg::Diff(&[17, 5], -1.0, 1.0)],
        |x| matmul_tn(&x[0], &x[1]),
        [33, 5, 17],
    ),
    case(
        "linear/4x6x9",
        &[Arg::Diff(&[4, 9], -1.0, 1.0), Arg::Diff(&[6, 9], -1.0, 1.0), Arg::Diff(&[6], -1.0, 1.0)],
        |x| linear(&x[0], &x[1], Some(&x[2])),
        [4, 6, 9],
    ),
];

/// Real shapes and tile borders, for device agreement and benchmarks.
pub const LARGE: &[Case] = &[
    case(
        "linear/128x50x320",
        &[Arg::Diff(&[128, 320], -1.0, 1.0), Arg::Diff(&[50, 320], -1.0, 1.0), Arg::Diff(&[50], -1.0, 1.0)],
        |x| linear(&x[0], &x[1], Some(&x[2])),
        [128, 50, 320],
    ),
    case(
        "linear/128x10x50",
        &[Arg::Diff(&[128, 50], -1.0, 1.0), Arg::Diff(&[10, 50], -1.0, 1.0), Arg::Diff(&[10], -1.0, 1.0)],
        |x| linear(&x[0], &x[1], Some(&x[2])),
        [128, 10, 50],
    ),
    case(
        "matmul_nn/65x65x65",
        &[Arg::Diff(&[65, 65], -1.0, 1.0), Arg::Diff(&[65, 65], -1.0, 1.0)],
        |x| matmul_nn(&x[0], &x[1]),
        [65, 65, 65],
    ),
    case(
        "matmul_nt/64x17x16",
        &[Arg::Diff(&[64, 16], -1.0, 1.0), Arg::Diff(&[17, 16], -1.0, 1.0)],
        |x| matmul_nt(&x[0], &x[1]),
        [64, 17, 16],
    ),
    case(
        "matmul_tn/63x31x15",
        &[Arg::Diff(&[15, 63], -1.0, 1.0), Arg::Diff(&[15, 31], -1.0, 1.0)],
        |x| matmul_tn(&x[0], &x[1]),
        [63, 31, 15],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_shapes_name_both() {
        let t = |s: [usize; 2]| Tensor::zeros(&Device::Cpu, s, Dtype::F32).unwrap();
        let e = matmul_nn(&t([2, 3]), &t([4, 5])).unwrap_err().to_string();
        assert!(e.contains("(2, 3)") && e.contains("(4, 5)"), "{e}");
        let b = Tensor::zeros(&Device::Cpu, [4], Dtype::F32).unwrap();
        assert!(linear(&t([2, 3]), &t([5, 3]), Some(&b)).is_err());
    }

    #[test]
    fn empty_products() {
        let t = |s: [usize; 2]| Tensor::zeros(&Device::Cpu, s, Dtype::F32).unwrap();
        assert_eq!(matmul_nn(&t([0, 3]), &t([3, 5])).unwrap().dims(), [0, 5]);
        let b = Tensor::new(&Device::Cpu, [2], &[1.5f32, -2.0]).unwrap();
        let y = linear(&t([2, 0]), &t([2, 0]), Some(&b)).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [1.5, -2.0, 1.5, -2.0]);
    }
}
