//! Whole training runs on the device: eager and replayed as graphs the same bytes, and the CPU's numbers.

use std::rc::Rc;

use dalcore::bench::config::{Config, Preset, Profile};
use dalcore::clock::Clock;
use dalcore::data::{self, Dataset, Images, PoolIdx, Spec, synthetic};
use dalcore::device::Device;
use dalcore::device::cuda::Replay;
use dalcore::methods::learning_loss::LearningLoss;
use dalcore::methods::waal::Waal;
use dalcore::methods::{Method, Round, gcn};
use dalcore::nn::resnet::ResNet18;
use dalcore::nn::vae::Sizes;
use dalcore::nn::{Ctx, Layout, Mode, Net, Precision};
use dalcore::ops::{self, AdamRule, Conv, Mixtures, Rise, View};
use dalcore::optim::{Adam, Sgd};
use dalcore::rng::{Purpose, Rng};
use dalcore::tensor::{Buf, Tensor};
use dalcore::train::{
    Adversarial, DeviceData, Evaluator, Fit, Forget, Game, Kl, Learner, MixMatch, Model, Pass, Recipe, Ssl, Trainer,
    extract, sweep,
};

use crate::common::{assert_close, cuda, scale};

/// Trains a small LeNet as `with` does.
fn fit_by(
    device: &Device,
    graphs: bool,
    precision: Precision,
    with: impl FnOnce(&Trainer, &[(PoolIdx, u32)]) -> Fit,
) -> (Fit, Vec<f64>) {
    let train = synthetic::generate(3, synthetic::Split::Train, 54);
    let labelled: Vec<(PoolIdx, u32)> = (0..).map(PoolIdx).zip(train.labels.iter().copied()).collect();
    let set = Dataset::new(&synthetic::SPEC, train, synthetic::generate(3, synthetic::Split::Test, 20));
    let data = DeviceData::new(device, &set).unwrap();
    let mut recipe = Config::base(&data.spec, &Preset::find("smoke").unwrap().1, Profile::Repro).train;
    // Three full batches and a tail per epoch, flips and crops, the learning rate drops once.
    (recipe.epochs, recipe.batch, recipe.milestones, recipe.crop_pad) = (2, 16, vec![1], 2);
    (recipe.drop_small_tail, recipe.lr, recipe.precision) = (false, 0.05, precision);
    let trainer = Trainer {
        data: &data,
        recipe: &recipe,
        eval_batch: 8,
        graphs,
        seed: 1,
        on_epoch: &|_| Ok(()),
        check: &|| Ok(()),
        mixmatch: None,
    };
    let fit = with(&trainer, &labelled);
    let ids: Vec<u32> = (0..20).rev().collect();
    let view = trainer.plain_view().unwrap();
    let pass = Pass { view: &view, batch: 7, graphs };
    let logits = extract(&fit.model, &data.train, &ids, pass).unwrap().logits.to_f64().unwrap();
    (fit, logits)
}

fn fit(device: &Device, graphs: bool, precision: Precision) -> (Fit, Vec<f64>) {
    fit_by(device, graphs, precision, |trainer, labelled| trainer.fit(2, labelled).unwrap())
}

fn weights(f: &Fit) -> Vec<f64> {
    f.model.params.to_host().unwrap().into_iter().flat_map(|(_, v)| v).map(f64::from).collect()
}

pub fn lenet() {
    // Eight steps. One step's gradients differ by the rounding of sums of up to 16·576 terms; momentum adds up a
    // few steps of lr 0.05 of it: 9216 · 2^-24 · 0.05 · 8 is 2e-4 of a gradient's size.
    trains_alike(Precision::F32, [2e-4, 1e-3, 1e-4]);
    // An activation or a gradient that falls on the other side of a rounding is 2^-8 of its size away; a weight sees
    // the mean of many such: a step moves it by up to 0.05 · 0.1, so 2^-8 of that eight times over.
    trains_alike(Precision::Bf16, [2e-4, 2e-2, 2e-3]);
}

/// With a head on the maps, detached in the second epoch: the same bounds.
pub fn learning_loss() {
    let mut config = Config::base(&synthetic::SPEC, &Preset::find("smoke").unwrap().1, Profile::Clean);
    config.learning_loss.detach = 0.5;
    let run = |device: &Device, graphs: bool| {
        fit_by(device, graphs, Precision::F32, |trainer, labelled| {
            LearningLoss::new(&config).fit(&Round { trainer, number: 2, labelled }).unwrap()
        })
    };
    alike(run, [2e-4, 1e-3, 1e-4]);
}

/// Two epochs of three steps against a critic, the last of each a small one: the same bounds. And one epoch of two steps of
/// a narrow ResNet-18, whose critic looks at the embedding and whose statistics see both batches, in both halves.
pub fn critic() {
    let mut config = Config::base(&synthetic::SPEC, &Preset::find("smoke").unwrap().1, Profile::Clean);
    (config.waal.lr, config.waal.alpha) = (0.05, 0.1);
    let run = |device: &Device, graphs: bool| {
        fit_by(device, graphs, Precision::F32, |trainer, labelled| {
            Waal::new(&config).fit(&Round { trainer, number: 2, labelled: &labelled[..20] }).unwrap()
        })
    };
    alike(run, [2e-4, 1e-3, 1e-4]);

    let spec = Spec { model: data::Model::ResNet18 { width: 2 }, ..data::cifar::CIFAR10.clone() };
    let pixels = |n: usize| (0..(n * 3072) as u64).map(|e| Rng::new(9).u32(e) as u8).collect();
    let split = |n: usize| Images { n, h: 32, w: 32, c: 3, pixels: pixels(n), labels: vec![3; n] };
    let set = Dataset::new(&spec, split(10), split(2));
    let run = |device: &Device, graphs: bool| {
        let data = DeviceData::new(device, &set).unwrap();
        let mut recipe = Config::base(&spec, &Preset::find("smoke").unwrap().1, Profile::Repro).train;
        (recipe.batch, recipe.epochs) = (4, 1);
        let (on_epoch, check) = (&|_: &_| Ok(()), &|| Ok(()));
        let trainer =
            Trainer { data: &data, recipe: &recipe, eval_batch: 2, graphs, seed: 2, on_epoch, check, mixmatch: None };
        let labelled = [(PoolIdx(1), 3), (PoolIdx(4), 3), (PoolIdx(8), 3), (PoolIdx(9), 3)];
        let fit = Waal::new(&config).fit(&Round { trainer: &trainer, number: 1, labelled: &labelled }).unwrap();
        let view = trainer.plain_view().unwrap();
        let ids: Vec<u32> = (0..10).collect();
        let pass = Pass { view: &view, batch: 4, graphs };
        let logits = extract(&fit.model, &data.train, &ids, pass).unwrap().logits.to_f64().unwrap();
        (fit, logits)
    };
    // As `resnet_alike`, with normalisations over 64 values of the last maps and over 32 in the second step.
    alike(run, [1e-4, 1e-3, 1e-4]);
}

/// A third labelled, the rest by their guesses: an epoch of six steps of three times 8 images.
pub fn mixmatch() {
    let ssl = Ssl { lr: 0.05, ramp: 4.0, ema: 0.8, ..Ssl::default() };
    let run = |precision| {
        move |device: &Device, graphs: bool| {
            fit_by(device, graphs, precision, |t, labelled| {
                let how = Some(MixMatch { ssl: &ssl, keep: &Forget });
                let Trainer { data, recipe, eval_batch, graphs, seed, on_epoch, check, .. } = *t;
                let recipe = &Recipe { epochs: 1, batch: 8, ..recipe.clone() };
                let trainer = Trainer { data, recipe, eval_batch, graphs, seed, on_epoch, check, mixmatch: how };
                trainer.fit(2, &labelled[..18]).unwrap()
            })
        }
    };
    // As for eight steps of supervised training; up to fifty times the squared error adds its share of rounding.
    alike(run(Precision::F32), [5e-4, 2e-3, 5e-4]);
    alike(run(Precision::Bf16), [2e-3, 5e-2, 1e-2]);
}

/// Two steps of a narrow ResNet-18, whose five passes normalise by their own batches: eager and replayed the same bytes, and
/// the CPU's numbers, averages and running statistics included.
pub fn mixmatch_normalised() {
    const BATCH: usize = 4;
    let run = |d: &Device, graphs: bool| {
        let root = Rng::new(5);
        let fresh = || {
            let mut layout = Layout::default();
            let net = Box::new(ResNet18::new(&mut layout, 2, [32, 3], 5).unwrap());
            Model { net, params: layout.init(d, root.at(Purpose::Init, 0, 0)).unwrap(), classes: 5 }
        };
        let ssl = Ssl { ema: 0.5, per_sample: true, shrink_everything: true, ..Ssl::default() };
        let mut learner = Learner::new(fresh(), fresh(), ssl, 0.9).unwrap();
        let clock = Rc::new(Clock::new(d).unwrap());
        clock.start(0, 3, 0.05).unwrap();
        let images = [0, 1, 2].map(|lane| {
            let x: Vec<f32> = (0..(BATCH * 3072) as u64).map(|e| 2.0 * root.lane(lane).uniform(e) - 1.0).collect();
            Tensor::new(d, [BATCH, 32, 32, 3], &x).unwrap()
        });
        let [x, u, v] = &images;
        let labels = Tensor::new(d, [BATCH], &[0u32, 4, 3, 3]).unwrap();
        let rows = 3 * BATCH as u32;
        let partners: Vec<u32> = (0..3 * rows).map(|i| (i * 5 + 2) % rows).collect();
        let shares: Vec<f32> = (0..3 * rows).map(|i| 0.5 + 0.01 * i as f32).collect();
        let mixtures = Mixtures {
            partners: Tensor::new(d, [partners.len()], &partners).unwrap(),
            shares: Tensor::new(d, [shares.len()], &shares).unwrap(),
        };
        let rise = Rise { most: 20.0, ramp: 6.0, steps: 3 };
        let mut losses: Buf<f32> = Buf::zeros(d, 3).unwrap();
        let mut replay = Replay::new(graphs);
        for _ in 0..3 {
            replay
                .run(d, || {
                    let dropout = root.at(Purpose::Dropout, 0, 0);
                    let loss = learner.step([x, u, v], &labels, &mixtures, rise, dropout, &clock)?;
                    ops::write_loss(&mut losses, &loss, &clock)?;
                    clock.advance(BATCH)
                })
                .unwrap();
        }
        let of = |m: &Model| m.params.to_host().unwrap().into_iter().flat_map(|(_, v)| v).map(f64::from).collect();
        let [model, average]: [Vec<f64>; 2] = [of(&learner.model), of(&learner.average)];
        (model, average, losses.to_host().unwrap().into_iter().map(f64::from).collect::<Vec<_>>())
    };
    let Some(s) = cuda(0) else { return };
    let (eager, host) = (run(&s.device, false), run(&Device::Cpu, true));
    assert_eq!(eager, run(&s.device, true), "replaying a graph changes the bytes");
    // As for three supervised steps; the last maps are normalised over 64 values.
    assert_close("parameters and statistics", &eager.0, &host.0, |_| 2e-4 * scale(&host.0));
    assert_close("their averages", &eager.1, &host.1, |_| 2e-4 * scale(&host.1));
    assert_close("losses", &eager.2, &host.2, |w| 1e-3 * w);
}

/// A graph network after some steps: eager and replayed the same bytes, and the CPU's numbers.
pub fn graph_network() {
    let run = |device: &Device, graphs: bool| {
        let r = Rng::new(8);
        let rows: Vec<f32> = (0..70 * 9).map(|e| r.uniform(e)).collect();
        let features = Tensor::new(device, [70, 9], &rows).unwrap();
        let training = gcn::Training { steps: 5, ..gcn::Training::default() };
        let found = gcn::learn(&features, 40, &training, r.at(Purpose::Gcn, 1, 0), graphs, &|| Ok(()));
        found.unwrap().map(|t| t.to_f64().unwrap())
    };
    let Some(s) = cuda(0) else { return };
    let (eager, host) = (run(&s.device, false), run(&Device::Cpu, true));
    assert_eq!(eager, run(&s.device, true), "replaying a graph changes the bytes");
    // Sums of up to 128 terms; five steps of at most 1e-3, of which a gradient near zero may take the other direction.
    for (what, got, want) in [("hidden features", &eager[0], &host[0]), ("scores", &eager[1], &host[1])] {
        assert_close(what, got, want, |_| 1e-4 * scale(want));
    }
}

/// Tolerances: weights, logits, losses.
fn trains_alike(precision: Precision, tolerances: [f64; 3]) {
    alike(|device, graphs| fit(device, graphs, precision), tolerances);
}

fn alike(fit: impl Fn(&Device, bool) -> (Fit, Vec<f64>), [weight, logit, loss]: [f64; 3]) {
    let (host, host_logits) = fit(&Device::Cpu, true);
    let (eager, replayed) = {
        let Some(s) = cuda(0) else { return };
        (fit(&s.device, false), fit(&s.device, true))
    };
    assert_eq!(weights(&eager.0), weights(&replayed.0), "replaying a graph changes the bytes");
    assert_eq!(eager.1, replayed.1);
    assert_eq!((&eager.0.loss, &eager.0.correct), (&replayed.0.loss, &replayed.0.correct));
    let want = weights(&host);
    assert_close("weights after eight steps", &weights(&eager.0), &want, |_| weight * scale(&want));
    assert_close("logits", &eager.1, &host_logits, |_| logit * scale(&host_logits));
    assert_close("losses", &eager.0.loss, &host.loss, |w| loss * w);
}

/// Three steps of a narrow ResNet-18, momentum and running statistics included, and an evaluation: eager and replayed
/// the same bytes, and the CPU's numbers.
pub fn resnet() {
    // Twenty layers of sums, and momentum over three steps; a normalisation over 80 values of the last maps enlarges
    // what the layers before it were off by.
    resnet_alike(Precision::F32, [1e-4, 1e-3]);
    // Each of twenty layers rounds to 2^-9; what falls on the other side of a rounding or of relu is enlarged likewise.
    resnet_alike(Precision::Bf16, [2e-2, 0.1]);
}

/// Tolerances: parameters and statistics, logits.
fn resnet_alike(precision: Precision, [state, logit]: [f64; 2]) {
    const BATCH: usize = 5;
    let run = |d: &Device, graphs: bool| {
        let mut layout = Layout::default();
        let net = ResNet18::new(&mut layout, 4, [32, 3], 7).unwrap();
        let root = Rng::new(5);
        let mut params = layout.init(d, root.at(Purpose::Init, 0, 0)).unwrap();
        params.set_precision(precision).unwrap();
        let mut sgd = Sgd::new(&params, 0.9, 5e-4, Some(0.1)).unwrap();
        let clock = Rc::new(Clock::new(d).unwrap());
        clock.start(0, 0, 0.05).unwrap();
        let x: Vec<f32> = (0..(BATCH * 3072) as u64).map(|e| 2.0 * root.uniform(e) - 1.0).collect();
        let x = Tensor::new(d, [BATCH, 32, 32, 3], &x).unwrap();
        let labels = Tensor::new(d, [BATCH], &[0u32, 6, 3, 3, 1]).unwrap();
        let mut replay = Replay::new(graphs);
        for _ in 0..3 {
            replay
                .run(d, || {
                    let cx = Ctx::new(Mode::Train, root.at(Purpose::Dropout, 0, 0), &clock, &params);
                    let loss = ops::cross_entropy(&net.forward(&x, &cx)?.logits, &labels)?;
                    let grads = loss.backward(&params)?;
                    let seen = cx.into_seen();
                    drop(loss);
                    sgd.step(&mut params, &grads, &clock)?;
                    params.absorb(&seen)?;
                    clock.advance(BATCH)
                })
                .unwrap();
        }
        let mut logits = Vec::new();
        for mode in [Mode::Eval, Mode::McDropout { pass: 0 }, Mode::McDropout { pass: 1 }] {
            let cx = Ctx::new(mode, root.at(Purpose::McDropout, 0, 0), &clock, &params);
            logits.push(net.forward(&x, &cx).unwrap().logits.to_f64().unwrap());
        }
        assert!(logits[0] != logits[1] && logits[1] != logits[2], "every pass has masks of its own");
        let state: Vec<f64> = params.to_host().unwrap().into_iter().flat_map(|(_, v)| v).map(f64::from).collect();
        (state, logits.concat())
    };
    let Some(s) = cuda(0) else { return };
    let (eager, host) = (run(&s.device, false), run(&Device::Cpu, true));
    assert_eq!(eager, run(&s.device, true), "replaying a graph changes the bytes");
    assert_close("parameters and statistics", &eager.0, &host.0, |_| state * scale(&host.0));
    assert_close("logits", &eager.1, &host.1, |_| logit * scale(&host.1));
}

/// A tiny variational auto-encoder with a discriminator on its code, by Adam: noise, step count and rate are read on the
/// device, so the step is captured like any other. Eager and replayed the same bytes, and the CPU's numbers.
pub fn variational() {
    const BATCH: usize = 6;
    let run = |d: &Device, graphs: bool| {
        let mut layout = Layout::default();
        let [mean, spread, judge] = ["mean", "spread", "judge"].map(|name| layout.add(name, [4, 8], 8));
        let filters = layout.add("filters", [4, 4, 4, 2], 4);
        let root = Rng::new(6);
        let mut params = layout.init(d, root.at(Purpose::Init, 0, 0)).unwrap();
        let mut adam = Adam::new(&params, AdamRule { eps: 1e-3, ..AdamRule::default() }).unwrap();
        let clock = Rc::new(Clock::new(d).unwrap());
        clock.start(30, 0, 0.01).unwrap();
        let x: Vec<f32> = (0..BATCH as u64 * 8).map(|e| root.uniform(e)).collect();
        let x = Tensor::new(d, [BATCH, 8], &x).unwrap();
        let real = Tensor::new(d, [BATCH, 4], &[1.0f32, 0.0, 0.0].map(|v| [v; 8]).concat()).unwrap();
        let mut average: Buf<f32> = Buf::zeros(d, 32).unwrap();
        let mut replay = Replay::new(graphs);
        for step in 0..6 {
            if step == 4 {
                clock.start(30 + step, 1, 0.001).unwrap();
            }
            replay
                .run(d, || {
                    let mu = ops::linear(&x, &params.tensor(mean)?, None)?;
                    let logvar = ops::clamp(&ops::linear(&x, &params.tensor(spread)?, None)?, -20.0, 20.0)?;
                    let z = ops::reparameterize(&mu, &logvar, root.at(Purpose::Vae, 0, 0), &clock)?;
                    let z = ops::tanh(&z)?.reshape([BATCH, 1, 1, 4])?;
                    let made = ops::conv_transpose2d(&z, &params.tensor(filters)?, None, Conv { stride: 2, pad: 1 })?;
                    let made = ops::sigmoid(&made)?.reshape([BATCH, 8])?;
                    let vae = ops::add(&ops::scale(&ops::mse(&made, &x)?, 48.0)?, &ops::gauss_kl(&mu, &logvar)?)?;
                    let halves = [ops::slice_rows(&mu, 3, 3)?, ops::slice_rows(&mu, 0, 3)?];
                    let code = ops::concat_rows(&[&halves[0], &halves[1]])?;
                    let code = ops::concat_cols(&[&ops::normalize_rows(&code)?, &ops::leaky_relu(&code, 0.2)?])?;
                    let verdict = ops::linear(&code, &params.tensor(judge)?, None)?;
                    let loss = ops::add(&vae, &ops::bce_with_logits(&verdict, &real)?)?;
                    let grads = loss.backward(&params)?;
                    adam.step(&mut params, &grads, &clock)?;
                    ops::ema_step(&mut average, params.tensor(mean)?.buf("average")?, d, 0.5)?;
                    clock.advance(BATCH)
                })
                .unwrap();
        }
        let mut state: Vec<f64> = params.to_host().unwrap().into_iter().flat_map(|(_, v)| v).map(f64::from).collect();
        state.extend(average.to_host().unwrap().into_iter().map(f64::from));
        state
    };
    let Some(s) = cuda(0) else { return };
    let (eager, host) = (run(&s.device, false), run(&Device::Cpu, true));
    assert_eq!(eager, run(&s.device, true), "replaying a graph changes the bytes");
    // Noise good to 1e-6 and a few dozen roundings behind each gradient; six steps of at most 0.01 each, of which m / √v
    // passes on an error of m relative to ε = 1e-3 at worst.
    assert_close("weights", &eager, &host, |_| 6.0 * 0.01 * 5e-6 / 1e-3);
}

/// VAAL's game in small: two epochs of two steps, and what the discriminator then says. Eager and replayed the same bytes,
/// and the CPU's numbers.
pub fn adversarial() {
    let spec = data::cifar::CIFAR10.clone();
    let pixels = |n: usize| (0..(n * 3072) as u64).map(|e| Rng::new(8).u32(e) as u8).collect();
    let split = |n: usize| Images { n, h: 32, w: 32, c: 3, pixels: pixels(n), labels: vec![0; n] };
    let set = Dataset::new(&spec, split(9), split(1));
    let mut recipe = Config::base(&spec, &Preset::find("smoke").unwrap().1, Profile::Repro).train;
    recipe.batch = 2;
    let rules = Adversarial {
        sizes: Sizes::Conv { side: 32, channels: 3, width: 2, code: 3 },
        sigmoid: false,
        deep: false,
        kl: Kl::Sum,
        adam: AdamRule { eps: 1e-3, ..AdamRule::default() },
        batch: 2,
    };
    let (labelled, unlabelled): (Vec<_>, Vec<_>) = (0..9).map(PoolIdx).partition(|id| id.0 % 3 == 0);
    let run = |device: &Device, graphs: bool| {
        let data = DeviceData::new(device, &set).unwrap();
        let (on_epoch, check) = (&|_: &_| Ok(()), &|| Ok(()));
        let trainer =
            Trainer { data: &data, recipe: &recipe, eval_batch: 4, graphs, seed: 2, on_epoch, check, mixmatch: None };
        let mut game = Game::new(rules, device, 2, 1).unwrap();
        game.train(&trainer, 1, [&labelled, &unlabelled], 2).unwrap();
        let view = trainer.plain_view().unwrap();
        let pass = Pass { view: &view, batch: 4, graphs };
        let ids: Vec<u32> = (0..9).collect();
        let [said] = sweep(&data.train, &ids, pass, [1], |x, clock| Ok([game.verdict(x, clock)?])).unwrap();
        let state = [&game.vae_params, &game.discriminator_params].map(|p| p.to_host().unwrap()).concat();
        let state: Vec<f64> = state.into_iter().flat_map(|(_, v)| v).map(f64::from).collect();
        (state, said.to_f64().unwrap())
    };
    let Some(s) = cuda(0) else { return };
    let (eager, host) = (run(&s.device, false), run(&Device::Cpu, true));
    assert_eq!(eager, run(&s.device, true), "replaying a graph changes the bytes");
    // Noise good to 1e-6, behind eight normalisations over eight values at the narrowest; as above, a step of 5e-4 passes on
    // an error of a gradient relative to ε = 1e-3.
    assert_close("weights and statistics", &eager.0, &host.0, |_| 1e-4 * scale(&host.0));
    assert_close("verdicts", &eager.1, &host.1, |_| 1e-3 * scale(&host.1));
}

/// Test counts and features of LeNet and of a narrow ResNet-18, over batches that do and do not divide the images:
/// eager and replayed the same bytes, every batch at its own place, and the CPU's numbers.
pub fn evaluation() {
    evaluates_alike(Precision::F32, 1e-4);
    // A sum that rounds to the neighbouring bf16, 2⁻⁸ of it, in a few of up to eighteen layers.
    evaluates_alike(Precision::Bf16, 2e-2);
}

fn evaluates_alike(precision: Precision, tolerance: f64) {
    let run = |device: &Device, spec: &Spec, graphs: bool| {
        let split = |n: usize, seed: u64| {
            let size = n * spec.h * spec.w * spec.c;
            let rng = Rng::new(seed);
            Images {
                n,
                h: spec.h,
                w: spec.w,
                c: spec.c,
                pixels: (0..size as u64).map(|e| rng.u32(e) as u8).collect(),
                labels: (0..n as u64).map(|e| rng.u32(e) % spec.classes as u32).collect(),
            }
        };
        let set = Dataset::new(spec, split(13, 1), split(9, 2));
        let data = DeviceData::new(device, &set).unwrap();
        let view = View::plain(device, &spec.mean, &spec.std).unwrap();
        let [model, other] = [1, 2].map(|seed| {
            let mut model = Model::fresh(&data, seed, 0).unwrap();
            model.params.set_precision(precision).unwrap();
            model
        });
        let ids: Vec<u32> = (0..13).rev().collect();
        let (mut counts, mut rows) = (Vec::new(), Vec::new());
        for batch in [4, 13] {
            let pass = Pass { view: &view, batch, graphs };
            let mut evaluator = Evaluator::new(&data, pass).unwrap();
            // The third time every batch is a replay; another model's addresses are not those of the graph.
            for m in [&model, &model, &model, &other] {
                counts.push(evaluator.correct(m).unwrap());
            }
            let f = extract(&model, &data.train, &ids, pass).unwrap();
            rows.push([f.logits.to_f64().unwrap(), f.embeddings.to_f64().unwrap()].concat());
        }
        assert!(counts.chunks(4).all(|c| c == &counts[..4]) && counts[0] == counts[2]);
        assert!(rows.iter().all(|r| r == &rows[0]), "rows do not depend on the batch");
        (counts, rows.swap_remove(0))
    };
    let lenet = Spec { classes: 3, ..synthetic::SPEC.clone() };
    let resnet = Spec { model: data::Model::ResNet18 { width: 2 }, classes: 3, ..data::cifar::CIFAR10.clone() };
    let mut differ = false;
    for spec in [&lenet, &resnet] {
        let host = run(&Device::Cpu, spec, true);
        let Some(s) = cuda(0) else { return };
        let eager = run(&s.device, spec, false);
        assert_eq!(eager, run(&s.device, spec, true), "replaying a graph changes the bytes");
        assert_close("features", &eager.1, &host.1, |_| tolerance * scale(&host.1));
        differ |= host.0[0] != host.0[3];
    }
    assert!(differ, "models that all count the same prove nothing");
}

/// A small step replayed eight times; and a step that allocates more than its first run is refused.
pub fn graphs() {
    let Some(s) = cuda(0) else { return };
    let run = |graphs: bool| {
        let x = Tensor::new(&s.device, [300], &[0.5f32; 300]).unwrap();
        let mut sum: Buf<f32> = Buf::zeros(&s.device, 300).unwrap();
        let mut replay = Replay::new(graphs);
        for _ in 0..8 {
            replay
                .run(&s.device, || {
                    let old = Tensor::from_buf(&s.device, [300], sum.clone())?;
                    let new = ops::relu(&ops::add(&ops::scale(&old, 0.5)?, &x)?)?;
                    ops::copy_into(&mut sum, 0, new.buf("graphs")?, &s.device)
                })
                .unwrap();
        }
        sum.to_host().unwrap()
    };
    let eager = run(false);
    assert_eq!(eager, run(true));
    assert!((eager[7] - (1.0 - 0.5f32.powi(8))).abs() < 1e-6);

    let mut replay = Replay::new(true);
    let mut sizes = [64usize, 1 << 20].into_iter();
    let mut step = || {
        let n = sizes.next().unwrap();
        replay.run(&s.device, || Tensor::zeros(&s.device, [n], dalcore::tensor::Dtype::F32).map(drop))
    };
    step().unwrap();
    let e = step().unwrap_err().to_string();
    assert!(e.contains("capture") && e.contains("first, eager run"), "{e}");
    // The stream is usable again.
    assert_eq!(Tensor::new(&s.device, [1], &[7.0f32]).unwrap().to_vec::<f32>().unwrap(), [7.0]);
}
