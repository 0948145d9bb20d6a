//! Every operation, and training steps of the networks, against values computed by PyTorch or NumPy in f64
//! (`tests/fixtures/make.py` writes them again); and the fast f32 code of the CPU against its plain f64 code.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use common::{Tolerance, compare, golden, report, run, worth};
use dalcore::bench::config::{Config, Preset, Profile};
use dalcore::clock::Clock;
use dalcore::data::{Dataset, Flip, Images, mnist};
use dalcore::device::Device;
use dalcore::nn::gcn::{Gcn, Graph};
use dalcore::nn::lenet::LeNet;
use dalcore::nn::losshead::LossHead;
use dalcore::nn::resnet::ResNet18;
use dalcore::nn::vae::Sizes;
use dalcore::nn::{Ctx, Layout, Mode, Net};
use dalcore::ops::{self, AdamRule, Arg, Case, Mixtures, Rise, View, cases, large_cases};
use dalcore::optim::{Adam, Momentum, Sgd};
use dalcore::rng::{Purpose, Rng, lane_of};
use dalcore::select::kcenter;
use dalcore::tensor::{Buf, Dtype, Tensor};
use dalcore::train::{Adversarial, DeviceData, Duel, Game, Kl, Learner, Model, Sign, Ssl, Stakes, Trainer};

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

/// What is tested below because it is no case: the first part of its keys.
const FUNCTIONS: [&str; 22] = [
    "mixmatch_lenet",
    "mixmatch_resnet",
    "sgd_step",
    "adam_step",
    "ema_step",
    "normals",
    "gather_images",
    "top_k",
    "argmax_rows",
    "nearest_update",
    "kcenter",
    "lenet",
    "resnet18_w16",
    "resnet18_w16_64px",
    "resnet18_w64",
    "loss_head",
    "gcn",
    "vae_32px",
    "vae_64px",
    "vae_28px",
    "waal_plus",
    "waal_minus",
];

#[test]
fn no_golden_value_without_a_case() {
    let known: BTreeSet<&str> = cases().iter().map(|c| c.name).collect();
    let function = |k: &str| FUNCTIONS.contains(&k.split('/').next().unwrap());
    let extra = |k: &String| !function(k) && !known.contains(k.rsplit_once('/').unwrap().0);
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

/// Compares with golden values by their keys and collects what differs.
struct Check {
    golden: BTreeMap<String, Vec<f64>>,
    findings: Vec<String>,
}

/// For whole numbers.
const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0 };

impl Check {
    fn new() -> Check {
        Check { golden: golden(), findings: Vec::new() }
    }

    fn check(&mut self, key: String, got: &[f64], t: impl Fn(&[f64]) -> Tolerance) {
        let want = self.golden.get(&key).unwrap_or_else(|| panic!("{key}: no golden value"));
        self.findings.extend(compare(&key, &[got.len()], got, want, t(want)).err());
        self.findings.extend(worth(&key, want, t(want)).err());
    }

    fn ids(&mut self, key: String, got: &[u32]) {
        self.check(key, &got.iter().map(|i| f64::from(*i)).collect::<Vec<_>>(), |_| EXACT);
    }

    fn floats(&mut self, key: String, got: &[f32], sum: usize) {
        self.check(key, &got.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), |want| Tolerance::f32(sum, want));
    }
}

/// The inputs of what is no case, made as those of cases are.
fn inputs(name: &'static str, inputs: &'static [Arg]) -> Vec<Tensor> {
    let case = Case { name, inputs, run: |x| Ok(x[0].clone()), sum: 0, flops: 0, bytes: 0 };
    case.make(&Device::Cpu, Dtype::F32).unwrap()
}

/// An input as floats, also when it was made of whole numbers.
fn floats(t: &Tensor) -> Vec<f32> {
    let whole = || t.to_vec::<u32>().unwrap().into_iter().map(|v| v as f32).collect();
    t.to_vec().unwrap_or_else(|_| whole())
}

/// Momentum, coupled decay, element-wise clamp, and a rate that drops before the fourth of five steps.
#[test]
fn sgd_steps_equal_pytorch() {
    let (d, mut check) = (Device::Cpu, Check::new());
    for (name, momentum, decay, clamp) in
        [("sgd_step/67", 0.9, 0.01, 0.5), ("sgd_step/67/plain", 0.0, 0.0, f32::INFINITY)]
    {
        let made = inputs(name, &[Arg::Fixed(&[67], -2.0, 2.0); 6]);
        let buf = |t: &Tensor| Buf::from_host(&d, &t.to_vec::<f32>().unwrap()).unwrap();
        let (mut w, mut v) = (buf(&made[0]), Buf::zeros(&d, 67).unwrap());
        let clock = Clock::new(&d).unwrap();
        for (step, g) in made[1..].iter().enumerate() {
            clock.start(0, 0, if step < 3 { 0.1 } else { 0.01 }).unwrap();
            ops::sgd_step(&mut w, &mut v, &buf(g), &clock, &d, momentum, decay, clamp).unwrap();
            // Six roundings a step, carried on to the next.
            check.floats(format!("{name}/w{step}"), &w.to_host().unwrap(), 6 * (step + 1));
        }
        if momentum > 0.0 {
            check.floats(format!("{name}/v"), &v.to_host().unwrap(), 30);
        }
    }
    report("SGD", check.findings);
}

/// Both rules of the fixture over five steps whose rate drops before the fourth. The optimizer counts its own steps; the
/// step of the clock is another.
#[test]
fn adam_steps_equal_pytorch() {
    let (d, mut check) = (Device::Cpu, Check::new());
    let plain = AdamRule::default();
    let rules =
        [("adam_step/67", plain), ("adam_step/67/decay", AdamRule { betas: [0.5, 0.99], eps: 1e-3, decay: 0.05 })];
    for (name, rule) in rules {
        let made = inputs(name, &[Arg::Fixed(&[67], -2.0, 2.0); 6]);
        let buf = |t: &Tensor| Buf::from_host(&d, &t.to_vec::<f32>().unwrap()).unwrap();
        let zeros = || Buf::zeros(&d, 67).unwrap();
        let (mut w, mut m, mut v) = (buf(&made[0]), zeros(), zeros());
        let (clock, steps) = (Clock::new(&d).unwrap(), Clock::new(&d).unwrap());
        for (step, g) in made[1..].iter().enumerate() {
            clock.start(40, 0, if step < 3 { 0.1 } else { 0.01 }).unwrap();
            ops::adam_step(&mut w, &mut m, &mut v, &buf(g), &clock, &steps, &d, rule).unwrap();
            steps.advance(0).unwrap();
            // A dozen roundings a step, carried on to the next.
            check.floats(format!("{name}/w{step}"), &w.to_host().unwrap(), 12 * (step + 1));
        }
        check.floats(format!("{name}/m"), &m.to_host().unwrap(), 20);
        check.floats(format!("{name}/v"), &v.to_host().unwrap(), 20);
    }
    report("Adam", check.findings);
}

/// The same through `Adam` itself: gradients of a real graph, gathered into the arena.
#[test]
fn adam_counts_its_own_steps() {
    let d = Device::Cpu;
    let mut layout = Layout::default();
    let p = layout.add("w", [67], 1);
    let mut params = layout.init(&d, Rng::new(1).at(Purpose::Init, 0, 0)).unwrap();
    let name = "adam_step/67";
    let made = inputs(name, &[Arg::Fixed(&[67], -2.0, 2.0); 6]);
    params.load(|_| made[0].to_vec()).unwrap();
    let mut adam = Adam::new(&params, AdamRule::default()).unwrap();
    let (clock, mut check) = (Clock::new(&d).unwrap(), Check::new());
    for (step, g) in made[1..].iter().enumerate() {
        clock.start(40, 0, if step < 3 { 0.1 } else { 0.01 }).unwrap();
        // Σ g ⊙ w has the gradient g.
        let loss = ops::sum_all(&ops::mul(&params.tensor(p).unwrap(), g).unwrap()).unwrap();
        let grads = loss.backward(&params).unwrap();
        adam.step(&mut params, &grads, &clock).unwrap();
        check.floats(format!("{name}/w{step}"), &params.tensor(p).unwrap().to_vec().unwrap(), 12 * (step + 1));
    }
    report("Adam over an arena", check.findings);
}

#[test]
fn averages_equal_numpy() {
    let (d, name, mut check) = (Device::Cpu, "ema_step/67", Check::new());
    let made = inputs(name, &[Arg::Fixed(&[67], -2.0, 2.0); 6]);
    let buf = |t: &Tensor| Buf::from_host(&d, &t.to_vec::<f32>().unwrap()).unwrap();
    let mut average = buf(&made[0]);
    for (step, w) in made[1..].iter().enumerate() {
        ops::ema_step(&mut average, &buf(w), &d, 0.95).unwrap();
        check.floats(format!("{name}/{step}"), &average.to_host().unwrap(), 3 * (step + 1));
    }
    report("moving average", check.findings);
}

#[test]
fn normals_equal_numpy() {
    let (d, mut check) = (Device::Cpu, Check::new());
    let clock = Clock::new(&d).unwrap();
    clock.start(9, 0, 0.1).unwrap();
    let y = ops::normals(&d, [7, 43], Rng::new(12).at(Purpose::Vae, 3, 0).lane(4), &clock).unwrap();
    check.floats("normals/301".into(), &y.to_vec().unwrap(), 1);
    report("normals", check.findings);
}

/// Gather, crop, flip, normalise: the streams say where, NumPy cuts the window out.
#[test]
fn images_equal_numpy() {
    const CASES: [(&str, &[Arg], usize, Flip); 4] = [
        ("gather_images/9x7x6x1-pad4-flip", &[Arg::Ids(&[9, 7, 6, 1], 256), Arg::Ids(&[12], 9)], 4, Flip::Half),
        ("gather_images/9x5x8x3-pad2-flip", &[Arg::Ids(&[9, 5, 8, 3], 256), Arg::Ids(&[12], 9)], 2, Flip::Half),
        ("gather_images/9x6x6x3-pad3", &[Arg::Ids(&[9, 6, 6, 3], 256), Arg::Ids(&[12], 9)], 3, Flip::Never),
        ("gather_images/9x4x5x2-pad0-flip", &[Arg::Ids(&[9, 4, 5, 2], 256), Arg::Ids(&[12], 9)], 0, Flip::Half),
    ];
    let (d, mut check) = (Device::Cpu, Check::new());
    let clock = Clock::new(&d).unwrap();
    clock.start(0, 5, 0.1).unwrap();
    clock.advance(2).unwrap();
    for (name, args, pad, flip) in CASES {
        let made = inputs(name, args);
        let pixels: Vec<u8> = made[0].to_vec::<u32>().unwrap().iter().map(|v| *v as u8).collect();
        let pixels = Tensor::new(&d, made[0].shape().clone(), &pixels).unwrap();
        let c = pixels.dims()[3];
        let (mean, std) = (&[0.5, 0.25, 0.1][..c], &[0.5, 0.3, 0.2][..c]);
        let view = View::train(&d, mean, std, pad, flip, Rng::new(77), 3).unwrap();
        let y = ops::gather_images(&pixels, &made[1], &clock, 6, &view).unwrap();
        // Scale, shift and their multiply-add are rounded.
        check.floats(format!("{name}/out"), &y.to_vec().unwrap(), 3);
    }
    report("images", check.findings);
}

/// Many equal scores: the lowest id first.
#[test]
fn orders_equal_numpy() {
    let mut check = Check::new();
    for (name, args, levels) in [("top_k/310", &[Arg::Ids(&[310], 7)], 7), ("top_k/257", &[Arg::Ids(&[257], 90)], 90)] {
        let scores: Vec<f32> = floats(&inputs(name, args)[0]).iter().map(|v| v - (levels / 2) as f32).collect();
        let scores = Tensor::new(&Device::Cpu, [scores.len()], &scores).unwrap();
        let all = ops::top_k(&scores, scores.len()).unwrap().to_vec::<u32>().unwrap();
        for k in [1, 2, 50, 256] {
            assert_eq!(ops::top_k(&scores, k).unwrap().to_vec::<u32>().unwrap(), all[..k], "{name}: the first {k}");
        }
        check.ids(format!("{name}/order"), &all);
        check.ids(format!("{name}/argmax"), &[ops::argmax(&scores).unwrap()]);
    }
    let name = "argmax_rows/40x10";
    let x = floats(&inputs(name, &[Arg::Ids(&[40, 10], 4)])[0]);
    let x = Tensor::new(&Device::Cpu, [40, 10], &x).unwrap();
    check.ids(format!("{name}/out"), &ops::argmax_rows(&x).unwrap().to_vec::<u32>().unwrap());
    report("orders", check.findings);
}

#[test]
fn nearest_centres_equal_numpy() {
    const CASES: [(&str, &[Arg], usize); 2] = [
        (
            "nearest_update/5x3x2",
            &[Arg::Fixed(&[5, 2], -2.0, 2.0), Arg::Fixed(&[3, 2], -2.0, 2.0), Arg::Fixed(&[5], 0.0, 5.0)],
            2,
        ),
        (
            "nearest_update/67x19x33",
            &[Arg::Fixed(&[67, 33], -2.0, 2.0), Arg::Fixed(&[19, 33], -2.0, 2.0), Arg::Fixed(&[67], 0.0, 82.5)],
            33,
        ),
    ];
    let mut check = Check::new();
    for (name, args, d) in CASES {
        let mut made = inputs(name, args);
        let mut best = made.pop().unwrap();
        ops::nearest_update(&mut best, &made[0], &made[1]).unwrap();
        check.floats(format!("{name}/out"), &best.to_vec().unwrap(), d);
    }
    report("nearest centres", check.findings);
}

/// Farthest first, in f64 by its definition. The generator refuses data in which rounding could change a pick, except
/// on the grid, where distances are exact and many are equal: the lowest id.
#[test]
fn kcenter_equals_numpy() {
    const CASES: [(&str, &[Arg], u32, usize); 4] = [
        ("kcenter/200x8", &[Arg::Fixed(&[200, 8], -2.0, 2.0)], 10, 40),
        ("kcenter/150x50/none", &[Arg::Fixed(&[150, 50], -2.0, 2.0)], 0, 40),
        ("kcenter/120x2/grid", &[Arg::Ids(&[120, 2], 6)], 5, 60),
        ("kcenter/60x2/grid-all", &[Arg::Ids(&[60, 2], 4)], 0, 60),
    ];
    let mut check = Check::new();
    for (name, args, labelled, k) in CASES {
        let made = &inputs(name, args)[0];
        let x = Tensor::new(&Device::Cpu, made.shape().clone(), &floats(made)).unwrap();
        let (n, d) = (x.dims()[0] as u32, x.dims()[1]);
        let picks = kcenter(&x, &(0..labelled).collect::<Vec<_>>(), &(labelled..n).collect::<Vec<_>>(), k).unwrap();
        check.ids(format!("{name}/ids"), &picks.ids);
        check.floats(format!("{name}/radius"), &picks.radius, d);
    }
    report("k-center", check.findings);
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
    let (device, root, network) = (Device::Cpu, Rng::new(10), s.network);
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

    let mut check = Check::new();
    let off = s.roundings * common::UNIT;
    let t = |scale: f64| move |_: &[f64]| Tolerance { abs: off * scale, rel: off };
    for step in 0..s.steps {
        let cx = Ctx::new(Mode::Train, root.at(Purpose::Dropout, 3, 0), &clock, &params);
        let logits = net.forward(&x, &cx).unwrap().logits;
        let loss = ops::cross_entropy(&logits, &labels).unwrap();
        let grads = loss.backward(&params).unwrap();
        let seen = cx.into_seen();
        check.check(format!("{network}/step{step}/logits"), &logits.to_f64().unwrap(), t(0.1));
        check.check(format!("{network}/step{step}/loss"), &loss.to_f64().unwrap(), t(1.0));
        for (i, g) in grads.params() {
            let g = digest(network, &g.to_vec::<f32>().unwrap(), i);
            // Entries relative to the norm: an entry near zero is a sum that cancelled.
            check.check(format!("{network}/step{step}/grad/{}", names[i]), &g, t(g[0]));
        }
        sgd.step(&mut params, &grads, &clock).unwrap();
        params.absorb(&seen).unwrap();
        clock.advance(s.batch).unwrap();
        for (i, (slot, w)) in params.to_host().unwrap().iter().enumerate() {
            let w = digest(network, w, i);
            check.check(format!("{network}/step{step}/weight/{}", slot.name), &w, t(w[0].min(1.0)));
        }
    }
    report(network, check.findings);
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

/// The gradients of the inputs that an attack climbs, with weights that are constants.
#[test]
fn lenet_input_gradients_equal_pytorch() {
    let (device, root, n) = (Device::Cpu, Rng::new(10), 16);
    let mut layout = Layout::default();
    let net = LeNet::new(&mut layout, 10);
    let params = layout.init(&device, root.at(Purpose::Init, 3, 0)).unwrap();
    let pixels = root.at(Purpose::Synthetic, 0, 0);
    let x: Vec<f32> = (0..n as u64 * 784).map(|e| 3.0 * pixels.uniform(e) - 0.5).collect();
    let x = Tensor::new(&device, [n, 28, 28, 1], &x).unwrap().tracked();
    let clock = Rc::new(Clock::new(&device).unwrap());
    let logits = net.forward(&x, &Ctx::new(Mode::Eval, root, &clock, &params)).unwrap().logits;
    let p = ops::softmax(&logits.detach()).unwrap().to_vec::<f32>().unwrap();
    let mut check = Check::new();
    for (i, name) in ["ce", "margin"].into_iter().enumerate() {
        let mut d = if name == "ce" { p.clone() } else { vec![0.0; p.len()] };
        for (d, p) in d.chunks_exact_mut(10).zip(p.chunks_exact(10)) {
            let mut order: Vec<usize> = (0..10).collect();
            order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
            d[order[0]] -= 1.0;
            d[order[1]] += if name == "margin" { 1.0 } else { 0.0 };
        }
        let d = Tensor::new(&device, [n, 10], &d).unwrap();
        let g = logits.grad_from(&d, &[&x]).unwrap().of(&x).unwrap().to_vec::<f32>().unwrap();
        let g = digest("lenet", &g, i);
        // Sums of 320, 500 and 250 terms, each rounded.
        let off = 100.0 * common::UNIT;
        check.check(format!("lenet/input/{name}"), &g, |_| Tolerance { abs: off * g[0], rel: off });
    }
    report("input gradients", check.findings);
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

/// The predictions of the loss head, and what its ranking loss sends back to its layers and to the maps.
#[test]
fn loss_head_equals_pytorch() {
    let (d, mut check) = (Device::Cpu, Check::new());
    let name = "loss_head/6";
    const ARGS: &[Arg] =
        &[Arg::Diff(&[6, 4, 4, 3], -2.0, 2.0), Arg::Diff(&[6, 2, 2, 5], -2.0, 2.0), Arg::Fixed(&[6], 0.0, 4.0)];
    let made = inputs(name, ARGS);
    let maps = &made[..2];
    let mut layout = Layout::default();
    let head = LossHead::new(&[3, 5], None, &mut layout);
    let params = layout.init(&d, Rng::new(10).at(Purpose::Init, 3, 0)).unwrap();
    assert_eq!(params.count(), 128 * (3 + 1) + 128 * (5 + 1) + 257);
    let clock = Rc::new(Clock::new(&d).unwrap());
    let cx = Ctx::new(Mode::Train, Rng::new(0), &clock, &params);
    let predicted = head.forward(maps, &cx, &cx).unwrap();
    check.floats(format!("{name}/out"), &predicted.to_vec().unwrap(), 256);
    // The ranking alone does not depend on the last bias.
    let ranking = ops::ranking_loss(&predicted, &made[2], 1.0).unwrap();
    let loss = ops::add(&ranking, &ops::sum_all(&predicted).unwrap()).unwrap();
    let by_map = loss.grad(&[&made[0], &made[1]]).unwrap();
    for (i, map) in maps.iter().enumerate() {
        check.floats(format!("{name}/map{i}"), &by_map.of(map).unwrap().to_vec().unwrap(), 256);
    }
    for (i, g) in loss.backward(&params).unwrap().params() {
        let slot = &params.slots()[i].name;
        check.floats(format!("{name}/grad/{slot}"), &g.to_vec().unwrap(), 256);
    }
    report("loss head", check.findings);
}

/// A step of the graph network, against the whole matrix Â.
#[test]
fn gcn_equals_pytorch() {
    let (d, mut check) = (Device::Cpu, Check::new());
    let name = "gcn/31x6";
    let features = inputs(name, &[Arg::Fixed(&[31, 6], -0.5, 2.0)]).remove(0);
    let graph = Graph::new(&features).unwrap();
    let mut layout = Layout::default();
    let net = Gcn::new(&mut layout, 6);
    let rng = Rng::new(10).at(Purpose::Gcn, 3, 0);
    let params = layout.init(&d, rng).unwrap();
    let clock = Rc::new(Clock::new(&d).unwrap());
    let cx = Ctx::new(Mode::Train, rng, &clock, &params);
    let [hidden, logits] = net.forward(&graph, (0.3, rng.lane(16)), &cx).unwrap();
    // 31 nodes into a feature, 128 features into a score and 31 scores into one.
    check.floats(format!("{name}/hidden"), &hidden.to_vec().unwrap(), 60);
    check.floats(format!("{name}/logits"), &logits.to_vec().unwrap(), 200);
    let unlabelled = ops::bce_with_logits(
        &ops::slice_rows(&logits, 0, 20).unwrap(),
        &Tensor::new(&d, [20, 1], &[0.0f32; 20]).unwrap(),
    );
    let labelled = ops::bce_with_logits(
        &ops::slice_rows(&logits, 20, 11).unwrap(),
        &Tensor::new(&d, [11, 1], &[1.0f32; 11]).unwrap(),
    );
    let loss = ops::add(&labelled.unwrap(), &ops::scale(&unlabelled.unwrap(), 1.2).unwrap()).unwrap();
    for (i, g) in loss.backward(&params).unwrap().params() {
        let slot = &params.slots()[i].name;
        check.floats(format!("{name}/grad/{slot}"), &g.to_vec().unwrap(), 200);
    }
    report("graph network", check.findings);
}

/// VAAL's auto-encoders and discriminators: forward, every gradient, two steps of the one and a step of the other, and
/// what the discriminator says by the running statistics.
#[test]
fn vaal_steps_equal_pytorch() {
    let conv = |side, channels, width, code| Sizes::Conv { side, channels, width, code };
    for (network, sizes, batch, kl) in [
        ("vae_32px", conv(32, 3, 4, 5), 4, Kl::Sum),
        ("vae_64px", conv(64, 1, 2, 3), 3, Kl::Mean),
        ("vae_28px", Sizes::Linear { image: [28, 28, 1] }, 4, Kl::Sum),
    ] {
        let rules =
            Adversarial { sizes, sigmoid: network == "vae_28px", deep: false, kl, adam: AdamRule::default(), batch };
        vaal_equals_pytorch(network, rules);
    }
}

fn vaal_equals_pytorch(network: &str, rules: Adversarial) {
    let d = Device::Cpu;
    let [h, w, c] = rules.sizes.image();
    let images = |lane| {
        let pixels = Rng::new(10).at(Purpose::Synthetic, 0, 0).lane(lane);
        let x: Vec<f32> = (0..(rules.batch * h * w * c) as u64).map(|e| 3.0 * pixels.uniform(e) - 0.5).collect();
        Tensor::new(&d, [rules.batch, h, w, c], &x).unwrap()
    };
    // Eight layers, normalised over a dozen values at the narrowest, and sums of up to 64² · 9 terms, as a random walk.
    let off = 8.0 * 200.0 * common::UNIT;
    let t = |scale: f64| move |_: &[f64]| Tolerance { abs: off * scale, rel: off };
    // Adam moves by the rate times the gradient's sign, near enough: where a gradient is close to zero its roundings count.
    let moved = |scale: f64| move |_: &[f64]| Tolerance { abs: 1e-5 * scale, rel: off };
    let mut game = Game::new(rules, &d, 10, 3).unwrap();
    let clock = Rc::new(Clock::new(&d).unwrap());
    clock.start(0, 0, 5e-4).unwrap();
    let mut check = Check::new();
    let key = |part: &str| format!("{network}/{part}");
    for step in 0..2 {
        let x = [images(2 * step), images(2 * step + 1)];
        if step == 0 {
            let cx = game.context(Mode::Train, &clock);
            for (which, x) in x.iter().enumerate() {
                for (part, v) in ["mu", "logvar", "made"].into_iter().zip(game.forward(x, which as u32, &cx).unwrap()) {
                    let v = digest(network, &v.to_vec::<f32>().unwrap(), which);
                    check.check(key(&format!("{part}{which}")), &v, t(v[0]));
                }
            }
            let loss = game.vae_loss([&x[0], &x[1]], &cx).unwrap();
            for (i, g) in loss.backward(&game.vae_params).unwrap().params() {
                let g = digest(network, &g.to_vec::<f32>().unwrap(), i);
                check.check(key(&format!("grad/{}", game.vae_params.slots()[i].name)), &g, t(g[0]));
            }
        }
        let loss = game.vae_step([&x[0], &x[1]], &clock).unwrap();
        check.check(key(&format!("vae{step}/loss")), &loss.to_f64().unwrap(), t(1.0));
        if step == 1 {
            let loss = game.discriminator_step([&x[0], &x[1]], &clock).unwrap();
            check.check(key("judge/loss"), &loss.to_f64().unwrap(), t(1.0));
        }
        clock.advance(rules.batch).unwrap();
    }
    for (part, params) in [("weight", &game.vae_params), ("judge/weight", &game.discriminator_params)] {
        for (i, (slot, w)) in params.to_host().unwrap().iter().enumerate() {
            let w = digest(network, w, i);
            check.check(key(&format!("{part}/{}", slot.name)), &w, moved(w[0].min(1.0)));
        }
    }
    check.check(key("verdict"), &game.verdict(&images(4), &clock).unwrap().to_f64().unwrap(), t(1.0));
    report(network, check.findings);
}

/// WAAL on LeNet: what both halves of two steps minimise, by double backward there, every gradient, and the weights after.
#[test]
fn waal_steps_equal_pytorch() {
    waal_equals_pytorch("waal_plus", Sign::Plus);
    waal_equals_pytorch("waal_minus", Sign::Minus);
}

fn waal_equals_pytorch(network: &str, sign: Sign) {
    const BATCH: usize = 12;
    let images = || Images { n: 0, h: 28, w: 28, c: 1, pixels: Vec::new(), labels: Vec::new() };
    let data = DeviceData::new(&Device::Cpu, &Dataset::new(&mnist::SPEC, images(), images())).unwrap();
    let recipe = Config::base(&data.spec, &Preset::find("smoke").unwrap().1, Profile::Clean).train;
    assert_eq!((recipe.momentum, recipe.weight_decay, recipe.grad_clamp), (0.9, 5e-4, 0.1));
    let (on_epoch, check) = (&|_: &_| Ok(()), &|| Ok(()));
    let trainer = Trainer {
        data: &data,
        recipe: &recipe,
        eval_batch: 8,
        graphs: true,
        seed: 10,
        on_epoch,
        check,
        mixmatch: None,
    };
    let stakes = Stakes { alpha: 0.5, gamma_cap: None, sign };
    let mut duel = Duel::new(stakes, &trainer, 3, [3, 8]).unwrap();
    let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
    clock.start(0, 0, 0.05).unwrap();

    let mut check = Check::new();
    let key = |part: &str| format!("{network}/{part}");
    // As LeNet's; the critic adds sums of 320 terms.
    let off = 100.0 * common::UNIT;
    let t = |scale: f64| move |_: &[f64]| Tolerance { abs: off * scale, rel: off };
    for step in 0..2 {
        let pixels = Rng::new(10).at(Purpose::Synthetic, 0, step);
        let x = [0, 1].map(|lane| {
            let x: Vec<f32> = (0..BATCH as u64 * 784).map(|e| 3.0 * pixels.lane(lane).uniform(e) - 0.5).collect();
            Tensor::new(&Device::Cpu, [BATCH, 28, 28, 1], &x).unwrap()
        });
        let labels: Vec<u32> = (0..BATCH as u32).map(|i| (i * 7 + step) % 10).collect();
        let y = Tensor::new(&Device::Cpu, [BATCH], &labels).unwrap();
        let x = [&x[0], &x[1]];

        let grads_of = |check: &mut Check, loss: &Tensor, params: &dalcore::nn::Params, half: &str| {
            for (i, g) in loss.backward(params).unwrap().params() {
                let g = digest("waal", &g.to_vec::<f32>().unwrap(), i);
                check.check(key(&format!("{half}{step}/grad/{}", params.slots()[i].name)), &g, t(g[0]));
            }
        };
        let loss = duel.network_loss(x, &y, &clock).unwrap().0;
        grads_of(&mut check, &loss, &duel.training.model.params, "network");
        drop(loss);
        let loss = duel.network_step(x, &y, &clock).unwrap();
        check.check(key(&format!("network{step}/loss")), &loss.to_f64().unwrap(), t(1.0));
        clock.advance(0).unwrap();
        let [l, u] = duel.features(x, &clock).unwrap();
        let loss = duel.critic_loss(&l, &u, &clock).unwrap();
        grads_of(&mut check, &loss, &duel.critic_params, "critic");
        drop(loss);
        let loss = duel.critic_step(x, &clock).unwrap();
        check.check(key(&format!("critic{step}/loss")), &loss.to_f64().unwrap(), t(1.0));
        clock.advance(BATCH).unwrap();
        for (part, params) in [("network", &duel.training.model.params), ("critic", &duel.critic_params)] {
            for (i, (slot, w)) in params.to_host().unwrap().iter().enumerate() {
                let w = digest("waal", w, i);
                check.check(key(&format!("{part}{step}/weight/{}", slot.name)), &w, t(w[0].min(1.0)));
            }
        }
    }
    report(network, check.findings);
}

/// Two steps of MixMatch on given views, partners and shares: loss, velocities (which hold the gradients), weights, averages
/// and running statistics. With dropout and one share a step, only kernels decaying; and with normalised batches, a share
/// for every row, everything decaying.
#[test]
fn mixmatch_steps_equal_pytorch() {
    let mut layout = [Layout::default(), Layout::default()];
    let nets = layout.each_mut().map(|l| Box::new(LeNet::new(l, 10)) as Box<dyn Net>);
    // As for the step of LeNet, and three times as many rows.
    mixmatch_equals_pytorch("mixmatch_lenet", nets, layout, [28, 1, 10, 5], false, 300.0);
    let mut layout = [Layout::default(), Layout::default()];
    let nets = layout.each_mut().map(|l| Box::new(ResNet18::new(l, 4, [32, 3], 7).unwrap()) as Box<dyn Net>);
    // As for the step of ResNet-18; the last maps are normalised over 64 values.
    mixmatch_equals_pytorch("mixmatch_resnet", nets, layout, [32, 3, 7, 4], true, 20.0 * 500.0);
}

fn mixmatch_equals_pytorch(
    network: &str,
    nets: [Box<dyn Net>; 2],
    layouts: [Layout; 2],
    [side, channels, classes, batch]: [usize; 4],
    everything: bool,
    roundings: f64,
) {
    let (d, root) = (Device::Cpu, Rng::new(10));
    let mut fresh = nets.into_iter().zip(layouts).map(|(net, layout)| {
        let params = layout.init(&d, root.at(Purpose::Init, 3, 0)).unwrap();
        Model { net, params, classes }
    });
    let (model, average) = (fresh.next().unwrap(), fresh.next().unwrap());
    let ssl = Ssl { ema: 0.9, shrink: 0.5, shrink_everything: everything, ..Ssl::default() };
    let mut learner = Learner::new(model, average, ssl, 0.9).unwrap();
    let clock = Rc::new(Clock::new(&d).unwrap());
    let rows = 3 * batch;
    let mut check = Check::new();
    let off = roundings * common::UNIT;
    let t = |scale: f64| move |_: &[f64]| Tolerance { abs: off * scale, rel: off };
    for step in 0..2u32 {
        clock.resume(step, 1, 0.05, [0, 3 + step]).unwrap();
        let image = |lane| {
            let pixels = root.at(Purpose::Synthetic, 0, step).lane(lane);
            let x: Vec<f32> =
                (0..(batch * side * side * channels) as u64).map(|e| 3.0 * pixels.uniform(e) - 0.5).collect();
            Tensor::new(&d, [batch, side, side, channels], &x).unwrap()
        };
        let [x, u, v] = [0, 1, 2].map(image);
        let labels: Vec<u32> = (0..batch as u32).map(|i| (i * 7 + step) % classes as u32).collect();
        let labels = Tensor::new(&d, [batch], &labels).unwrap();
        let partners: Vec<u32> = (0..rows as u32).map(|i| (rows as u32 - 1 - i + step) % rows as u32).collect();
        let shares: Vec<f32> = match everything {
            true => (0..rows).map(|i| 0.5 + i as f32 / (2 * rows) as f32).collect(),
            false => vec![0.8 - 0.15 * step as f32],
        };
        let mixtures = Mixtures {
            partners: Tensor::new(&d, [rows], &partners).unwrap(),
            shares: Tensor::new(&d, [shares.len()], &shares).unwrap(),
        };
        let rise = Rise { most: 100.0, ramp: 4.0, steps: 8 };
        let dropout = root.at(Purpose::Dropout, 3, 0);
        let loss = learner.step([&x, &u, &v], &labels, &mixtures, rise, dropout, &clock).unwrap();
        check.check(format!("{network}/step{step}/loss"), &loss.to_f64().unwrap(), t(10.0));
        for (part, params) in [("weight", &learner.model.params), ("average", &learner.average.params)] {
            for (i, (slot, w)) in params.to_host().unwrap().iter().enumerate() {
                let w = digest(network, w, i);
                check.check(format!("{network}/step{step}/{part}/{}", slot.name), &w, t(w[0].min(1.0)));
            }
        }
        for (i, (slot, v)) in learner.sgd.velocity(&learner.model.params).unwrap().iter().enumerate() {
            let v = digest(network, v, i);
            check.check(format!("{network}/step{step}/velocity/{}", slot.name), &v, t(v[0]));
        }
    }
    report(network, check.findings);
}
