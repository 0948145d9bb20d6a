//! Element by element: y = a + b, y = s·x, y = a ⊙ b, y = relu(x), and adding a bias to every row.
//!
//! Backward: d(a + b) = (dy, dy); d(s·x) = s·dy; d(a ⊙ b) = (b ⊙ dy, a ⊙ dy); d relu(x) = dy where y > 0, else 0
//! (so relu'(0) = 0); d(x + b) = (dy, Σ_rows dy). Shapes are kept; a bias is (C) for x (…, C).
//!
//! Casts between f32 and bf16 (to the nearest, ties to even); the gradient is cast back.

use half::bf16;

use super::{Arg, Case, rounded, sum_rows};
use crate::device::{Device, Launch, cpu as threads, launch};
use crate::tensor::{Buf, Dtype, Elem, Real, Tensor};
use crate::{Error, Result, on_real, on_stored};

/// y = a + b, of equal shape.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.is_rounded() {
        return rounded([a, b], |[a, b]| add(a, b));
    }
    let y = zip("add", a, b, Zip::Add)?;
    Ok(y.with_grad("add", &[a, b], |dy, need| {
        Ok(vec![need.then(0, || Ok(dy.clone()))?, need.then(1, || Ok(dy.clone()))?])
    }))
}

/// y = a ⊙ b, of equal shape.
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.is_rounded() {
        return rounded([a, b], |[a, b]| mul(a, b));
    }
    let y = zip("mul", a, b, Zip::Mul)?;
    let (sa, sb) = (a.detach(), b.detach());
    Ok(y.with_grad("mul", &[a, b], move |dy, need| {
        Ok(vec![need.then(0, || zip("mul", dy, &sb, Zip::Mul))?, need.then(1, || zip("mul", dy, &sa, Zip::Mul))?])
    }))
}

/// y = s·x.
pub fn scale(x: &Tensor, s: f32) -> Result<Tensor> {
    let y = scale_fwd(x, s)?;
    Ok(y.with_grad("scale", &[x], move |dy, need| Ok(vec![need.then(0, || scale_fwd(dy, s))?])))
}

/// y = max(x, 0).
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if x.is_rounded() {
        return rounded([x], |[x]| relu(x));
    }
    let y = relu_fwd(x)?;
    let saved = y.detach();
    Ok(y.with_grad("relu", &[x], move |dy, need| Ok(vec![need.then(0, || relu_bwd(dy, &saved))?])))
}

/// dy where y > 0, else 0.
pub(super) fn relu_bwd(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    zip("relu_bwd", dy, y, Zip::ReluBwd)
}

/// y = x + b for every row: x (…, C), b (C).
pub fn add_bias(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = add_bias_fwd(x, b)?;
    let shape = x.shape().clone();
    Ok(y.with_grad("add_bias", &[x, b], move |dy, need| {
        let rows = || {
            let (m, c) = shape.rows("add_bias")?;
            sum_rows(&dy.detach().reshape([m, c])?)
        };
        Ok(vec![need.then(0, || Ok(dy.clone()))?, need.then(1, rows)?])
    }))
}

/// The same values as f32, or rounded to bf16.
pub fn cast(x: &Tensor, to: Dtype) -> Result<Tensor> {
    let from = x.dtype();
    if from == to {
        return Ok(x.clone());
    }
    let y = cast_fwd(x, to)?;
    Ok(y.with_grad("cast", &[x], move |dy, need| Ok(vec![need.then(0, || cast_fwd(dy, from))?])))
}

fn cast_fwd(x: &Tensor, to: Dtype) -> Result<Tensor> {
    let op = "cast";
    let (mut y, n) = (Tensor::stale(x.device(), x.shape().clone(), to)?, x.len());
    match (x.device(), to) {
        (Device::Cpu, Dtype::Bf16) => cpu::cast(y.host_mut(op)?, x.host::<f32>(op)?, |x| bf16::from_f32(*x)),
        (Device::Cpu, Dtype::F32) => cpu::cast(y.host_mut(op)?, x.host::<bf16>(op)?, |x| x.to_f32()),
        (Device::Cuda(c), Dtype::Bf16) => {
            launch::narrow(c, Launch::vectors::<f32>(n), y.buf_mut(op)?, x.buf(op)?, n as i32)?;
        }
        (Device::Cuda(c), Dtype::F32) => {
            launch::widen(c, Launch::vectors::<f32>(n), y.buf_mut(op)?, x.buf(op)?, n as i32)?;
        }
        (_, got) => return Err(Error::Dtype { op, want: Dtype::Bf16, got }),
    }
    Ok(y)
}

/// to = from, rounded to bf16: `n` elements of two arenas.
pub(crate) fn narrow_into(to: &mut Buf<bf16>, from: &Buf<f32>, device: &Device) -> Result<()> {
    let (op, n) = ("cast", from.len());
    match device {
        Device::Cpu => cpu::cast(to.host_mut(op)?, from.host(op)?, |x| bf16::from_f32(*x)),
        Device::Cuda(c) => launch::narrow(c, Launch::vectors::<f32>(n), to, from, n as i32)?,
    }
    Ok(())
}

/// Overwrites a fresh tensor with one value.
pub(crate) fn fill(y: &mut Tensor, value: f32) -> Result<()> {
    let n = y.len();
    match y.device().clone() {
        Device::Cpu => y.host_mut::<f32>("fill")?.fill(value),
        Device::Cuda(c) => launch::fill_f32(&c, Launch::elements(n), y.buf_mut("fill")?, n as i32, value)?,
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Zip {
    Add,
    Mul,
    ReluBwd,
}

fn zip(op: &'static str, a: &Tensor, b: &Tensor, how: Zip) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(b.shape().refuse(op, format!("{:?}, as the other input", a.shape())));
    }
    let (mut y, n) = (a.like()?, a.len());
    match a.device() {
        Device::Cpu => on_real!(op, a, T => {
            let (a, b) = (a.host::<T>(op)?, b.host::<T>(op)?);
            let y = y.host_mut::<T>(op)?;
            match how {
                Zip::Add => cpu::zip(y, a, b, |a, b| a + b),
                Zip::Mul => cpu::zip(y, a, b, |a, b| a * b),
                Zip::ReluBwd => cpu::zip(y, a, b, |dy, y| if y > 0.0 { dy } else { 0.0 }),
            }
            Ok(())
        })?,
        Device::Cuda(c) => on_stored!(op, a, S => {
            let (l, y, a, b) = (Launch::vectors::<S>(n), y.buf_mut::<S>(op)?, a.buf(op)?, b.buf(op)?);
            match how {
                Zip::Add => launch::add_fwd(c, l, y, a, b, n as i32),
                Zip::Mul => launch::mul_fwd(c, l, y, a, b, n as i32),
                Zip::ReluBwd => launch::relu_bwd(c, l, y, a, b, n as i32),
            }
        })?,
    }
    Ok(y)
}

fn scale_fwd(x: &Tensor, s: f32) -> Result<Tensor> {
    let (mut y, n) = (x.like()?, x.len());
    match x.device() {
        Device::Cpu => on_real!("scale", x, T => {
            cpu::map(y.host_mut::<T>("scale")?, x.host::<T>("scale")?, |x| f64::from(s) * x);
            Ok(())
        })?,
        Device::Cuda(c) => {
            launch::scale_fwd_f32(c, Launch::vectors::<f32>(n), y.buf_mut("scale")?, x.buf("scale")?, n as i32, s)?;
        }
    }
    Ok(y)
}

fn relu_fwd(x: &Tensor) -> Result<Tensor> {
    let (mut y, n) = (x.like()?, x.len());
    match x.device() {
        // A NaN stays a NaN: it must reach the loss, which stops the run.
        Device::Cpu => on_real!("relu", x, T => {
            cpu::map(y.host_mut::<T>("relu")?, x.host::<T>("relu")?, |x| if x < 0.0 { 0.0 } else { x });
            Ok(())
        })?,
        Device::Cuda(c) => on_stored!("relu", x, S => {
            launch::relu_fwd(c, Launch::vectors::<S>(n), y.buf_mut::<S>("relu")?, x.buf("relu")?, n as i32)
        })?,
    }
    Ok(y)
}

fn add_bias_fwd(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (m, c) = x.shape().rows("add_bias")?;
    if b.dims() != [c] {
        return Err(b.shape().refuse("add_bias", format!("({c})")));
    }
    let mut y = x.like()?;
    match x.device() {
        Device::Cpu => on_real!("add_bias", x, T => {
            let (x, b) = (x.host::<T>("add_bias")?, b.host::<T>("add_bias")?);
            cpu::add_bias(y.host_mut::<T>("add_bias")?, x, b);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let l = Launch::elements(m * c);
            let (y, x, b) = (y.buf_mut("add_bias")?, x.buf("add_bias")?, b.buf("add_bias")?);
            launch::add_bias_fwd_f32(cuda, l, y, x, b, (m * c) as i32, c as i32)?;
        }
    }
    Ok(y)
}

pub(super) mod cpu {
    use super::{Elem, Real, threads};

    /// y[i] = f(x[i])
    pub fn cast<Y: Elem, X: Elem>(y: &mut [Y], x: &[X], f: impl Fn(&X) -> Y + Sync) {
        threads::chunks(y, 1, |at, y| {
            for (y, x) in y.iter_mut().zip(&x[at..]) {
                *y = f(x);
            }
        });
    }

    /// y[i] = f(x[i])
    pub fn map<T: Real>(y: &mut [T], x: &[T], f: impl Fn(f64) -> f64 + Sync) {
        threads::chunks(y, 1, |at, y| {
            for (y, x) in y.iter_mut().zip(&x[at..]) {
                *y = T::of(f(x.f64()));
            }
        });
    }

    /// y[i] = f(a[i], b[i])
    pub fn zip<T: Real>(y: &mut [T], a: &[T], b: &[T], f: impl Fn(f64, f64) -> f64 + Sync) {
        threads::chunks(y, 1, |at, y| {
            for ((y, a), b) in y.iter_mut().zip(&a[at..]).zip(&b[at..]) {
                *y = T::of(f(a.f64(), b.f64()));
            }
        });
    }

    /// y[i][j] = x[i][j] + b[j]; y, x: (M, C), b: (C)
    pub fn add_bias<T: Real>(y: &mut [T], x: &[T], b: &[T]) {
        let c = b.len().max(1);
        threads::chunks(y, c, |at, y| {
            for (y, x) in y.chunks_exact_mut(c).zip(x[at..].chunks_exact(c)) {
                for ((y, x), b) in y.iter_mut().zip(x).zip(b) {
                    *y = T::of(x.f64() + b.f64());
                }
            }
        });
    }
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "add/3x37",
        inputs: &[Arg::Diff(&[3, 37], -2.0, 2.0), Arg::Diff(&[3, 37], -2.0, 2.0)],
        run: |x| add(&x[0], &x[1]),
        sum: 1,
        flops: 111,
        bytes: 3 * 111 * 4,
    },
    Case {
        name: "mul/3x37",
        inputs: &[Arg::Diff(&[3, 37], -2.0, 2.0), Arg::Diff(&[3, 37], -2.0, 2.0)],
        run: |x| mul(&x[0], &x[1]),
        sum: 1,
        flops: 111,
        bytes: 3 * 111 * 4,
    },
    Case {
        name: "scale/257",
        inputs: &[Arg::Diff(&[257], -2.0, 2.0)],
        run: |x| scale(&x[0], -1.75),
        sum: 1,
        flops: 257,
        bytes: 2 * 257 * 4,
    },
    Case {
        name: "relu/5x51",
        inputs: &[Arg::Kinked(&[5, 51], 0.05, 2.0)],
        run: |x| relu(&x[0]),
        sum: 1,
        flops: 255,
        bytes: 2 * 255 * 4,
    },
    Case {
        name: "add_bias/2x3x3x10",
        inputs: &[Arg::Diff(&[2, 3, 3, 10], -2.0, 2.0), Arg::Diff(&[10], -2.0, 2.0)],
        run: |x| add_bias(&x[0], &x[1]),
        sum: 18,
        flops: 180,
        bytes: (2 * 180 + 10) * 4,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relu_at_its_kink_and_at_nan() {
        let x = Tensor::new(&Device::Cpu, [4], &[0.0f32, -0.0, f32::NAN, -1.0]).unwrap().tracked();
        let y = relu(&x).unwrap();
        let v = y.to_vec::<f32>().unwrap();
        assert!(v[0] == 0.0 && v[1] == 0.0 && v[2].is_nan() && v[3] == 0.0);
        let dy = Tensor::new(&Device::Cpu, [4], &[1.0f32; 4]).unwrap();
        let g = y.grad_from(&dy, &[&x]).unwrap();
        assert_eq!(g.of(&x).unwrap().to_vec::<f32>().unwrap()[..2], [0.0, 0.0]);
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let a = Tensor::zeros(&Device::Cpu, [2, 3], crate::tensor::Dtype::F32).unwrap();
        let b = Tensor::zeros(&Device::Cpu, [3, 2], crate::tensor::Dtype::F32).unwrap();
        let e = add(&a, &b).unwrap_err().to_string();
        assert!(e.contains("add") && e.contains("(2, 3)") && e.contains("(3, 2)"), "{e}");
    }
}
