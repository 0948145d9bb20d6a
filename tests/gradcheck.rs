//! Every case in f64 on the CPU against central differences, with a random gradient of the output: a plain sum
//! would pass a softmax whose backward is wrong by a factor.

mod common;

use common::{differentiable, outcome};
use dalcore::device::Device;
use dalcore::ops::{Case, cases};
use dalcore::tensor::{Dtype, Tensor};

const H: f64 = 1e-6;

/// Σ y ⊙ dy, the scalar whose gradient the backward pass computes.
fn objective(case: &Case, inputs: &[Tensor]) -> f64 {
    let y = (case.run)(inputs).unwrap();
    let dy = case.cotangent(&y).unwrap().to_f64().unwrap();
    y.to_f64().unwrap().iter().zip(dy).map(|(y, d)| y * d).sum()
}

fn check(case: &Case) -> Result<(), String> {
    let inputs = case.make(&Device::Cpu, Dtype::F64).unwrap();
    let got = outcome(case, &inputs).unwrap();
    let mut seen = 0;
    for (i, arg) in case.inputs.iter().enumerate().filter(|(_, a)| differentiable(a)) {
        let grad = got.grads[i].as_ref().ok_or_else(|| format!("{}: input {i} {arg:?} has no gradient", case.name))?;
        let x = inputs[i].to_f64().unwrap();
        for e in 0..x.len() {
            let at = |delta: f64| {
                let mut moved = x.clone();
                moved[e] += delta;
                let mut inputs = inputs.clone();
                inputs[i] = Tensor::new(&Device::Cpu, inputs[i].shape().clone(), &moved).unwrap();
                objective(case, &inputs)
            };
            let slope = (at(H) - at(-H)) / (2.0 * H);
            // Central differences are good to h² plus the rounding of the objective over h, about 1e-9 here.
            if (slope - grad[e]).abs() > 1e-6 * slope.abs().max(1.0) {
                return Err(format!("{}: input {i} element {e}: backward {} differences {slope}", case.name, grad[e]));
            }
            seen += usize::from(slope.abs() > 1e-3);
        }
    }
    if seen == 0 { Err(format!("{}: every slope is zero", case.name)) } else { Ok(()) }
}

#[test]
fn every_case() {
    let wrong: Vec<String> =
        cases().into_iter().filter(|c| !c.name.contains("/0x")).filter_map(|c| check(c).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
