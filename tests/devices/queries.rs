//! Queries that run the network in ways of their own, passes with dropout and attacks: eager and replayed as graphs the
//! same ids, and the CPU's.

use dalcore::bench::config::{Config, Preset, Profile};
use dalcore::data::{self, Dataset, Images, Pool, PoolIdx, Spec, synthetic};
use dalcore::device::Device;
use dalcore::methods::{self, Query};
use dalcore::ops;
use dalcore::rng::{Purpose, Rng};
use dalcore::select::{Along, Attack, NEVER};
use dalcore::tensor::Tensor;
use dalcore::train::{DeviceData, Model, Trainer};

use crate::common::cuda;

const POOL: usize = 8;

pub fn all() {
    attacks();
    let lenet = Spec { classes: 3, ..synthetic::SPEC.clone() };
    let resnet = Spec { model: data::Model::ResNet18 { width: 2 }, classes: 3, ..data::cifar::CIFAR10.clone() };
    for spec in [&lenet, &resnet] {
        let host = queries(spec, &Device::Cpu, true);
        let Some(s) = cuda(0) else { return };
        let eager = queries(spec, &s.device, false);
        if spec.model == data::Model::LeNet {
            only_inputs_have_gradients(&s.device);
        }
        assert_eq!(eager, queries(spec, &s.device, true), "replaying a graph changes the picks");
        for ((method, got), (_, want)) in eager.iter().zip(&host) {
            // Scores that differ in their last digits may change places.
            let place = |id| want.iter().position(|w| *w == id).unwrap();
            let off = got.iter().enumerate().map(|(i, id)| i.abs_diff(place(*id))).max().unwrap();
            assert!(off <= 1, "{method}: {got:?} is not {want:?}");
        }
    }
}

/// Of what has been launched, an attack on LeNet included.
fn only_inputs_have_gradients(d: &Device) {
    let Device::Cuda(cuda) = d else { return };
    let launched = cuda.launched();
    assert!(launched.contains(&"conv2d_dgrad_f32"));
    let of_weights = ["conv2d_wgrad", "gemm_tn", "sum_rows"];
    let found: Vec<_> = launched.iter().filter(|k| of_weights.iter().any(|w| k.starts_with(w))).collect();
    assert!(found.is_empty(), "an attack computes gradients of weights: {found:?}");
}

/// All unlabelled examples in the order each method takes them.
fn queries(spec: &Spec, device: &Device, graphs: bool) -> Vec<(&'static str, Vec<PoolIdx>)> {
    let split = |n: usize, seed: u64| {
        let (rng, size) = (Rng::new(seed), n * spec.h * spec.w * spec.c);
        let pixels = (0..size as u64).map(|e| rng.u32(e) as u8).collect();
        let labels = (0..n as u64).map(|e| rng.u32(e) % spec.classes as u32).collect();
        Images { n, h: spec.h, w: spec.w, c: spec.c, pixels, labels }
    };
    let set = Dataset::new(spec, split(POOL, 1), split(2, 2));
    let data = DeviceData::new(device, &set).unwrap();
    let mut pool = Pool::new(set.train.labels.as_slice().into()).unwrap();
    pool.reveal(&[PoolIdx(2), PoolIdx(5)]).unwrap();
    let mut config = Config::base(spec, &Preset::find("smoke").unwrap().1, Profile::Clean);
    (config.bald.passes, config.mean_std.passes, config.power_bald.passes) = (3, 2, 2);
    // Random weights: all images are near a boundary.
    (config.adversarial_bim.eps, config.adversarial_bim.cap) = (0.01, 3);
    let (on_epoch, check) = (&|_: &_| Ok(()), &|| Ok(()));
    let trainer =
        Trainer { data: &data, recipe: &config.train, eval_batch: 4, graphs, seed: 3, on_epoch, check, mixmatch: None };
    let (model, view) = (Model::fresh(&data, 1, 0).unwrap(), trainer.plain_view().unwrap());
    let all = ["bald", "mean-std", "var-ratio", "power-bald", "entropy", "adversarial-bim"];
    // The attack on ResNet-18 takes the emulator a minute and shows nothing that LeNet's does not.
    let all = if spec.model == data::Model::LeNet { &all[..] } else { &all[..1] };
    let pick = |id| {
        let q = Query::new(&pool, &trainer, &model, &view, 1, Rng::new(3).at(Purpose::Select, 1, 0));
        (methods::find(id).unwrap().make)(&config).select(&q, POOL).unwrap()
    };
    all.iter().map(|id| (*id, pick(id))).collect()
}

/// On a linear classifier: the same whole numbers on both devices, whatever the number of slots.
fn attacks() {
    let Some(s) = cuda(3) else { return };
    let (n, p, c) = (75, 300, 3);
    let r = Rng::new(8);
    let x: Vec<f32> = (0..(n * p) as u64).map(|e| (r.u32(e) % 5) as f32 - 2.0).collect();
    // No whole numbers: the sign of a gradient that cancels would be that of a rounding.
    let mut w: Vec<f32> = (0..(c * p) as u64).map(|e| 4.0 * r.lane(1).uniform(e) - 2.0).collect();
    (0..c).for_each(|i| w[i * p] = 0.0); // one input that moves nothing
    let run = |d: &Device, along, batch, graphs| {
        let (x, w) = (Tensor::new(d, [n, p], &x).unwrap(), Tensor::new(d, [c, p], &w).unwrap());
        let labels = ops::argmax_rows(&ops::matmul_nt(&x, &w).unwrap()).unwrap();
        let rule = Attack { eps: 0.0625, cap: 2, along, keep_norm: false, batch, graphs };
        let ids: Vec<u32> = (0..n as u32).collect();
        rule.run((&ids, p), &labels, |ids| ops::gather_rows(&x, ids), |x| ops::matmul_nt(x, &w)).unwrap()
    };
    for along in [Along::Margin, Along::CrossEntropy { fallback: true }, Along::CrossEntropy { fallback: false }] {
        let want = run(&Device::Cpu, along, 16, true);
        for (batch, graphs) in [(n, false), (40, true), (7, true)] {
            assert_eq!(run(&s.device, along, batch, graphs), want, "{along:?}, {batch} slots");
        }
        let never = want.iter().filter(|f| **f == NEVER).count();
        assert!(0 < never && never < n, "{along:?}: {never} of {n} keep their class");
    }
    let d = &s.device;
    let x = Tensor::new(d, [2, 1], &[1.0, f32::NAN]).unwrap();
    let w = Tensor::new(d, [2, 1], &[1.0f32, -1.0]).unwrap();
    let labels = Tensor::new(d, [2], &[0u32, 0]).unwrap();
    let rule = Attack { eps: 0.5, cap: 9, along: Along::Margin, keep_norm: true, batch: 2, graphs: true };
    let e = rule.run((&[0, 1], 1), &labels, |ids| ops::gather_rows(&x, ids), |x| ops::matmul_nt(x, &w)).unwrap_err();
    assert!(e.to_string().contains("example 1"), "{e}");
}
