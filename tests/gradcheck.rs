//! Every gradient against central differences, in f64 on the CPU, for a random gradient of the output.

mod common;

use dalcore::device::Device;
use dalcore::ops::{Case, cases};
use dalcore::tensor::{Dtype, Tensor};

const H: f64 = 1e-6;
/// Relative to max(1, |g|). The differences themselves are good to about 1e-9: h² of truncation, and 1e-16 / h of
/// rounding for outputs near one.
const TOLERANCE: f64 = 1e-6;
/// Elements tried per input; of a larger input, evenly spaced ones.
const ELEMENTS: usize = 400;

fn check(case: &Case) -> Vec<String> {
    let x = case.make(&Device::Cpu, Dtype::F64).unwrap();
    let outputs = |x: &[Tensor]| (case.run)(x).unwrap().to_f64().unwrap();
    let all = common::run(case, &Device::Cpu, Dtype::F64);
    let dy = case.cotangent(&all[0].1).unwrap().to_f64().unwrap();
    let mut findings = Vec::new();
    let mut largest = 0.0f64;
    for (i, t) in x.iter().enumerate().filter(|(_, t)| t.is_tracked()) {
        let (_, g) = all.iter().find(|(n, _)| *n == format!("grad{i}")).unwrap();
        let (g, values) = (g.to_f64().unwrap(), t.to_f64().unwrap());
        let tried = values.len().min(ELEMENTS);
        for e in (0..tried).map(|k| k * values.len() / tried) {
            let moved = |by: f64| {
                let mut v = values.clone();
                v[e] += by;
                let mut x = x.clone();
                x[i] = Tensor::new(&Device::Cpu, t.shape().clone(), &v).unwrap();
                outputs(&x)
            };
            let (above, below) = (moved(H), moved(-H));
            // Element by element, so that a large sum does not swallow a small difference.
            let slope = above.iter().zip(&below).zip(&dy).map(|((a, b), dy)| dy * (a - b)).sum::<f64>() / (2.0 * H);
            largest = largest.max(g[e].abs());
            let off = (g[e] - slope).abs();
            // A NaN is a finding too.
            if off.is_nan() || off > TOLERANCE * slope.abs().max(1.0) {
                let name = case.name;
                findings.push(format!("{name}, input {i}, element {e}: gradient {:e}, differences {slope:e}", g[e]));
            }
        }
    }
    let empty = x.iter().filter(|t| t.is_tracked()).all(Tensor::is_empty);
    if largest == 0.0 && !empty && !common::is_zero(&format!("{}/grad0", case.name)) {
        findings.push(format!("{}: every gradient is zero, so nothing was tested", case.name));
    }
    findings.truncate(10);
    findings
}

#[test]
fn gradients_equal_central_differences() {
    common::report("gradient check", cases().into_iter().flat_map(check).collect());
}
