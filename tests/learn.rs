//! Does it learn: a handful of examples by heart, and more from more labels. And is training what it is said to be.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dalcore::Error;
use dalcore::bench::config::{Config, Preset, Profile};
use dalcore::clock::Clock;
use dalcore::data::{Dataset, Flip, Images, Model, PoolIdx, Spec, cifar, synthetic};
use dalcore::device::Device;
use dalcore::nn::lenet::LeNet;
use dalcore::nn::{Ctx, Layout, Mode, Net, Precision, checkpoint};
use dalcore::ops::{self, View};
use dalcore::optim::Sgd;
use dalcore::rng::{Purpose, Rng};
use dalcore::tensor::{Buf, Tensor};
use dalcore::train::{
    CrossEntropy, DeviceData, EpochEnd, Fit, Forget, Keep, MixMatch, Recipe, Ssl, Steps, Trainer, Training,
};

fn recipe() -> Recipe {
    Config::base(&synthetic::SPEC, &Preset::find("smoke").unwrap().1, Profile::Clean).train
}

fn data(train: usize, test: usize) -> (DeviceData, Vec<(PoolIdx, u32)>) {
    let train = synthetic::generate(3, synthetic::Split::Train, train);
    let labelled = (0..).map(PoolIdx).zip(train.labels.iter().copied()).collect();
    let set = Dataset::new(&synthetic::SPEC, train, synthetic::generate(3, synthetic::Split::Test, test));
    (DeviceData::new(&Device::Cpu, &set).unwrap(), labelled)
}

fn fit(data: &DeviceData, recipe: &Recipe, labelled: &[(PoolIdx, u32)], seed: u64) -> Fit {
    let trainer = Trainer {
        data,
        recipe,
        eval_batch: 256,
        graphs: true,
        seed,
        on_epoch: &|_| Ok(()),
        check: &|| Ok(()),
        mixmatch: None,
    };
    trainer.fit(0, labelled).unwrap()
}

#[test]
fn thirty_two_examples_by_heart() {
    let (data, labelled) = data(32, 32);
    let mut r = recipe();
    (r.epochs, r.milestones, r.lr, r.crop_pad, r.weight_decay) = (600, vec![400], 0.03, 0, 0.0);
    // Dropout keeps the training loss noisy: what counts is the best of the last epochs.
    let fit = fit(&data, &r, &labelled, 1);
    let last = fit.loss[550..].iter().copied().fold(f64::INFINITY, f64::min);
    assert!(last < 0.1 && last < fit.loss[0] / 20.0, "loss went from {} to {last}", fit.loss[0]);
}

#[test]
fn more_labels_give_better_accuracy() {
    let (data, labelled) = data(2000, 1000);
    let mut r = recipe();
    (r.epochs, r.milestones) = (10, vec![7]);
    let at = |n: usize| *fit(&data, &r, &labelled[..n], 1).correct.last().unwrap();
    let (few, many) = (at(100), at(2000));
    assert!(few > 150 && many > few + 100, "{few} and {many} of 1000");
}

#[test]
fn a_diverging_run_says_where() {
    let (data, labelled) = data(300, 50);
    let mut r = recipe();
    (r.lr, r.grad_clamp) = (1e18, 0.0);
    let trainer = Trainer {
        data: &data,
        recipe: &r,
        eval_batch: 256,
        graphs: true,
        seed: 1,
        on_epoch: &|_| Ok(()),
        check: &|| Ok(()),
        mixmatch: None,
    };
    let e = trainer.fit(4, &labelled).err().unwrap().to_string();
    assert!(e.contains("round 4") && e.contains("epoch") && e.contains("step") && e.contains("train.lr"), "{e}");
}

#[test]
fn training_repeats_and_ignores_the_thread_count() {
    let (data, labelled) = data(300, 100);
    let r = recipe();
    let weights = || checkpoint::to_bytes(&fit(&data, &r, &labelled, 9).model.params).unwrap();
    let one = weights();
    assert_eq!(one, weights());
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let in_pool = |n: usize| {
        pool(n).install(|| {
            // Tensors stay on one thread, so the data is made again inside.
            let (data, labelled) = self::data(300, 100);
            checkpoint::to_bytes(&fit(&data, &recipe(), &labelled, 9).model.params).unwrap()
        })
    };
    assert_eq!(one, in_pool(1), "one thread");
    assert_eq!(one, in_pool(3), "three threads");
}

/// The weights of three epochs, written out: the order of every epoch, its batches with or without the tail, crops,
/// flips and masks that follow the epoch and the step, a rate that drops after the first epoch.
fn written_out(data: &DeviceData, r: &Recipe, labelled: &[(PoolIdx, u32)], seed: u64, sizes: &[usize]) -> Vec<u8> {
    const ROUND: u32 = 4;
    let (d, root) = (&Device::Cpu, Rng::new(seed));
    let mut layout = Layout::default();
    let net = LeNet::new(&mut layout, 10);
    let mut params = layout.init(d, root.at(Purpose::Init, ROUND, 0)).unwrap();
    let mut sgd = Sgd::new(&params, r.momentum, r.weight_decay, Some(r.grad_clamp)).unwrap();
    let (mean, std) = (&synthetic::SPEC.mean, &synthetic::SPEC.std);
    let view = View::train(d, mean, std, r.crop_pad, Flip::Half, root, ROUND).unwrap();
    let clock = Rc::new(Clock::new(d).unwrap());
    let mut labels = vec![0; data.train.len()];
    labelled.iter().for_each(|(id, label)| labels[id.index()] = *label);
    let labels = Buf::from_host(d, &labels).unwrap();
    for (epoch, rate) in [(0, 0.05), (1, 0.005), (2, 0.005)] {
        let order = root.at(Purpose::Shuffle, ROUND, epoch).permutation(labelled.len());
        let order: Vec<u32> = order.into_iter().map(|i| labelled[i as usize].0.0).collect();
        let order = Tensor::new(d, [order.len()], &order).unwrap();
        clock.start(epoch * sizes.len() as u32, epoch, rate).unwrap();
        for n in sizes {
            let x = ops::gather_images(&data.train.pixels, &order, &clock, *n, &view).unwrap();
            let y = ops::gather_labels(&labels, &order, &clock, *n).unwrap();
            let rng = root.at(Purpose::Dropout, ROUND, 0);
            let cx = Ctx::new(Mode::Train, rng, &clock, &params);
            let loss = ops::cross_entropy(&net.forward(&x, &cx).unwrap().logits, &y).unwrap();
            let grads = loss.backward(&params).unwrap();
            sgd.step(&mut params, &grads, &clock).unwrap();
            clock.advance(*n).unwrap();
        }
    }
    checkpoint::to_bytes(&params).unwrap()
}

#[test]
fn training_is_the_loop_written_out() {
    let (data, all) = data(104, 10);
    let mut r = recipe();
    (r.epochs, r.milestones, r.lr, r.batch) = (3, vec![1], 0.05, 16);
    (r.crop_pad, r.flip, r.grad_clamp, r.drop_small_tail) = (2, true, 0.1, true);
    // A tail of a quarter stays, a smaller one does not, unless it is all there is.
    for (n, sizes) in [(52, &[16, 16, 16, 4][..]), (51, &[16, 16, 16]), (3, &[3])] {
        let labelled: Vec<(PoolIdx, u32)> = all.iter().skip(1).step_by(2).take(n).copied().collect();
        let trainer = Trainer {
            data: &data,
            recipe: &r,
            eval_batch: 8,
            graphs: true,
            seed: 9,
            on_epoch: &|_| Ok(()),
            check: &|| Ok(()),
            mixmatch: None,
        };
        let got = checkpoint::to_bytes(&trainer.fit(4, &labelled).unwrap().model.params).unwrap();
        assert!(got == written_out(&data, &r, &labelled, 9, sizes), "{n} examples in batches of {sizes:?}");
    }
}

/// Written to bytes after any epoch and read back, a training of a network with running statistics ends with the same
/// bytes: weights, statistics and momentum are all there is.
#[test]
fn a_training_goes_on_from_its_bytes() {
    let spec = Spec { model: Model::ResNet18 { width: 2 }, ..cifar::CIFAR10.clone() };
    let images = |n: usize, seed: u64| Images {
        n,
        h: 32,
        w: 32,
        c: 3,
        pixels: (0..n as u64 * 3072).map(|e| Rng::new(seed).u32(e) as u8).collect(),
        labels: (0..n as u32).map(|i| i % 10).collect(),
    };
    let data = DeviceData::new(&Device::Cpu, &Dataset::new(&spec, images(30, 1), images(12, 2))).unwrap();
    let labelled: Vec<(PoolIdx, u32)> = (0..30).map(|i| (PoolIdx(i), i % 10)).collect();
    let mut r = recipe();
    (r.epochs, r.batch, r.milestones, r.lr) = (4, 8, vec![3], 0.05);
    for precision in [Precision::F32, Precision::Bf16] {
        r.precision = precision;
        goes_on(&data, &r, &labelled);
    }
}

fn goes_on(data: &DeviceData, r: &Recipe, labelled: &[(PoolIdx, u32)]) {
    let trainer = Trainer {
        data,
        recipe: r,
        eval_batch: 5,
        graphs: true,
        seed: 1,
        on_epoch: &|_| Ok(()),
        check: &|| Ok(()),
        mixmatch: None,
    };
    let saved = |t: &Training| {
        let params = &t.model.params;
        (checkpoint::to_bytes(params).unwrap(), checkpoint::momentum_to_bytes(params, &t.sgd).unwrap())
    };
    let mut after = Vec::new();
    let mut whole = trainer.start(0).unwrap();
    let mut keep = |_: &EpochEnd, t: &Training, steps: &Steps| {
        assert_eq!((steps.losses.len(), steps.order.len()), (4, 30));
        after.push((saved(t), t.correct.clone(), t.loss.clone()));
        Ok(())
    };
    trainer.go_on(&CrossEntropy, 0, labelled, &mut whole, &mut keep).unwrap();
    assert!(after.len() == 4 && after[0].0.1 != after[1].0.1, "momentum moves");
    for ((model, momentum), correct, loss) in &after {
        let mut t = trainer.start(0).unwrap();
        checkpoint::from_bytes(&mut t.model.params, model).unwrap();
        checkpoint::momentum_from_bytes(&t.model.params, &mut t.sgd, momentum).unwrap();
        (t.correct, t.loss) = (correct.clone(), loss.clone());
        trainer.go_on(&CrossEntropy, 0, labelled, &mut t, &mut |_, _, _| Ok(())).unwrap();
        assert!(saved(&t) == saved(&whole) && t.loss == whole.loss && t.correct == whole.correct);
    }
    // What has settled stays settled.
    let r = Recipe { early_stop: f64::INFINITY, ..r.clone() };
    let trainer = Trainer { recipe: &r, ..trainer };
    let mut t = trainer.start(0).unwrap();
    trainer.go_on(&CrossEntropy, 0, labelled, &mut t, &mut |_, _, _| Ok(())).unwrap();
    assert_eq!(t.loss.len(), 2);
    trainer.go_on(&CrossEntropy, 0, labelled, &mut t, &mut |_, _, _| panic!("an epoch too many")).unwrap();
}

/// Keeps a state in memory, and stops the training at some steps.
struct Stops {
    state: RefCell<Option<Vec<u8>>>,
    /// Steps until the training is stopped; never at 0.
    left: Cell<u32>,
}

impl Keep for Stops {
    fn take(&self) -> dalcore::Result<Option<Vec<u8>>> {
        Ok(self.state.borrow().clone())
    }

    fn due(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left == 1
    }

    fn put(&self, state: &[u8]) -> dalcore::Result<()> {
        *self.state.borrow_mut() = Some(state.into());
        Err(Error::Interrupted { resume: "stopped by the test".into() })
    }
}

/// Stopped at every step in turn, within epochs and at their ends, the training ends with the same bytes: LeNet, and a
/// narrow ResNet-18 whose running statistics decay too. A state of something else is refused.
#[test]
fn mixmatch_stopped_anywhere_goes_on_with_the_same_bytes() {
    let (lenet, labelled) = data(64, 20);
    let spec = Spec { model: Model::ResNet18 { width: 2 }, ..cifar::CIFAR10.clone() };
    let images = |n: usize| Images {
        n,
        h: 32,
        w: 32,
        c: 3,
        pixels: (0..n as u64 * 3072).map(|e| Rng::new(4).u32(e) as u8).collect(),
        labels: (0..n as u32).map(|i| i % 10).collect(),
    };
    let resnet = DeviceData::new(&Device::Cpu, &Dataset::new(&spec, images(24), images(6))).unwrap();
    for (data, labelled, batch) in [(&lenet, &labelled[..20], 16), (&resnet, &labelled[..5], 6)] {
        let labelled: Vec<(PoolIdx, u32)> = labelled.iter().map(|(id, l)| (*id, l % 10)).collect();
        let mut r = recipe();
        (r.epochs, r.batch, r.crop_pad, r.flip) = (2, batch, 2, true);
        let ssl = Ssl { ramp: 4.0, lr: 0.05, per_sample: batch == 6, shrink_everything: batch == 6, ..Ssl::default() };
        let fit = |keep: &dyn Keep, round| {
            let trainer = Trainer {
                data,
                recipe: &r,
                eval_batch: 8,
                graphs: true,
                seed: 1,
                on_epoch: &|_| Ok(()),
                check: &|| Ok(()),
                mixmatch: Some(MixMatch { ssl: &ssl, keep }),
            };
            trainer.fit(round, &labelled)
        };
        let whole = fit(&Forget, 0).unwrap();
        let bytes = |f: &Fit| checkpoint::to_bytes(&f.model.params).unwrap();
        assert_eq!((whole.correct.len(), whole.loss.len()), (2, 2));
        assert_ne!(bytes(&whole), bytes(&fit(&Forget, 1).unwrap()), "rounds differ");
        for stop in 1..=8 {
            let keep = Stops { state: RefCell::default(), left: Cell::new(stop) };
            assert!(fit(&keep, 0).is_err_and(|e| e.to_string().contains("by the test")), "stopped at step {stop}");
            let e = fit(&keep, 1).err().unwrap().to_string();
            assert!(e.contains("round 0"), "{e}");
            let broken = fit(&keep, 0).unwrap();
            assert!(bytes(&broken) == bytes(&whole), "stopped at step {stop}");
            assert_eq!((&broken.correct, &broken.loss), (&whole.correct, &whole.loss));
        }
        let other = checkpoint::to_bytes(&whole.model.params).unwrap();
        let keep = Stops { state: RefCell::new(Some(other)), left: Cell::new(0) };
        let e = fit(&keep, 0).err().unwrap().to_string();
        assert!(e.contains("another trainer"), "{e}");
    }
}

/// From sixty labels, and where there are fewer of them than a batch has images and one class has none. Without unlabelled
/// images there is nothing to train on.
#[test]
fn mixmatch_learns() {
    let (data, labelled) = data(1200, 400);
    let mut r = recipe();
    (r.epochs, r.batch, r.milestones) = (6, 32, vec![]);
    let ssl = Ssl { ramp: 0.0, lambda_u: 25.0, lr: 0.05, ema: 0.99, ..Ssl::default() };
    let mix = |labelled: &[(PoolIdx, u32)]| {
        let trainer = Trainer {
            data: &data,
            recipe: &r,
            eval_batch: 256,
            graphs: true,
            seed: 3,
            on_epoch: &|_| Ok(()),
            check: &|| Ok(()),
            mixmatch: Some(MixMatch { ssl: &ssl, keep: &Forget }),
        };
        trainer.fit(0, labelled).map(|f| *f.correct.last().unwrap())
    };
    let few: Vec<(PoolIdx, u32)> = labelled.iter().copied().take(60).collect();
    let right = mix(&few).unwrap();
    assert!(right > 280, "{right} of 400 by 222 steps");
    let fewer: Vec<(PoolIdx, u32)> = few.iter().copied().filter(|(_, l)| *l != 3).take(20).collect();
    let right = mix(&fewer).unwrap();
    assert!(right > 40, "{right} of 400 from twenty labels, none of them of class 3: no better than chance");
    let e = mix(&labelled).err().unwrap().to_string();
    assert!(e.contains("no unlabelled example") && e.contains("budget.end"), "{e}");
}
