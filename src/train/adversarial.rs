//! A variational auto-encoder against a discriminator of its codes, METHODS 6.14.
//!
//! The auto-encoder minimises, over a labelled and an unlabelled batch, Σ [mse(x̂, x) + KL(μ, ln σ²) + bce(D(μ), 1)]: all of
//! its codes are to look labelled. The discriminator minimises bce(D(μ_L), 1) + bce(D(μ_U), 0). For every batch of the
//! task's training there are two steps of the former, on batches of their own, and one of the latter on the second
//! of them; these three are one step of fixed shapes, captured once and replayed.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::Trainer;
use crate::clock::Clock;
use crate::data::PoolIdx;
use crate::device::Device;
use crate::device::cuda::Replay;
use crate::nn::vae::{Discriminator, Sizes, Vae};
use crate::nn::{Ctx, Layout, Mode, Params};
use crate::ops::{self, AdamRule};
use crate::optim::Adam;
use crate::rng::{Purpose, Rng};
use crate::tensor::{Buf, Dtype, Tensor};
use crate::{Error, Result};

/// Learning rate of both.
const RATE: f32 = 5e-4;
/// Steps of the auto-encoder for each of the discriminator.
const VAE_STEPS: usize = 2;

/// How the divergence is counted beside the mean squared error of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kl {
    /// Summed over batch and dimensions: as published. It outweighs the pictures, so that the codes tell little.
    Sum,
    /// Their mean.
    Mean,
}

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adversarial {
    /// Of the auto-encoder.
    pub sizes: Sizes,
    /// Its pictures end in a sigmoid.
    pub sigmoid: bool,
    /// Five layers of the discriminator instead of the study's.
    pub deep: bool,
    /// The divergence.
    pub kl: Kl,
    /// Of both optimizers.
    pub adam: AdamRule,
    /// Images of each kind in a step.
    pub batch: usize,
}

/// Both networks with their optimizers.
pub struct Game {
    rules: Adversarial,
    vae: Vae,
    discriminator: Discriminator,
    /// The weights of the auto-encoder.
    pub vae_params: Params,
    /// The weights of the discriminator.
    pub discriminator_params: Params,
    adam: [Adam; 2],
    /// (batch, 1) of 0 and of 1.
    verdicts: [Tensor; 2],
    /// The noise of codes; at the step of the clock, a lane for the labelled and one for the unlabelled.
    noise: Rng,
}

impl Game {
    /// Fresh weights of (seed, round), from other streams than those of the task's network.
    pub fn new(rules: Adversarial, device: &Device, seed: u64, round: u32) -> Result<Game> {
        let (mut layout, mut judge) = (Layout::default(), Layout::default());
        let vae = Vae::new(&mut layout, rules.sizes, rules.sigmoid)?;
        let discriminator = Discriminator::new(&mut judge, rules.sizes, rules.deep);
        let rng = Rng::new(seed);
        let vae_params = layout.init(device, rng.at(Purpose::Init, round, 1))?;
        let discriminator_params = judge.init(device, rng.at(Purpose::Init, round, 2))?;
        let adam = [Adam::new(&vae_params, rules.adam)?, Adam::new(&discriminator_params, rules.adam)?];
        let all = |v: f32| Tensor::new(device, [rules.batch, 1], &vec![v; rules.batch]);
        let verdicts = [all(0.0)?, all(1.0)?];
        let noise = rng.at(Purpose::Vae, round, 0);
        Ok(Game { rules, vae, discriminator, vae_params, discriminator_params, adam, verdicts, noise })
    }

    /// For a pass of the auto-encoder.
    pub fn context<'a>(&'a self, mode: Mode, clock: &'a Rc<Clock>) -> Ctx<'a> {
        Ctx::new(mode, self.noise, clock, &self.vae_params)
    }

    fn judge<'a>(&'a self, mode: Mode, clock: &'a Rc<Clock>) -> Ctx<'a> {
        Ctx::new(mode, self.noise, clock, &self.discriminator_params)
    }

    /// μ, ln σ² (N, z) and the pictures (N, H, W, C) of codes drawn from them; lane 0 is for labelled images, 1 for
    /// unlabelled ones.
    pub fn forward(&self, x: &Tensor, lane: u32, cx: &Ctx) -> Result<[Tensor; 3]> {
        let [mu, logvar] = self.vae.encode(x, cx)?;
        let z = ops::reparameterize(&mu, &logvar, self.noise.lane(lane), cx.clock)?;
        let made = self.vae.decode(&z, cx)?;
        Ok([mu, logvar, made])
    }

    /// The loss of the auto-encoder on a labelled and an unlabelled batch, `rules.batch` images (N, H, W, C) each.
    pub fn vae_loss(&self, x: [&Tensor; 2], cx: &Ctx) -> Result<Tensor> {
        let mut loss: Option<Tensor> = None;
        for (x, lane) in x.into_iter().zip(0..) {
            let [mu, logvar, made] = self.forward(x, lane, cx)?;
            let picture = ops::mse(&made, x)?;
            let kl = ops::gauss_kl(&mu, &logvar)?;
            let kl = match self.rules.kl {
                Kl::Sum => kl,
                Kl::Mean => ops::scale(&kl, 1.0 / mu.len() as f32)?,
            };
            // A judge whose weights are constants here.
            let verdict = self.discriminator.forward(&mu, &self.judge(Mode::Eval, cx.clock))?;
            let fooled = ops::bce_with_logits(&verdict, &self.verdicts[1])?;
            let own = ops::add(&ops::add(&picture, &kl)?, &fooled)?;
            loss = Some(match loss {
                Some(sum) => ops::add(&sum, &own)?,
                None => own,
            });
        }
        loss.ok_or(Error::Device { op: "vaal", why: "lost its batches".into() })
    }

    /// A step of the auto-encoder; returns the loss before it.
    pub fn vae_step(&mut self, x: [&Tensor; 2], clock: &Rc<Clock>) -> Result<Tensor> {
        let cx = self.context(Mode::Train, clock);
        let loss = self.vae_loss(x, &cx)?;
        let grads = loss.backward(&self.vae_params)?;
        let (seen, value) = (cx.into_seen(), loss.detach());
        drop(loss); // frees the graph's windows on the weights before they move
        self.adam[0].step(&mut self.vae_params, &grads, clock)?;
        self.vae_params.absorb(&seen)?;
        Ok(value)
    }

    /// A step of the discriminator; returns the loss before it. The auto-encoder keeps its weights, but sees the batches
    /// as in training.
    pub fn discriminator_step(&mut self, [labelled, unlabelled]: [&Tensor; 2], clock: &Rc<Clock>) -> Result<Tensor> {
        let cx = self.context(Mode::Train, clock);
        let code = |x: &Tensor| self.vae.encode(x, &cx).map(|[mu, _]| mu.detach());
        let codes = [code(labelled)?, code(unlabelled)?];
        let seen = cx.into_seen();
        self.vae_params.absorb(&seen)?;
        let judge = self.judge(Mode::Train, clock);
        let against =
            |code: &Tensor, verdict: &Tensor| ops::bce_with_logits(&self.discriminator.forward(code, &judge)?, verdict);
        let loss = ops::add(&against(&codes[0], &self.verdicts[1])?, &against(&codes[1], &self.verdicts[0])?)?;
        let grads = loss.backward(&self.discriminator_params)?;
        let value = loss.detach();
        drop(loss); // as above
        self.adam[1].step(&mut self.discriminator_params, &grads, clock)?;
        Ok(value)
    }

    /// How far images (n, H, W, C) look labelled, as logits (n, 1): of μ, by the running statistics.
    pub fn verdict(&self, x: &Tensor, clock: &Rc<Clock>) -> Result<Tensor> {
        let [mu, _] = self.vae.encode(x, &self.context(Mode::Eval, clock))?;
        self.discriminator.forward(&mu, &self.judge(Mode::Eval, clock))
    }

    /// Plays for `epochs` of ⌈L / batch⌉ steps on the images of `trainer` as it trains on them, of which `labelled` and
    /// `unlabelled` are ids, neither of them empty.
    pub fn train(
        &mut self,
        trainer: &Trainer,
        round: u32,
        [labelled, unlabelled]: [&[PoolIdx]; 2],
        epochs: u32,
    ) -> Result<()> {
        let (data, batch) = (trainer.data, self.rules.batch);
        let (device, pixels) = (&data.device, &data.train.pixels);
        let view = trainer.train_view(round)?;
        let steps = labelled.len().div_ceil(batch);
        let halves = VAE_STEPS * steps;
        let order = || Tensor::zeros(device, [halves * batch], Dtype::U32);
        let mut orders = [order()?, order()?];
        let mut losses: [Buf<f32>; 2] = [Buf::zeros(device, halves)?, Buf::zeros(device, halves)?];
        let clock = Rc::new(Clock::new(device)?);
        let mut replay = Replay::new(trainer.graphs);
        for epoch in 0..epochs {
            let rng = Rng::new(trainer.seed).at(Purpose::Shuffle, round, epoch);
            for ((order, set), lane) in orders.iter_mut().zip([labelled, unlabelled]).zip(1..) {
                order.buf_mut("vaal")?.write(device, &draws(set, halves * batch, batch, rng, lane))?;
            }
            clock.start(epoch * halves as u32, epoch, RATE)?;
            for _ in 0..steps {
                let step = || {
                    for half in 1..=VAE_STEPS {
                        let batch_of = |order| ops::gather_images(pixels, order, &clock, batch, &view);
                        let [l, u] = [batch_of(&orders[0])?, batch_of(&orders[1])?];
                        ops::write_loss(&mut losses[0], &self.vae_step([&l, &u], &clock)?, &clock)?;
                        if half == VAE_STEPS {
                            ops::write_loss(&mut losses[1], &self.discriminator_step([&l, &u], &clock)?, &clock)?;
                        }
                        clock.advance(batch)?;
                    }
                    Ok(())
                };
                replay.run(device, step).map_err(|e| {
                    e.needed_for(|| {
                        let remedy = format!("use a smaller batch, such as --set train.batch={}", (batch / 2).max(1));
                        (format!("a step of VAAL's auto-encoder on twice {batch} images"), remedy)
                    })
                })?;
            }
            for (losses, of) in losses.iter().zip(["auto-encoder", "discriminator"]) {
                let losses = losses.to_host()?;
                if let Some(half) = losses.iter().position(|l| !l.is_finite()) {
                    return Err(diverged(of, losses[half], round, epoch, half / VAE_STEPS));
                }
            }
            (trainer.check)()?;
        }
        Ok(())
    }
}

/// `len` ids of `set`: passes over it, each in an order of its own, or independent draws where it is smaller than a batch.
fn draws(set: &[PoolIdx], len: usize, batch: usize, rng: Rng, lane: u32) -> Vec<u32> {
    let n = set.len();
    if n < batch {
        let rng = rng.lane(lane);
        return (0..len as u64).map(|e| set[((u64::from(rng.u32(e)) * n as u64) >> 32) as usize].0).collect();
    }
    passes(&set.iter().map(|i| i.0).collect::<Vec<_>>(), len, rng, lane)
}

/// `len` ids of `set`, which has some: passes over it, each in an order of its own.
pub(super) fn passes(set: &[u32], len: usize, rng: Rng, lane: u32) -> Vec<u32> {
    let pass = |p: u32| rng.lane(2 * p + lane).permutation(set.len()).into_iter().map(|i| set[i as usize]);
    (0..).flat_map(pass).take(len).collect()
}

fn diverged(of: &str, loss: f32, round: u32, epoch: u32, step: usize) -> Error {
    Error::NonFinite {
        what: format!(
            "vaal: the loss of the {of} became {loss} in round {round}, epoch {epoch}, step {step}; fewer epochs (--set \
             vaal.epochs=N) or the mean of the divergence (--set vaal.kl=mean) may help; finished rounds are kept"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_over_a_set_are_whole_and_small_sets_are_drawn_from() {
        let set: Vec<PoolIdx> = (0..10).map(|i| PoolIdx(3 * i)).collect();
        let rng = Rng::new(5).at(Purpose::Shuffle, 1, 2);
        let ids = draws(&set, 25, 4, rng, 1);
        for pass in [&ids[..10], &ids[10..20]] {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, set.iter().map(|i| i.0).collect::<Vec<_>>());
        }
        assert_ne!(ids[..10], ids[10..20], "every pass has an order of its own");
        assert_ne!(ids, draws(&set, 25, 4, rng, 2), "and so has every set");
        let drawn = draws(&set, 4000, 11, rng, 1);
        let count = |id: &PoolIdx| drawn.iter().filter(|d| **d == id.0).count();
        assert_eq!(set.iter().map(count).sum::<usize>(), 4000);
        assert!(set.iter().all(|id| (count(id) as i32 - 400).abs() < 100));
    }
}
