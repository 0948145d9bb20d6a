//! Every operation, and two training steps of LeNet, against values computed by PyTorch in f64
//! (`tests/fixtures/make.py` writes them again); and the fast f32 code of the CPU against its plain f64 code.

mod common;

use std::collections::BTreeSet;
use std::rc::Rc;

use common::{Tolerance, compare, golden, report, run, worth};
use dalcore::clock::Clock;
use dalcore::device::Device;
use dalcore::nn::lenet::LeNet;
use dalcore::nn::{Ctx, Layout, Mode, Net};
use dalcore::ops::{self, Case, cases, large_cases};
use dalcore::optim::Sgd;
use dalcore::rng::{Purpose, Rng, lane_of};
use dalcore::tensor::{Dtype, Tensor};

fn against_golden(dtype: Dtype) {
    let golden = golden();
    let mut findings = Vec::new();
    for case in cases() {
        for (part, got) in run(case, &Device::Cpu, dtype) {
            let key = format!("{}/{part}", case.name);
            let Some(want) = golden.get(&key) else {
                findings.push(format!("{key}: no golden value; add the case to tests/fixtures and run make.py"));
                continue;
            };
            let t = match dtype {
                Dtype::F64 => Tolerance::golden(),
                _ => Tolerance::f32(case.sum, want),
            };
            findings.extend(compare(&key, got.dims(), &got.to_f64().unwrap(), want, t).err());
            if !common::is_zero(&key) {
                findings.extend(worth(&key, want, t).err());
            }
        }
    }
    report("golden values", findings);
}

#[test]
fn f64_equals_pytorch() {
    against_golden(Dtype::F64);
}

#[test]
fn f32_equals_pytorch() {
    against_golden(Dtype::F32);
}

#[test]
fn no_golden_value_without_a_case() {
    let known: BTreeSet<&str> = cases().iter().map(|c| c.name).collect();
    let extra = |k: &String| !k.starts_with("lenet/") && !known.contains(k.rsplit_once('/').unwrap().0);
    let lost: Vec<String> = golden().into_keys().filter(extra).collect();
    assert!(lost.is_empty(), "no case has these golden values any more: {lost:?}");
}

/// What real runs use (f32, vectorised, threaded) against the specification (f64, plain loops).
#[test]
fn cpu_fast_equals_cpu_spec() {
    let check = |case: &Case| {
        let (fast, spec) = (run(case, &Device::Cpu, Dtype::F32), run(case, &Device::Cpu, Dtype::F64));
        let mut findings = Vec::new();
        for ((part, fast), (_, spec)) in fast.iter().zip(&spec) {
            let key = format!("{}/{part}", case.name);
            let want = spec.to_f64().unwrap();
            let t = Tolerance::f32(case.sum, &want);
            findings.extend(compare(&key, spec.dims(), &fast.to_f64().unwrap(), &want, t).err());
            if !common::is_zero(&key) {
                findings.extend(worth(&key, &want, t).err());
            }
        }
        findings
    };
    report("cpu fast against cpu spec", cases().into_iter().chain(large_cases()).flat_map(check).collect());
}

/// Norm, product with a Philox vector, up to 32 evenly spaced entries; as `digest` in tests/fixtures/lenet.py.
fn digest(values: &[f32], index: usize) -> Vec<f64> {
    let v: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    let r = Rng::new(u64::from(lane_of("lenet_step"))).at(Purpose::Select, 0, 0).lane(index as u32);
    let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let dot = v.iter().enumerate().map(|(e, v)| v * (2.0 * f64::from(r.uniform(e as u64)) - 1.0)).sum();
    let n = v.len().min(32);
    [norm, dot].into_iter().chain((0..n).map(|e| v[e * v.len() / n])).collect()
}

/// Forward, loss, backward and SGD with momentum, decay and clamp; the second step depends on the velocity of the
/// first and has other dropout masks.
#[test]
fn lenet_step_equals_pytorch() {
    const BATCH: usize = 16;
    let (device, golden, root) = (Device::Cpu, golden(), Rng::new(10));
    let pixels = root.at(Purpose::Synthetic, 0, 0);
    let x: Vec<f32> = (0..(BATCH * 784) as u64).map(|e| 3.0 * pixels.uniform(e) - 0.5).collect();
    let x = Tensor::new(&device, [BATCH, 28, 28, 1], &x).unwrap();
    let labels: Vec<u32> = (0..BATCH as u64).map(|e| ((u64::from(pixels.lane(1).u32(e)) * 10) >> 32) as u32).collect();
    let labels = Tensor::new(&device, [BATCH], &labels).unwrap();

    let mut layout = Layout::default();
    let net = LeNet::new(&mut layout, 10);
    let mut params = layout.init(&device, root.at(Purpose::Init, 3, 0)).unwrap();
    let mut sgd = Sgd::new(&params, 0.9, 5e-4, Some(0.1)).unwrap();
    let clock = Rc::new(Clock::new(&device).unwrap());
    clock.start(0, 0, 0.1).unwrap();
    let names: Vec<String> = params.slots().iter().map(|s| s.name.clone()).collect();

    let mut findings = Vec::new();
    let mut check = |key: String, got: &[f64], t: Tolerance| {
        let want = golden.get(&key).unwrap_or_else(|| panic!("{key}: no golden value"));
        findings.extend(compare(&key, &[got.len()], got, want, t).err());
        findings.extend(worth(&key, want, t).err());
    };
    for step in 0..2 {
        let rng = root.at(Purpose::Dropout, 3, 0);
        let cx = Ctx { mode: Mode::Train, rng, clock: &clock, params: &params };
        let logits = net.forward(&x, &cx).unwrap().logits;
        let loss = ops::cross_entropy(&logits, &labels).unwrap();
        let grads = loss.backward(&params).unwrap();
        // The longest sums: 320 terms forward; backward 16·24² for conv1.weight, whose partial sums grow like a
        // random walk, √9216 ≈ 100 roundings.
        let t = |scale: f64| Tolerance { abs: 100.0 * common::UNIT * scale, rel: 100.0 * common::UNIT };
        check(format!("lenet/step{step}/logits"), &logits.to_f64().unwrap(), t(0.1));
        check(format!("lenet/step{step}/loss"), &loss.to_f64().unwrap(), t(1.0));
        for (i, g) in grads.params() {
            let g = digest(&g.to_vec::<f32>().unwrap(), i);
            // Entries relative to the norm: an entry near zero is a sum that cancelled.
            check(format!("lenet/step{step}/grad/{}", names[i]), &g, t(g[0]));
        }
        sgd.step(&mut params, &grads, &clock).unwrap();
        clock.advance(BATCH).unwrap();
        for (i, (name, _, w)) in params.to_host().unwrap().iter().enumerate() {
            check(format!("lenet/step{step}/weight/{name}"), &digest(w, i), t(1.0));
        }
    }
    report("LeNet step", findings);
}
