//! Every operation, and training steps of the networks, against values computed by PyTorch in f64
//! (`tests/fixtures/make.py` writes them again); and the fast f32 code of the CPU against its plain f64 code.

mod common;

use std::collections::BTreeSet;
use std::rc::Rc;

use common::{Tolerance, compare, golden, report, run, worth};
use dalcore::clock::Clock;
use dalcore::device::Device;
use dalcore::nn::lenet::LeNet;
use dalcore::nn::resnet::ResNet18;
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
    let extra = |k: &String| !k.contains("/step") && !known.contains(k.rsplit_once('/').unwrap().0);
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
fn digest(network: &str, values: &[f32], index: usize) -> Vec<f64> {
    let v: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    let lane = lane_of(&format!("{network}_step"));
    let r = Rng::new(u64::from(lane)).at(Purpose::Select, 0, 0).lane(index as u32);
    let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let dot = v.iter().enumerate().map(|(e, v)| v * (2.0 * f64::from(r.uniform(e as u64)) - 1.0)).sum();
    let n = v.len().min(32);
    [norm, dot].into_iter().chain((0..n).map(|e| v[e * v.len() / n])).collect()
}

/// A network and what it is trained on.
struct Steps {
    network: &'static str,
    steps: usize,
    batch: usize,
    /// H, W, C
    image: [usize; 3],
    classes: usize,
    /// How many roundings of its largest terms a number may be off.
    roundings: f64,
}

/// Forward, loss, backward and SGD with momentum, decay and clamp, against PyTorch.
fn steps_equal_pytorch(s: &Steps, net: &dyn Net, layout: Layout) {
    let (device, golden, root, network) = (Device::Cpu, golden(), Rng::new(10), s.network);
    let pixels = root.at(Purpose::Synthetic, 0, 0);
    let [h, w, c] = s.image;
    let x: Vec<f32> = (0..(s.batch * h * w * c) as u64).map(|e| 3.0 * pixels.uniform(e) - 0.5).collect();
    let x = Tensor::new(&device, [s.batch, h, w, c], &x).unwrap();
    let label = |e| ((u64::from(pixels.lane(1).u32(e)) * s.classes as u64) >> 32) as u32;
    let labels = Tensor::new(&device, [s.batch], &(0..s.batch as u64).map(label).collect::<Vec<u32>>()).unwrap();

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
    let off = s.roundings * common::UNIT;
    let t = |scale: f64| Tolerance { abs: off * scale, rel: off };
    for step in 0..s.steps {
        let cx = Ctx::new(Mode::Train, root.at(Purpose::Dropout, 3, 0), &clock, &params);
        let logits = net.forward(&x, &cx).unwrap().logits;
        let loss = ops::cross_entropy(&logits, &labels).unwrap();
        let grads = loss.backward(&params).unwrap();
        let seen = cx.into_seen();
        check(format!("{network}/step{step}/logits"), &logits.to_f64().unwrap(), t(0.1));
        check(format!("{network}/step{step}/loss"), &loss.to_f64().unwrap(), t(1.0));
        for (i, g) in grads.params() {
            let g = digest(network, &g.to_vec::<f32>().unwrap(), i);
            // Entries relative to the norm: an entry near zero is a sum that cancelled.
            check(format!("{network}/step{step}/grad/{}", names[i]), &g, t(g[0]));
        }
        sgd.step(&mut params, &grads, &clock).unwrap();
        params.absorb(&seen).unwrap();
        clock.advance(s.batch).unwrap();
        for (i, (slot, w)) in params.to_host().unwrap().iter().enumerate() {
            let w = digest(network, w, i);
            check(format!("{network}/step{step}/weight/{}", slot.name), &w, t(w[0].min(1.0)));
        }
    }
    report(network, findings);
}

/// The second step depends on the velocity of the first and has other dropout masks.
#[test]
fn lenet_steps_equal_pytorch() {
    let mut layout = Layout::default();
    let net = LeNet::new(&mut layout, 10);
    // The longest sums: 320 terms forward; backward 16·24² for conv1.weight, whose partial sums grow like a random
    // walk, √9216 ≈ 100 roundings.
    let s = Steps { network: "lenet", steps: 2, batch: 16, image: [28, 28, 1], classes: 10, roundings: 100.0 };
    steps_equal_pytorch(&s, &net, layout);
}

#[test]
fn resnet_step_equals_pytorch() {
    for (network, width, side, classes, batch) in
        [("resnet18_w16", 16, 32, 10, 6), ("resnet18_w16_64px", 16, 64, 200, 2), ("resnet18_w64", 64, 32, 100, 2)]
    {
        let mut layout = Layout::default();
        let net = ResNet18::new(&mut layout, width, [side, 3], classes).unwrap();
        // Twenty layers, each of which adds the roundings of its sums (up to 64 · 64² terms, ≈ 500 as a random walk).
        let s = Steps { network, steps: 1, batch, image: [side, side, 3], classes, roundings: 20.0 * 500.0 };
        steps_equal_pytorch(&s, &net, layout);
    }
}
