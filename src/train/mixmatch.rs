//! MixMatch, METHODS 4: labelled and unlabelled images train together, and a moving average of the weights is the model.
//!
//! A step: guesses for two views of B unlabelled images by the weights of the moment, in training mode; mixtures of them
//! with B labelled ones; three passes over interleaved batches; cross-entropy of what is mostly labelled and squared error
//! of the rest; SGD, average, decoupled decay. Everything that moves from step to step is addressed by the step: a
//! training that was stopped within an epoch goes on at the step after, with the same bytes.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use safetensors::tensor::{Dtype as FileDtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::supervised::diverged;
use super::{EpochEnd, Evaluator, Fit, Model, Pass, Trainer};
use crate::autograd::Grads;
use crate::clock::Clock;
use crate::data::PoolIdx;
use crate::device::cuda::Replay;
use crate::nn::{Ctx, Mode, checkpoint};
use crate::ops::{self, Mixtures, Rise, SgdEmaRule};
use crate::optim::{SgdEma, rate_at};
use crate::rng::{Purpose, Rng, normals_of};
use crate::tensor::{Buf, Dtype, Tensor};
use crate::{Error, Result};

/// Keys under `ssl`: what MixMatch has beyond `train`, whose epochs, milestones, momentum, batch, crops and flips it shares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssl {
    /// Initial learning rate, in place of `train.lr`.
    pub lr: f64,
    /// Coupled L2 decay of every parameter, in place of `train.weight_decay`.
    pub weight_decay: f32,
    /// Guesses are raised to the power of one over this.
    pub temperature: f32,
    /// Shares of mixtures are drawn from Beta(α, α).
    pub alpha: f64,
    /// A share for every image instead of one for the step.
    pub per_sample: bool,
    /// What the squared error of unlabelled images is multiplied by in the end.
    pub lambda_u: f32,
    /// Epochs in which it rises linearly to that; 0 for no rise.
    pub ramp: f32,
    /// Decay of the moving average, per step.
    pub ema: f64,
    /// δ of the decoupled decay w ← w (1 − δ·rate) after each step.
    pub shrink: f32,
    /// It reaches biases, normalisations and running statistics too, as in the reference code.
    pub shrink_everything: bool,
}

impl Default for Ssl {
    /// METHODS 4.1 and 4.4; the decoupled decay reaches filters and linear weights.
    fn default() -> Ssl {
        Ssl {
            lr: 0.01,
            weight_decay: 5e-4,
            temperature: 0.5,
            alpha: 0.75,
            per_sample: false,
            lambda_u: 100.0,
            ramp: 200.0,
            ema: 0.999,
            shrink: 0.02,
            shrink_everything: false,
        }
    }
}

impl Ssl {
    /// Refuses what no training can use.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, why: &str| Err(Error::Config { key: format!("ssl.{key}"), why: why.into() });
        let some = |v: f64| v.is_finite() && v >= 0.0;
        if !some(self.lr) {
            return refuse("lr", "must be a number of at least 0");
        }
        if !some(self.alpha) || self.alpha == 0.0 || self.alpha > 1e6 {
            return refuse("alpha", "must be above 0 and at most 1000000: shares are drawn from Beta(alpha, alpha)");
        }
        if !(0.01..=100.0).contains(&self.temperature) {
            return refuse("temperature", "must be between 0.01 and 100");
        }
        if !some(self.lambda_u.into()) || !some(self.ramp.into()) {
            return refuse("lambda_u", "must be a number of at least 0, and ssl.ramp too");
        }
        if !(0.0..1.0).contains(&self.ema) {
            return refuse("ema", "must be at least 0 and below 1");
        }
        if !some(self.weight_decay.into()) || !some(self.shrink.into()) || f64::from(self.shrink) * self.lr >= 1.0 {
            return refuse("shrink", "must be at least 0 and below 1 / ssl.lr, and ssl.weight_decay at least 0");
        }
        Ok(())
    }

    fn rule(&self, momentum: f32) -> SgdEmaRule {
        SgdEmaRule { momentum, decay: self.weight_decay, ema: self.ema, shrink: self.shrink }
    }
}

/// Where a training that is stopped within a round leaves its state.
pub trait Keep {
    /// What an earlier start left.
    fn take(&self) -> Result<Option<Vec<u8>>>;

    /// True when it is time to leave it again.
    fn due(&self) -> bool;

    /// Leaves it; an error stops the training.
    fn put(&self, state: &[u8]) -> Result<()>;
}

/// Keeps nothing.
pub struct Forget;

impl Keep for Forget {
    fn take(&self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn due(&self) -> bool {
        false
    }

    fn put(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// What a trainer needs to train by MixMatch.
#[derive(Clone, Copy)]
pub struct MixMatch<'a> {
    /// The settings.
    pub ssl: &'a Ssl,
    /// Where the state goes within a round.
    pub keep: &'a dyn Keep,
}

/// A network in training and the average of its weights.
pub struct Learner {
    /// What the steps move.
    pub model: Model,
    /// What is evaluated.
    pub average: Model,
    /// The momentum.
    pub sgd: SgdEma,
    ssl: Ssl,
}

impl Learner {
    /// `model` and `average` are equal and fresh.
    pub fn new(model: Model, average: Model, ssl: Ssl, momentum: f32) -> Result<Learner> {
        let sgd = SgdEma::new(&model.params, ssl.rule(momentum), ssl.shrink_everything)?;
        Ok(Learner { model, average, sgd, ssl })
    }

    /// A step on B labelled images x with their labels, and on two views of B unlabelled ones, all (B, H, W, C). Returns
    /// the loss before it. `dropout` is the stream of the round.
    pub fn step(
        &mut self,
        [x, u, v]: [&Tensor; 3],
        labels: &Tensor,
        mixtures: &Mixtures,
        rise: Rise,
        dropout: Rng,
        clock: &Rc<Clock>,
    ) -> Result<Tensor> {
        let net = &*self.model.net;
        let params = &self.model.params;
        let mut seen = Vec::new();
        // Where no batch is normalised the passes over several batches are one over all of them.
        let mut pass = 0;
        let mut forward = |images: &[&Tensor], constant: bool| -> Result<Vec<Tensor>> {
            let mut logits = Vec::new();
            for x in images {
                let cx = Ctx::new(Mode::Train, dropout, clock, params).pass(pass);
                let cx = if constant { cx.constant() } else { cx };
                logits.push(net.forward(x, &cx)?.logits);
                seen.extend(cx.into_seen());
                pass += 1;
            }
            Ok(logits)
        };
        let batch = x.shape().nhwc("mixmatch")?[0];
        let whole = !params.normalises();
        let guesses = match whole {
            true => {
                let both = &forward(&[&ops::concat_rows(&[u, v])?], true)?[0];
                [ops::slice_rows(both, 0, batch)?, ops::slice_rows(both, batch, batch)?]
            }
            false => match forward(&[u, v], true)?.as_slice() {
                [u, v] => [u.clone(), v.clone()],
                _ => return Err(Error::Device { op: "mixmatch", why: "lost a guess".into() }),
            },
        };
        let q = ops::guess(&guesses[0], &guesses[1], self.ssl.temperature)?;
        let targets = ops::mix_targets(labels, &q, mixtures, clock)?;
        let images = ops::mix_images([x, u, v], mixtures, clock)?;
        let mut done: Option<(Tensor, Grads)> = None;
        let rows = if whole { 3 * batch } else { batch };
        // A batch's backward pass follows its forward pass: the activations of one batch are kept, not those of three.
        for first in (0..3 * batch).step_by(rows) {
            let logits = forward(&[&ops::slice_rows(&images, first, rows)?], false)?.remove(0);
            let [loss, _] = ops::mixmatch_loss(&logits, first, &targets, rise, clock)?;
            let more = loss.backward(params)?;
            done = Some(match done {
                None => (loss.detach(), more),
                Some((sum, mut grads)) => {
                    grads.add(more)?;
                    (ops::add(&sum, &loss.detach())?, grads)
                }
            });
        }
        let (value, grads) = done.ok_or_else(|| x.shape().refuse("mixmatch", "some images"))?;
        self.model.params.absorb(&seen)?;
        self.sgd.step(&mut self.model.params, &mut self.average.params, &grads, clock)?;
        Ok(value)
    }
}

/// Lanes of the shuffling streams.
const LABELLED: u32 = 0x10000;
const UNLABELLED: u32 = 0x10001;

/// The ids of the steps `steps` of an endless sampler, `batch` each: passes over the set in an order of their own, of which
/// what does not fill a batch is left out; independent draws where the set is smaller than a batch. `rng` is the stream
/// of the round.
fn sampled(set: &[PoolIdx], steps: Range<u32>, batch: usize, rng: Rng, lane: u32) -> Vec<u32> {
    let per_pass = (set.len() / batch) as u32;
    if per_pass == 0 {
        let (rng, n) = (rng.lane(lane), set.len() as u64);
        let elements = steps.start as u64 * batch as u64..steps.end as u64 * batch as u64;
        return elements.map(|e| set[((u64::from(rng.u32(e)) * n) >> 32) as usize].0).collect();
    }
    let (mut order, mut of) = (Vec::new(), None);
    let mut ids = Vec::with_capacity(steps.len() * batch);
    for step in steps {
        let pass = step / per_pass;
        if of.replace(pass) != Some(pass) {
            order = rng.with_b(pass).lane(lane).permutation(set.len());
        }
        let at = (step % per_pass) as usize * batch;
        ids.extend(order[at..at + batch].iter().map(|i| set[*i as usize].0));
    }
    ids
}

/// A draw from Gamma(a, 1) by Marsaglia and Tsang's rejection; attempt k takes block k of the stream.
fn gamma(a: f64, rng: Rng) -> f64 {
    // For a below one: that of a + 1, times a power of a uniform number.
    let d = if a < 1.0 { a + 1.0 } else { a } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    for k in 0.. {
        let words = rng.block(k);
        let x = normals_of(words)[0];
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && unit(words[2]).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v * if a < 1.0 { unit(words[3]).powf(1.0 / a) } else { 1.0 };
        }
    }
    d
}

/// The larger of λ and 1 − λ, λ being drawn from Beta(α, α); `i` is the image in the step, 0 for all of them.
fn share(alpha: f64, rng: Rng, i: u32) -> f32 {
    let [a, b] = [1, 2].map(|l| gamma(alpha, rng.lane(2 * i + l)));
    // Both may vanish where α is tiny: all of the one or all of the other, which are the same to us.
    let lambda = if a + b > 0.0 { a / (a + b) } else { 1.0 };
    lambda.max(1.0 - lambda) as f32
}

/// Partners and shares of the steps `steps`, `shares` of them a step. `rng` is the stream of the round.
fn draw(alpha: f64, steps: Range<u32>, batch: usize, shares: usize, rng: Rng) -> (Vec<u32>, Vec<f32>) {
    let partners = |step| rng.with_b(step).permutation(3 * batch);
    let shares = |step| (0..shares as u32).map(move |i| share(alpha, rng.with_b(step), i));
    (steps.clone().flat_map(partners).collect(), steps.flat_map(shares).collect())
}

/// Where a training is, beside its weights: what a state says in words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Progress {
    round: u32,
    /// The epoch that is on, and its finished steps.
    epoch: u32,
    step: u32,
    correct: Vec<u32>,
    loss: Vec<f64>,
    training_s: f64,
    evaluation_s: f64,
}

/// The key under which [`Progress`] is in a state's metadata.
const PROGRESS: &str = "mixmatch";

fn bad_state(why: impl std::fmt::Display) -> Error {
    Error::Data { path: "state of an unfinished round".into(), why: why.to_string() }
}

fn to_state(learner: &Learner, losses: &[f32], progress: &Progress) -> Result<Vec<u8>> {
    let parts = [
        ("model", checkpoint::to_bytes(&learner.model.params)?),
        ("average", checkpoint::to_bytes(&learner.average.params)?),
        ("velocity", checkpoint::momentum_to_bytes(&learner.model.params, &learner.sgd)?),
        ("losses", losses.iter().flat_map(|l| l.to_le_bytes()).collect()),
    ];
    let views = parts
        .iter()
        .map(|(name, b)| Ok((*name, TensorView::new(FileDtype::U8, vec![b.len()], b).map_err(bad_state)?)))
        .collect::<Result<Vec<_>>>()?;
    let words = serde_json::to_string(progress).map_err(bad_state)?;
    serialize(views, Some(HashMap::from([(PROGRESS.to_string(), words)]))).map_err(bad_state)
}

/// Takes up a state; returns the losses of the epoch that is on.
fn from_state(learner: &mut Learner, state: &[u8]) -> Result<(Vec<f32>, Progress)> {
    let file = SafeTensors::deserialize(state).map_err(bad_state)?;
    let (_, meta) = SafeTensors::read_metadata(state).map_err(bad_state)?;
    let words = meta.metadata().as_ref().and_then(|m| m.get(PROGRESS));
    let words = words.ok_or_else(|| bad_state("it was left by another trainer than MixMatch"))?;
    let progress = serde_json::from_str(words).map_err(bad_state)?;
    let part = |name: &str| file.tensor(name).map(|t| t.data()).map_err(bad_state);
    checkpoint::from_bytes(&mut learner.model.params, part("model")?)?;
    checkpoint::from_bytes(&mut learner.average.params, part("average")?)?;
    checkpoint::momentum_from_bytes(&learner.model.params, &mut learner.sgd, part("velocity")?)?;
    let losses = part("losses")?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok((losses, progress))
}

/// Trains a fresh model on the labelled examples (ascending ids, with their labels) and on all others without theirs.
pub(super) fn fit(trainer: &Trainer, how: MixMatch, round: u32, labelled: &[(PoolIdx, u32)]) -> Result<Fit> {
    let (data, recipe, device, ssl) = (trainer.data, trainer.recipe, &trainer.data.device, how.ssl);
    let (batch, n) = (recipe.batch, data.train.len());
    let known: Vec<PoolIdx> = labelled.iter().map(|(id, _)| *id).collect();
    let unlabelled: Vec<PoolIdx> = (0..n as u32).map(PoolIdx).filter(|id| known.binary_search(id).is_err()).collect();
    if known.is_empty() || unlabelled.is_empty() {
        let which = if known.is_empty() { "labelled" } else { "unlabelled" };
        let why = format!(
            "MixMatch has no {which} example in round {round} (pool of {n}): change budget.start or budget.end, or train \
             with --trainer supervised"
        );
        return Err(Error::Config { key: "trainer".into(), why });
    }
    let steps = ((n / batch) as u32).max(1);
    let fresh = || {
        let mut model = Model::fresh(data, trainer.seed, round)?;
        model.params.set_precision(recipe.precision)?;
        Ok::<_, Error>(model)
    };
    let mut learner = Learner::new(fresh()?, fresh()?, *ssl, recipe.momentum)?;
    let mut losses: Buf<f32> = Buf::zeros(device, steps as usize)?;
    let mut at = Progress { round, ..Progress::default() };
    if let Some(state) = how.keep.take()? {
        let (done, progress) = from_state(&mut learner, &state)?;
        if progress.round != round || done.len() != steps as usize {
            return Err(bad_state(format!("it is of round {} with epochs of {} steps", progress.round, done.len())));
        }
        losses.write(device, &done)?;
        at = progress;
    }

    let root = Rng::new(trainer.seed);
    let view =
        |lane| Ok::<_, Error>(trainer.train_view(round)?.lane(lane).each_step().stored_as(recipe.precision.dtype()));
    let views = [view(0)?, view(1)?];
    let plain = trainer.plain_view()?;
    let pass = Pass { view: &plain, batch: trainer.eval_batch, graphs: trainer.graphs };
    let mut evaluator = Evaluator::new(data, pass)?;
    // Labels that are not revealed are no class at all: a step that touched one would stop the run.
    let mut labels = vec![u32::MAX; n];
    for (id, label) in labelled {
        labels[id.index()] = *label;
    }
    let labels = Buf::from_host(device, &labels)?;
    let order = || Tensor::zeros(device, [steps as usize * batch], Dtype::U32);
    let mut orders = [order()?, order()?];
    let shares = if ssl.per_sample { 3 * batch } else { 1 };
    let mut mixtures = Mixtures {
        partners: Tensor::zeros(device, [3 * steps as usize * batch], Dtype::U32)?,
        shares: Tensor::zeros(device, [steps as usize * shares], Dtype::F32)?,
    };
    let rise = Rise { most: ssl.lambda_u, ramp: ssl.ramp, steps };
    let clock = Rc::new(Clock::new(device)?);
    let mut replay = Replay::new(trainer.graphs);

    while at.epoch < recipe.epochs {
        let (mut start, begun) = (Instant::now(), Instant::now());
        let (epoch, first) = (at.epoch, at.step);
        let all = epoch * steps..(epoch + 1) * steps;
        let shuffle = root.at(Purpose::Shuffle, round, 0);
        for ((order, set), lane) in orders.iter_mut().zip([&known, &unlabelled]).zip([LABELLED, UNLABELLED]) {
            order.buf_mut("mixmatch")?.write(device, &sampled(set, all.clone(), batch, shuffle, lane))?;
        }
        let next = draw(ssl.alpha, all.clone(), batch, shares, root.at(Purpose::MixUp, round, 0));
        mixtures.partners.buf_mut::<u32>("mixmatch")?.write(device, &next.0)?;
        mixtures.shares.buf_mut::<f32>("mixmatch")?.write(device, &next.1)?;
        let place = [at.step * batch as u32, at.step];
        clock.resume(all.start + at.step, epoch, rate_at(ssl.lr, &recipe.milestones, epoch), place)?;
        while at.step < steps {
            replay
                .run(device, || {
                    let batch_of = |order, view| ops::gather_images(&data.train.pixels, order, &clock, batch, view);
                    let [labelled, unlabelled] = &orders;
                    let images = [
                        batch_of(labelled, &views[0])?,
                        batch_of(unlabelled, &views[0])?,
                        batch_of(unlabelled, &views[1])?,
                    ];
                    let y = ops::gather_labels(&labels, labelled, &clock, batch)?;
                    let dropout = root.at(Purpose::Dropout, round, 0);
                    let images = [&images[0], &images[1], &images[2]];
                    let loss = learner.step(images, &y, &mixtures, rise, dropout, &clock)?;
                    ops::write_loss(&mut losses, &loss, &clock)?;
                    clock.advance(batch)
                })
                .map_err(|e| {
                    e.needed_for(|| {
                        let remedy = format!("use a smaller batch, such as --set train.batch={}", (batch / 2).max(1));
                        (format!("a step of MixMatch on three times {batch} images"), remedy)
                    })
                })?;
            at.step += 1;
            if how.keep.due() {
                let done = losses.to_host()?;
                at.training_s += start.elapsed().as_secs_f64();
                start = Instant::now();
                how.keep.put(&to_state(&learner, &done, &at)?)?;
            }
        }
        let done = losses.to_host()?;
        if let Some(step) = done.iter().position(|l| !l.is_finite()) {
            let remedy = format!("lower the learning rate (--set ssl.lr={}) or ssl.lambda_u", ssl.lr / 10.0);
            return Err(diverged(round, epoch, step, done[step], &remedy));
        }
        let training_s = begun.elapsed().as_secs_f64();
        at.training_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let correct = evaluator.correct(&learner.average)?;
        let evaluation_s = start.elapsed().as_secs_f64();
        at.evaluation_s += evaluation_s;
        let loss = done.iter().map(|l| f64::from(*l)).sum();
        at.correct.push(correct);
        at.loss.push(loss);
        (at.epoch, at.step) = (epoch + 1, 0);
        let images_per_second = 3.0 * f64::from(steps - first) * batch as f64 / training_s;
        (trainer.on_epoch)(&EpochEnd { epoch, loss, correct, images_per_second, training_s, evaluation_s })?;
    }
    let Progress { correct, loss, training_s, evaluation_s, .. } = at;
    Ok(Fit { model: learner.average, correct, loss, training_s, evaluation_s })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::bench::config::{Config, Preset, Profile};
    use crate::data::{Dataset, Flip, synthetic};
    use crate::device::Device;
    use crate::ops::View;
    use crate::train::{DeviceData, Recipe};

    fn ids(n: u32) -> Vec<PoolIdx> {
        (0..n).map(|i| PoolIdx(5 * i + 2)).collect()
    }

    #[test]
    fn samplers_go_over_the_set_in_passes_and_are_addressed_by_step() {
        let rng = Rng::new(6).at(Purpose::Shuffle, 2, 0);
        for (n, batch, per_pass) in [(7u32, 3, 2), (6, 3, 2), (6, 6, 1), (50, 8, 6)] {
            let set = ids(n);
            let all = sampled(&set, 0..20, batch, rng, UNLABELLED);
            let mut passes = Vec::new();
            for (pass, of) in all.chunks(per_pass * batch).enumerate() {
                let order = rng.with_b(pass as u32).lane(UNLABELLED).permutation(n as usize);
                let want = order.iter().map(|i| set[*i as usize].0).take(of.len());
                assert!(want.eq(of.iter().copied()), "pass {pass} over {n} by {batch}");
                passes.push(of.to_vec());
            }
            assert!(passes.windows(2).all(|w| w[0] != w[1]), "passes have orders of their own");
            let apart = |steps: Range<u32>| steps.flat_map(|s| sampled(&set, s..s + 1, batch, rng, UNLABELLED));
            assert!(
                apart(0..20).eq(all.iter().copied()) && apart(5..11).eq(sampled(&set, 5..11, batch, rng, UNLABELLED))
            );
            assert_ne!(all, sampled(&set, 0..20, batch, rng, LABELLED));
        }
        // Fewer than a batch: draws, each example about as often as the others.
        let set = ids(3);
        let all = sampled(&set, 0..300, 5, rng, LABELLED);
        for id in &set {
            let n = all.iter().filter(|i| **i == id.0).count();
            assert!((430..570).contains(&n), "{n} of 1500");
        }
        assert_eq!(all[35..50], sampled(&set, 7..10, 5, rng, LABELLED));
    }

    /// Of Beta(α, α) by SciPy: how often the larger share is at most .6, .75 and .9.
    #[test]
    fn shares_are_the_larger_ones_of_their_distribution() {
        let rng = Rng::new(8).at(Purpose::MixUp, 1, 0);
        let n = 20_000;
        for (alpha, want) in [
            (0.25, [0.077_055, 0.204_486, 0.383_828]),
            (0.75, [0.167_490, 0.426_953, 0.717_012]),
            (1.0, [0.2, 0.5, 0.8]),
            (4.0, [0.420_416, 0.858_887, 0.994_544]),
        ] {
            let shares = draw(alpha, 0..n, 1, 1, rng).1;
            assert!(shares.iter().all(|s| (0.5..=1.0).contains(s)));
            for (most, want) in [0.6, 0.75, 0.9].into_iter().zip(want) {
                let got = shares.iter().filter(|s| **s <= most).count() as f64 / f64::from(n);
                // Five standard deviations.
                assert!((got - want).abs() < 0.018, "{got} of Beta({alpha}, {alpha}) up to {most}, not {want}");
            }
        }
        assert!(draw(1e-6, 0..50, 1, 1, rng).1.iter().all(|s| *s > 0.99), "all of the one or all of the other");
    }

    #[test]
    fn partners_and_shares_are_addressed_by_step() {
        let rng = Rng::new(8).at(Purpose::MixUp, 1, 0);
        for shares in [1, 15] {
            let (partners, of) = draw(0.75, 3..9, 5, shares, rng);
            assert_eq!((partners.len(), of.len()), (6 * 15, 6 * shares));
            for (k, (step, own)) in partners.chunks(15).zip(of.chunks(shares)).enumerate() {
                let mut sorted = step.to_vec();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..15), "everybody is somebody's partner");
                assert_eq!(draw(0.75, 3 + k as u32..4 + k as u32, 5, shares, rng), (step.to_vec(), own.to_vec()));
            }
            assert!(partners.chunks(15).collect::<Vec<_>>().windows(2).all(|w| w[0] != w[1]));
            let mut distinct: Vec<u32> = of.iter().map(|s| s.to_bits()).collect();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), of.len(), "every step, and every image, draws its own");
        }
    }

    const ROUND: u32 = 4;
    const SEED: u64 = 9;

    fn pool() -> (DeviceData, Vec<(PoolIdx, u32)>) {
        let images = |split, n| synthetic::generate(3, split, n);
        let (train, test) = (images(synthetic::Split::Train, 62), images(synthetic::Split::Test, 300));
        let labelled = (0..62).filter(|i| i % 3 == 1).map(|i| (PoolIdx(i), train.labels[i as usize])).collect();
        (DeviceData::new(&Device::Cpu, &Dataset::new(&synthetic::SPEC, train, test)).unwrap(), labelled)
    }

    fn recipe() -> Recipe {
        let mut r = Config::base(&synthetic::SPEC, &Preset::find("smoke").unwrap().1, Profile::Clean).train;
        (r.epochs, r.milestones, r.batch, r.crop_pad, r.flip) = (3, vec![2], 8, 2, true);
        r
    }

    fn trained(ssl: &Ssl, ends: &Cell<u32>) -> Result<Fit> {
        let (data, labelled) = pool();
        let on_epoch = |e: &EpochEnd| {
            assert_eq!(e.epoch, ends.replace(e.epoch + 1));
            Ok(())
        };
        let (recipe, mixmatch) = (&recipe(), Some(MixMatch { ssl, keep: &Forget }));
        let check = &|| Ok(());
        let (data, on_epoch) = (&data, &on_epoch);
        Trainer { data, recipe, eval_batch: 50, graphs: true, seed: SEED, on_epoch, check, mixmatch }
            .fit(ROUND, &labelled)
    }

    /// Three epochs written out, a step at a time: which images, by which views, with which partners, shares, masks, rate and
    /// weight; what is evaluated, and what is told.
    #[test]
    fn a_training_is_the_loop_written_out() {
        for per_sample in [false, true] {
            let ssl = Ssl { ramp: 2.0, lr: 0.1, ema: 0.8, lambda_u: 5.0, per_sample, ..Ssl::default() };
            let ends = Cell::new(0);
            let got = trained(&ssl, &ends).unwrap();
            let ((data, labelled), r, root, d) = (pool(), recipe(), Rng::new(SEED), &Device::Cpu);
            let known: Vec<PoolIdx> = labelled.iter().map(|(id, _)| *id).collect();
            let others: Vec<PoolIdx> = (0..62).filter(|i| i % 3 != 1).map(PoolIdx).collect();
            let fresh = || Model::fresh(&data, SEED, ROUND).unwrap();
            let mut learner = Learner::new(fresh(), fresh(), ssl, r.momentum).unwrap();
            let clock = Rc::new(Clock::new(d).unwrap());
            let (mean, std) = (&data.spec.mean, &data.spec.std);
            let view = |k| View::train(d, mean, std, 2, Flip::Half, root, ROUND).unwrap().lane(k).each_step();
            let plain = View::plain(d, mean, std).unwrap();
            let mut evaluator = Evaluator::new(&data, Pass { view: &plain, batch: 64, graphs: false }).unwrap();
            let (mut losses, mut correct, mut of_the_student) = (Vec::new(), Vec::new(), Vec::new());
            for epoch in 0..3 {
                let mut sum = 0.0;
                for step in 0..7 {
                    let t = 7 * epoch + step;
                    clock.resume(t, epoch, if epoch < 2 { 0.1 } else { 0.01 }, [0, step]).unwrap();
                    let shuffle = root.at(Purpose::Shuffle, ROUND, 0);
                    let x = sampled(&known, t..t + 1, 8, shuffle, LABELLED);
                    let u = sampled(&others, t..t + 1, 8, shuffle, UNLABELLED);
                    let seen = |ids: &[u32], k| {
                        let order = Tensor::new(d, [8], ids).unwrap();
                        ops::gather_images(&data.train.pixels, &order, &clock, 8, &view(k)).unwrap()
                    };
                    let of = |id: &u32| labelled.iter().find(|l| l.0.0 == *id).unwrap().1;
                    let y = Tensor::new(d, [8], &x.iter().map(of).collect::<Vec<_>>()).unwrap();
                    let n = if per_sample { 24 } else { 1 };
                    let (partners, shares) = draw(ssl.alpha, t..t + 1, 8, n, root.at(Purpose::MixUp, ROUND, 0));
                    let mixtures = Mixtures {
                        partners: Tensor::new(d, [24], &partners).unwrap(),
                        shares: Tensor::new(d, [n], &shares).unwrap(),
                    };
                    let rise = Rise { most: ssl.lambda_u, ramp: 2.0, steps: 7 };
                    let dropout = root.at(Purpose::Dropout, ROUND, 0);
                    let images = [&seen(&x, 0), &seen(&u, 0), &seen(&u, 1)];
                    let loss = learner.step(images, &y, &mixtures, rise, dropout, &clock).unwrap();
                    sum += loss.to_f64().unwrap()[0];
                }
                losses.push(sum);
                correct.push(evaluator.correct(&learner.average).unwrap());
                of_the_student.push(evaluator.correct(&learner.model).unwrap());
            }
            assert_eq!((&got.loss, &got.correct, ends.get()), (&losses, &correct, 3));
            assert_ne!(correct, of_the_student, "this would not tell who is evaluated");
            let bytes = |m: &Model| checkpoint::to_bytes(&m.params).unwrap();
            assert!(bytes(&got.model) == bytes(&learner.average));
        }
    }

    #[test]
    fn a_diverging_training_says_where() {
        let e = trained(&Ssl { lr: 1e18, shrink: 0.0, ..Ssl::default() }, &Cell::new(0)).err().unwrap().to_string();
        assert!(e.contains("round 4") && e.contains("epoch 0") && e.contains("step") && e.contains("ssl.lr="), "{e}");
    }
}
