//! The layers of the study's networks as cases: every distinct shape of LeNet and of ResNet-18 with width 16 and 64 on
//! 32-pixel images, at a batch size of one's choice.

use dalcore::nn::Precision;
use dalcore::ops::{self, Arg, Case, Conv, Pool, Then};
use dalcore::tensor::Tensor;
use dalcore::{Error, Result};

/// A case and how often a training step contains it.
pub struct Layer {
    pub case: Case,
    #[allow(dead_code)] // not every benchmark counts
    pub times: usize,
    /// Whether a bf16 run has it in bf16: not what follows the last convolution.
    pub in_bf16: bool,
}

/// Inputs live as long as the program: a benchmark is one.
fn leak<T>(v: Vec<T>) -> &'static [T] {
    Box::leak(v.into_boxed_slice())
}

fn layer(name: String, shapes: &[&[usize]], run: fn(&[Tensor]) -> Result<Tensor>, flops: usize, out: usize) -> Case {
    // A vector belongs to channels: a scale or a bias.
    let inputs: Vec<Arg> = shapes.iter().map(|s| Arg::Diff(leak(s.to_vec()), -1.0, 1.0)).collect();
    let elements = out + shapes.iter().map(|s| s.iter().product::<usize>()).sum::<usize>();
    let name = Box::leak(name.into_boxed_str());
    Case { name, inputs: leak(inputs), run, sum: 1, flops: flops as u64, bytes: 4 * elements as u64 }
}

fn conv(x: &[Tensor], stride: usize, pad: usize) -> Result<Tensor> {
    Ok(ops::conv2d_with_sums(&x[0], &x[1], Conv { stride, pad })?.0)
}

fn norm(x: &[Tensor], residual: bool) -> Result<Tensor> {
    let then = Then { residual: x.get(3).filter(|_| residual), relu: true };
    Ok(ops::batch_norm(&x[0], None, &x[1], &x[2], 1e-5, then)?.0)
}

/// Every distinct shape of the networks, `batch` images at a time.
pub fn layers(batch: usize) -> Vec<Layer> {
    let n = batch;
    let mut all = Vec::new();
    let mut add = |times, case: Case| {
        let at = case.name.rsplit('/').next().unwrap_or_default();
        let in_bf16 = !at.starts_with("fc") && at != "pool";
        all.push(Layer { case, times, in_bf16 });
    };
    // LeNet.
    for (at, h, c, k) in [("conv1", 28, 1, 10), ("conv2", 12, 10, 20)] {
        let p = h - 4;
        let shapes: [&[usize]; 3] = [&[n, h, h, c], &[k, 5, 5, c], &[k]];
        let run: fn(&[Tensor]) -> Result<Tensor> = |x| ops::conv2d(&x[0], &x[1], Some(&x[2]), Conv::default());
        add(1, layer(format!("lenet/{at}"), &shapes, run, 2 * n * p * p * k * 25 * c, n * p * p * k));
        let run: fn(&[Tensor]) -> Result<Tensor> = |x| ops::max_pool2d(&x[0], Pool::square(2));
        add(1, layer(format!("lenet/pool-{at}"), &[&[n, p, p, k]], run, n * p * p * k, n * p * p * k / 4));
    }
    for (at, i, o) in [("fc1", 320, 50), ("fc2", 50, 10)] {
        let run: fn(&[Tensor]) -> Result<Tensor> = |x| ops::linear(&x[0], &x[1], Some(&x[2]));
        add(1, layer(format!("lenet/{at}"), &[&[n, i], &[o, i], &[o]], run, 2 * n * i * o, n * o));
    }
    for width in [16, 64] {
        let net = format!("resnet18-w{width}");
        let conv3: fn(&[Tensor]) -> Result<Tensor> = |x| conv(x, 1, 1);
        let half3: fn(&[Tensor]) -> Result<Tensor> = |x| conv(x, 2, 1);
        let half1: fn(&[Tensor]) -> Result<Tensor> = |x| conv(x, 2, 0);
        let flops = |p: usize, k: usize, depth: usize| 2 * n * p * p * k * depth;
        let stem: [&[usize]; 2] = [&[n, 32, 32, 3], &[width, 3, 3, 3]];
        add(1, layer(format!("{net}/stem"), &stem, conv3, flops(32, width, 27), n * 1024 * width));
        for stage in 0..4usize {
            let (side, k) = (32 >> stage, width << stage);
            let out = n * side * side * k;
            if stage > 0 {
                let (c, from) = (k / 2, side * 2);
                let x: &[usize] = &[n, from, from, c];
                let down: [&[usize]; 2] = [x, &[k, 3, 3, c]];
                add(1, layer(format!("{net}/layer{}-half", stage + 1), &down, half3, flops(side, k, 9 * c), out));
                let down: [&[usize]; 2] = [x, &[k, 1, 1, c]];
                add(1, layer(format!("{net}/layer{}-shortcut", stage + 1), &down, half1, flops(side, k, c), out));
            }
            let same: [&[usize]; 2] = [&[n, side, side, k], &[k, 3, 3, k]];
            let times = if stage > 0 { 3 } else { 4 };
            add(times, layer(format!("{net}/layer{}-conv", stage + 1), &same, conv3, flops(side, k, 9 * k), out));
            let map: &[usize] = &[n, side, side, k];
            let run: fn(&[Tensor]) -> Result<Tensor> = |x| norm(x, false);
            add(3, layer(format!("{net}/layer{}-norm", stage + 1), &[map, &[k], &[k]], run, 8 * out, out));
            let run: fn(&[Tensor]) -> Result<Tensor> = |x| norm(x, true);
            let shapes: [&[usize]; 4] = [map, &[k], &[k], map];
            add(2, layer(format!("{net}/layer{}-norm-add", stage + 1), &shapes, run, 9 * out, out));
        }
        let features = 8 * width;
        let run: fn(&[Tensor]) -> Result<Tensor> = |x| ops::avg_pool2d(&x[0], 4);
        add(1, layer(format!("{net}/pool"), &[&[n, 4, 4, features]], run, 16 * n * features, n * features));
        let run: fn(&[Tensor]) -> Result<Tensor> = |x| ops::linear(&x[0], &x[1], Some(&x[2]));
        let shapes: [&[usize]; 3] = [&[n, features], &[10, features], &[10]];
        add(1, layer(format!("{net}/fc"), &shapes, run, 20 * n * features, n * 10));
    }
    all
}

/// What the variable says: a number, or `otherwise`.
#[allow(dead_code)] // each benchmark is a program of its own and uses some of this file
pub fn number(variable: &str, otherwise: usize) -> Result<usize> {
    let Ok(text) = std::env::var(variable) else { return Ok(otherwise) };
    text.parse().map_err(|_| Error::Config { key: variable.into(), why: format!("'{text}' is not a number") })
}

/// `DALCORE_BENCH_PRECISION`: f32 or bf16.
#[allow(dead_code)]
pub fn precision() -> Result<Precision> {
    match std::env::var("DALCORE_BENCH_PRECISION").as_deref() {
        Err(_) | Ok("f32") => Ok(Precision::F32),
        Ok("bf16") => Ok(Precision::Bf16),
        Ok(other) => {
            let why = format!("'{other}' is neither f32 nor bf16");
            Err(Error::Config { key: "DALCORE_BENCH_PRECISION".into(), why })
        }
    }
}

/// The layer of this name.
#[allow(dead_code)] // each benchmark is a program of its own and uses some of this file
pub fn find(name: &str, batch: usize) -> Result<Layer> {
    let known = layers(batch);
    let names: Vec<&str> = known.iter().map(|l| l.case.name).collect();
    let why = format!("there is no layer '{name}'; known: {}", names.join(" "));
    known.into_iter().find(|l| l.case.name == name).ok_or(Error::Config { key: "layer".into(), why })
}
