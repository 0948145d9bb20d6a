//! Activations, element by element: σ(x) = 1 / (1 + e^−x), tanh x, leaky relu (x, or s·x where x < 0), and clamping to
//! [low, high].
//!
//! Backward, from the output: dσ = dy·y·(1 − y); d tanh = dy·(1 − y)·(1 + y); leaky relu dy where y > 0, else s·dy (so
//! the slope at 0 is s). Clamping passes dy where low ≤ x ≤ high, else 0. Shapes are kept, and so is a NaN.

use super::elementwise::cpu;
use super::{Arg, Case};
use crate::device::{Device, Launch, launch};
use crate::tensor::Tensor;
use crate::{Error, Result, on_real};

/// y = 1 / (1 + e^−x).
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    apply("sigmoid", x, Function::Sigmoid)
}

/// y = tanh x.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    apply("tanh", x, Function::Tanh)
}

/// y = x, or slope·x where x < 0; the slope is at least 0, so that the sign of y is that of x.
pub fn leaky_relu(x: &Tensor, slope: f32) -> Result<Tensor> {
    if !(slope >= 0.0 && slope.is_finite()) {
        let why = format!("the slope must be a number of at least 0, not {slope}");
        return Err(Error::Config { key: "leaky_relu".into(), why });
    }
    apply("leaky_relu", x, Function::Leaky(slope))
}

/// y = x within [low, high], outside of it the nearer limit, which has no gradient.
pub fn clamp(x: &Tensor, low: f32, high: f32) -> Result<Tensor> {
    // A NaN as a limit is refused too.
    if !matches!(low.partial_cmp(&high), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
        let why = format!("the limits must be two numbers in order, not {low} and {high}");
        return Err(Error::Config { key: "clamp".into(), why });
    }
    apply("clamp", x, Function::Clamp(low, high))
}

#[derive(Clone, Copy)]
enum Function {
    Sigmoid,
    Tanh,
    Leaky(f32),
    Clamp(f32, f32),
}

fn apply(op: &'static str, x: &Tensor, f: Function) -> Result<Tensor> {
    let y = forward(op, x, f)?;
    let saved = if matches!(f, Function::Clamp(..)) { x.detach() } else { y.detach() };
    Ok(y.with_grad(op, &[x], move |dy, need| Ok(vec![need.then(0, || backward(op, dy, &saved, f))?])))
}

fn forward(op: &'static str, x: &Tensor, f: Function) -> Result<Tensor> {
    let (mut y, n) = (x.like()?, x.len());
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            let (y, x) = (y.host_mut::<T>(op)?, x.host::<T>(op)?);
            match f {
                Function::Sigmoid => cpu::map(y, x, sigmoid_of),
                Function::Tanh => cpu::map(y, x, f64::tanh),
                Function::Leaky(s) => cpu::map(y, x, |x| if x < 0.0 { f64::from(s) * x } else { x }),
                Function::Clamp(low, high) => cpu::map(y, x, |x| x.clamp(low.into(), high.into())),
            }
            Ok(())
        })?,
        Device::Cuda(c) => {
            let (l, y, x, n) = (Launch::elements(n.div_ceil(4)), y.buf_mut(op)?, x.buf(op)?, n as i32);
            match f {
                Function::Sigmoid => launch::sigmoid_fwd_f32(c, l, y, x, n)?,
                Function::Tanh => launch::tanh_fwd_f32(c, l, y, x, n)?,
                Function::Leaky(slope) => launch::leaky_relu_fwd_f32(c, l, y, x, n, slope)?,
                Function::Clamp(low, high) => launch::clamp_fwd_f32(c, l, y, x, n, low, high)?,
            }
        }
    }
    Ok(y)
}

/// dx from dy and what `apply` saved: y, or x of a clamp.
fn backward(op: &'static str, dy: &Tensor, saved: &Tensor, f: Function) -> Result<Tensor> {
    let (mut dx, n) = (dy.like()?, dy.len());
    match dy.device() {
        Device::Cpu => on_real!(op, dy, T => {
            let (dx, dy, saved) = (dx.host_mut::<T>(op)?, dy.host::<T>(op)?, saved.host::<T>(op)?);
            match f {
                Function::Sigmoid => cpu::zip(dx, dy, saved, |dy, y| dy * y * (1.0 - y)),
                Function::Tanh => cpu::zip(dx, dy, saved, |dy, y| dy * (1.0 - y) * (1.0 + y)),
                Function::Leaky(s) => cpu::zip(dx, dy, saved, |dy, y| if y > 0.0 { dy } else { f64::from(s) * dy }),
                Function::Clamp(low, high) => {
                    let range = f64::from(low)..=f64::from(high);
                    cpu::zip(dx, dy, saved, |dy, x| if range.contains(&x) { dy } else { 0.0 });
                }
            }
            Ok(())
        })?,
        Device::Cuda(c) => {
            let (l, n) = (Launch::elements(n.div_ceil(4)), n as i32);
            let (dx, dy, saved) = (dx.buf_mut(op)?, dy.buf(op)?, saved.buf(op)?);
            match f {
                Function::Sigmoid => launch::sigmoid_bwd_f32(c, l, dx, dy, saved, n)?,
                Function::Tanh => launch::tanh_bwd_f32(c, l, dx, dy, saved, n)?,
                Function::Leaky(slope) => launch::leaky_relu_bwd_f32(c, l, dx, dy, saved, n, slope)?,
                Function::Clamp(low, high) => launch::clamp_bwd_f32(c, l, dx, dy, saved, n, low, high)?,
            }
        }
    }
    Ok(dx)
}

/// σ(x) without overflow and without losing small results.
pub(super) fn sigmoid_of(x: f64) -> f64 {
    let z = (-x.abs()).exp();
    if x < 0.0 { z / (1.0 + z) } else { 1.0 / (1.0 + z) }
}

macro_rules! case {
    ($name:literal, [$($d:literal),*], $range:literal, $f:expr) => {
        case!($name, Arg::Diff(&[$($d),*], -$range, $range), 1 $(* $d)*, $f)
    };
    ($name:literal, kinked [$($d:literal),*], $range:literal, $f:expr) => {
        case!($name, Arg::Kinked(&[$($d),*], 0.05, $range), 1 $(* $d)*, $f)
    };
    ($name:literal, $arg:expr, $n:expr, $f:expr) => {
        // A transcendental function counts as one operation here.
        Case { name: $name, inputs: &[$arg], run: |x| $f(&x[0]), sum: 1, flops: $n, bytes: 2 * 4 * $n }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("sigmoid/5x51", [5, 51], 6.0, sigmoid),
    case!("sigmoid/33x31", [33, 31], 2.0, sigmoid),
    case!("tanh/5x51", [5, 51], 3.0, tanh),
    case!("tanh/4x64", [4, 64], 1.0, tanh),
    case!("leaky_relu/5x51", kinked [5, 51], 2.0, |x| leaky_relu(x, 0.2)),
    case!("leaky_relu/1x1030", kinked [1, 1030], 2.0, |x| leaky_relu(x, 0.01)),
    case!("clamp/7x39", [7, 39], 2.0, |x| clamp(x, -1.25, 0.75)),
];

/// Real sizes, for device agreement and benchmarks: the output of VAAL's decoder and a layer of its encoder.
pub(super) const LARGE: &[Case] = &[
    case!("sigmoid/128x784", [128, 784], 4.0, sigmoid),
    case!("tanh/128x784", [128, 784], 2.0, tanh),
    case!("leaky_relu/16x16x16x128", kinked [16, 16, 16, 128], 2.0, |x| leaky_relu(x, 0.2)),
    case!("clamp/128x784", [128, 784], 2.0, |x| clamp(x, -1.25, 0.75)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(v: &[f32], f: impl Fn(&Tensor) -> Result<Tensor>) -> (Vec<f32>, Vec<f32>) {
        let x = Tensor::new(&Device::Cpu, [v.len()], v).unwrap().tracked();
        let y = f(&x).unwrap();
        let dy = Tensor::new(&Device::Cpu, [v.len()], &vec![1.0f32; v.len()]).unwrap();
        let g = y.grad_from(&dy, &[&x]).unwrap();
        (y.to_vec().unwrap(), g.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn far_from_zero_at_zero_and_at_nan() {
        let v = [-200.0f32, -80.0, 0.0, -0.0, 80.0, 200.0, f32::NAN, f32::INFINITY];
        let (y, dx) = of(&v, sigmoid);
        assert_eq!([y[0], y[2], y[3], y[4], y[7]], [0.0, 0.5, 0.5, 1.0, 1.0]);
        assert!(y[1] > 1e-35 && y[1] < 1e-34 && y[6].is_nan() && dx[7] == 0.0, "{y:?}");
        let (y, dx) = of(&v, tanh);
        assert!(y[0] == -1.0 && y[5] == 1.0 && y[6].is_nan() && dx[5] == 0.0 && dx[2] == 1.0);
        let (y, dx) = of(&v, |x| leaky_relu(x, 0.25));
        assert!(y[0] == -50.0 && y[5] == 200.0 && y[6].is_nan());
        assert_eq!(dx[..6], [0.25, 0.25, 0.25, 0.25, 1.0, 1.0]);
        let (y, dx) = of(&v, |x| clamp(x, -80.0, 90.0));
        assert!(y[0] == -80.0 && y[5] == 90.0 && y[6].is_nan());
        assert_eq!(dx[..6], [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn impossible_slopes_and_limits_are_refused() {
        let x = Tensor::zeros(&Device::Cpu, [3], crate::tensor::Dtype::F32).unwrap();
        for slope in [-0.1, f32::NAN, f32::INFINITY] {
            assert!(leaky_relu(&x, slope).is_err(), "{slope}");
        }
        for (low, high) in [(1.0, 0.5), (f32::NAN, 1.0), (0.0, f32::NAN)] {
            assert!(clamp(&x, low, high).is_err(), "{low} {high}");
        }
        assert!(clamp(&x, 0.0, 0.0).is_ok());
    }
}
