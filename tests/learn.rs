//! Does it learn: a handful of examples by heart, and more from more labels.

use dalcore::bench::config::{Config, Preset, Profile};
use dalcore::data::{Dataset, PoolIdx, synthetic};
use dalcore::device::Device;
use dalcore::train::{DeviceData, Fit, Recipe, Trainer};

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
    let trainer = Trainer { data, recipe, eval_batch: 256, graphs: true, seed, on_epoch: &|_| Ok(()) };
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
    let trainer = Trainer { data: &data, recipe: &r, eval_batch: 256, graphs: true, seed: 1, on_epoch: &|_| Ok(()) };
    let e = trainer.fit(4, &labelled).err().unwrap().to_string();
    assert!(e.contains("round 4") && e.contains("epoch") && e.contains("step") && e.contains("train.lr"), "{e}");
}

#[test]
fn training_repeats_and_ignores_the_thread_count() {
    let (data, labelled) = data(300, 100);
    let r = recipe();
    let weights = || dalcore::nn::checkpoint::to_bytes(&fit(&data, &r, &labelled, 9).model.params).unwrap();
    let one = weights();
    assert_eq!(one, weights());
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let in_pool = |n: usize| {
        pool(n).install(|| {
            // Tensors stay on one thread, so the data is made again inside.
            let (data, labelled) = self::data(300, 100);
            dalcore::nn::checkpoint::to_bytes(&fit(&data, &recipe(), &labelled, 9).model.params).unwrap()
        })
    };
    assert_eq!(one, in_pool(1), "one thread");
    assert_eq!(one, in_pool(3), "three threads");
}
