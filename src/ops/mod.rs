//! Operations. One family = one file here and one file in `kernels/`; each reads in this order: formulas,
//! public functions with their backward rules, dispatch, plain CPU loops (the specification), fast CPU code where
//! it counts, test cases, tests that are special to the family.
//!
//! Conventions: outputs, inputs, sizes, scalars, random key. Gradients are `dx`, `dw`, `dy`.

mod activation;
mod augment;
mod batchnorm;
mod conv2d;
mod critic;
pub(crate) mod distance;
mod dropout;
mod elementwise;
mod loss;
mod matmul;
mod mc;
mod mixmatch;
mod normal;
mod norms;
mod optim;
mod pool;
mod ranking;
mod reduce;
mod rows;
mod shape;
mod softmax;
mod topk;

pub use activation::{clamp, leaky_relu, sigmoid, tanh};
pub use augment::{View, gather_images};
pub use batchnorm::{BatchStats, ChunkSums, Then, batch_norm, batch_norm_eval, batch_norm_update};
pub use conv2d::{Conv, conv_transpose2d, conv2d, conv2d_dgrad, conv2d_with_sums};
pub use critic::{between, gate, score_and_slope, sigmoid_slope, uniform_scores};
pub use distance::{nearest_update, pairwise_sq};
pub use dropout::{dropout, dropout_channels, dropout_examples};
pub(crate) use elementwise::narrow_into;
pub use elementwise::{add, add_bias, cast, mul, relu, scale};
pub use loss::{bce_with_logits, gauss_kl, kl_soft, mse};
pub use matmul::{linear, matmul_nn, matmul_nt, matmul_tn};
pub use mc::{McRule, McSums, mc_scores};
pub use mixmatch::{Mixtures, Rise, guess, margin_of_mean, mix_images, mix_targets, mixmatch_loss};
pub use normal::{normals, reparameterize};
pub use norms::{normalize_rows, row_norms};
pub use optim::{AdamRule, SgdEmaRule, adam_step, copy_into, ema_step, sgd_ema_step, sgd_step, shrink_step};
pub use pool::{Pool, avg_pool2d, max_pool2d};
pub use ranking::ranking_loss;
pub use reduce::{max_cols, mean_all, sum_all, sum_cols, sum_rows};
pub use rows::{gather_labels, gather_rows};
pub use shape::{concat_cols, concat_rows, slice_cols, slice_rows};
pub use softmax::{
    argmax_rows, count_correct, cross_entropy, cross_entropy_each, cross_entropy_soft, entropy, least_confidence,
    log_softmax, margin, softmax, write_loss,
};
pub use topk::{argmax, top_k};
pub(crate) use topk::{sort_keys, sorted_room};

use half::bf16;

use crate::Result;
use crate::device::Device;
use crate::rng::{Purpose, Rng, lane_of};
use crate::tensor::{Dtype, Tensor};

/// How one input of a case is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// Uniform in [lo, hi), differentiable.
    Diff(&'static [usize], f32, f32),
    /// Uniform in [lo, hi), not differentiable.
    Fixed(&'static [usize], f32, f32),
    /// Uniform in [-hi, -lo] ∪ [lo, hi], differentiable: keeps away from a kink at zero.
    Kinked(&'static [usize], f32, f32),
    /// Integers in [0, n), as u32.
    Ids(&'static [usize], u32),
}

/// One case drives four suites: gradient check, golden values, device agreement, benchmark.
pub struct Case {
    /// `softmax/7x33`: also the fixture key and the benchmark id.
    pub name: &'static str,
    /// The inputs in order.
    pub inputs: &'static [Arg],
    /// The operation.
    pub run: fn(&[Tensor]) -> Result<Tensor>,
    /// Length of the longest sum behind one output or gradient element: the f32 tolerance is a small multiple of
    /// this times the rounding unit.
    pub sum: usize,
    /// Floating-point operations of the forward pass.
    pub flops: u64,
    /// Compulsory traffic of the forward pass: each input read once, each output written once.
    pub bytes: u64,
}

impl Case {
    /// True for the operations that exist in bf16.
    pub fn in_bf16(&self) -> bool {
        let families =
            ["add/", "mul/", "relu/", "sum_rows/", "conv2d/", "batch_norm", "max_pool2d", "avg_pool2d", "dropout"];
        families.iter().any(|f| self.name.starts_with(f))
    }

    /// The inputs on `device` as `dtype` floats; the same numbers everywhere, from the case's name.
    pub fn make(&self, device: &Device, dtype: Dtype) -> Result<Vec<Tensor>> {
        self.inputs.iter().enumerate().map(|(i, a)| self.input(device, dtype, i, *a)).collect()
    }

    /// The random stream of input `i` (63 is the gradient of the output).
    pub fn stream(&self, i: u32) -> Rng {
        Rng::new(u64::from(lane_of(self.name))).at(Purpose::Select, 0, 0).lane(i)
    }

    fn input(&self, device: &Device, dtype: Dtype, i: usize, a: Arg) -> Result<Tensor> {
        let r = self.stream(i as u32);
        let (shape, values): (&[usize], Vec<f32>) = match a {
            Arg::Ids(shape, n) => {
                let len = shape.iter().product::<usize>() as u64;
                let ids: Vec<u32> = (0..len).map(|e| ((u64::from(r.u32(e)) * u64::from(n)) >> 32) as u32).collect();
                return Tensor::new(device, shape, &ids);
            }
            Arg::Diff(shape, lo, hi) | Arg::Fixed(shape, lo, hi) => {
                let len = shape.iter().product::<usize>() as u64;
                (shape, (0..len).map(|e| lo + (hi - lo) * r.uniform(e)).collect())
            }
            Arg::Kinked(shape, lo, hi) => {
                let len = shape.iter().product::<usize>() as u64;
                let one = |u: f32| if u < 0.5 { -lo - (hi - lo) * 2.0 * u } else { lo + (hi - lo) * (2.0 * u - 1.0) };
                (shape, (0..len).map(|e| one(r.uniform(e))).collect())
            }
        };
        let t = match dtype {
            Dtype::F64 => Tensor::new(device, shape, &values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())?,
            // What belongs to a channel stays f32.
            Dtype::Bf16 if shape.len() > 1 => {
                Tensor::new(device, shape, &values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>())?
            }
            _ => Tensor::new(device, shape, &values)?,
        };
        Ok(if matches!(a, Arg::Fixed(..)) { t } else { t.tracked() })
    }

    /// A random gradient for the output: never a plain sum, which a wrong softmax would pass.
    pub fn cotangent(&self, y: &Tensor) -> Result<Tensor> {
        let r = self.stream(63);
        let v: Vec<f32> = (0..y.len() as u64).map(|e| 2.0 * r.uniform(e) - 1.0).collect();
        match y.dtype() {
            Dtype::F64 => {
                Tensor::new(y.device(), y.shape().clone(), &v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>())
            }
            Dtype::Bf16 => {
                Tensor::new(y.device(), y.shape().clone(), &v.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>())
            }
            _ => Tensor::new(y.device(), y.shape().clone(), &v),
        }
    }
}

/// `Case::sum` from the lengths of the sums: of the output, then of the gradients of two inputs.
const fn longest([y, a, b]: [u64; 3]) -> usize {
    let gradients = if a > b { a } else { b };
    (if y > gradients { y } else { gradients }) as usize
}

/// The cases of every family.
pub fn cases() -> Vec<&'static Case> {
    let families: [&'static [Case]; 19] = [
        elementwise::CASES,
        reduce::CASES,
        matmul::CASES,
        conv2d::CASES,
        pool::CASES,
        batchnorm::CASES,
        softmax::CASES,
        dropout::CASES,
        rows::CASES,
        distance::CASES,
        activation::CASES,
        loss::CASES,
        shape::CASES,
        norms::CASES,
        normal::CASES,
        ranking::CASES,
        critic::CASES,
        mixmatch::CASES,
        conv2d::TRANSPOSED,
    ];
    families.into_iter().flatten().collect()
}

/// Cases of real size, for device agreement and benchmarks.
pub fn large_cases() -> Vec<&'static Case> {
    let families: [&'static [Case]; 17] = [
        reduce::LARGE,
        matmul::LARGE,
        conv2d::LARGE,
        pool::LARGE,
        batchnorm::LARGE,
        softmax::LARGE,
        dropout::LARGE,
        rows::LARGE,
        activation::LARGE,
        loss::LARGE,
        shape::LARGE,
        norms::LARGE,
        normal::LARGE,
        mixmatch::LARGE,
        conv2d::TRANSPOSED_LARGE,
        distance::LARGE,
        critic::LARGE,
    ];
    families.into_iter().flatten().collect()
}

/// bf16 on the CPU: the f32 operation `f` on the same values, its result and the gradients rounded.
fn rounded<const N: usize>(x: [&Tensor; N], f: impl FnOnce([&Tensor; N]) -> Result<Tensor>) -> Result<Tensor> {
    let wide: Vec<Tensor> = x.iter().map(|x| cast(x, Dtype::F32)).collect::<Result<_>>()?;
    cast(&f(std::array::from_fn(|i| &wide[i]))?, Dtype::Bf16)
}

/// bf16 weights as f32 without rounding their gradient: it belongs to the master weights.
fn widen_weights(w: &Tensor) -> Result<Tensor> {
    Ok(cast(&w.detach(), Dtype::F32)?
        .with_grad("widen_weights", &[w], |dw, need| Ok(vec![need.then(0, || Ok(dw.clone()))?])))
}

/// A tensor of ones shaped like `y`, which must be a scalar: the start of a backward pass.
pub(crate) fn ones_for(y: &Tensor, op: &'static str) -> Result<Tensor> {
    if y.len() != 1 {
        return Err(y.shape().refuse(op, "a scalar; give the gradient of anything larger with grad_from"));
    }
    let mut one = y.like()?;
    match y.device() {
        Device::Cpu if y.dtype() == Dtype::F64 => one.host_mut::<f64>(op)?.fill(1.0),
        Device::Cpu => one.host_mut::<f32>(op)?.fill(1.0),
        Device::Cuda(_) => elementwise::fill(&mut one, 1.0)?,
    }
    Ok(one)
}
