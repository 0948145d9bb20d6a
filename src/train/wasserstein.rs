//! Training against a critic of the features, METHODS 6.15: labelled and unlabelled images are to look alike.
//!
//! A step takes a labelled and an unlabelled batch of one size, with labels y of the former, and has two halves. First the
//! network minimises CE(x_L, y) + α·d, d = mean g(h_U) − γ·mean g(h_L), the critic g a constant. Then, on the features h of
//! the network so moved, constants in turn, the critic minimises −α·d ± 2α·mean (‖∇_h g‖ − 1)², the mean being over points
//! between pairs of h_L and h_U, h_U and h_L. An epoch pairs the longer list with as many of the shorter, which wraps: it is
//! taken in passes, each in an order of its own. An image looks the same throughout an epoch.

use std::rc::Rc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::adversarial::passes;
use super::{CrossEntropy, EpochEnd, Evaluator, Fit, Pass, Trainer, Training};
use crate::clock::Clock;
use crate::data::PoolIdx;
use crate::device::cuda::Replay;
use crate::nn::critic::Critic;
use crate::nn::{Ctx, Layout, Mode, Params, Running};
use crate::ops::{self, BatchStats};
use crate::optim::{Sgd, rate_at};
use crate::rng::{Purpose, Rng};
use crate::tensor::{Buf, Dtype, Tensor};
use crate::{Error, Result};

/// Lanes of `Purpose::Critic`: the layers of the network have the first ones, for unlabelled images. Masks of the critic in
/// the network's half for labelled and unlabelled features, masks in its own half, points between features.
const LABELLED: u32 = 8;
const UNLABELLED: u32 = 9;
const OWN: u32 = 10;
const POINTS: u32 = 11;

/// Which way the penalty on the critic's slope pushes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sign {
    /// Towards a length of 1.
    Plus,
    /// Away from it: the bug of the reference code.
    Minus,
}

/// What is played for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stakes {
    /// α
    pub alpha: f32,
    /// The largest γ; none: no limit.
    pub gamma_cap: Option<f32>,
    /// Of the penalty.
    pub sign: Sign,
}

/// A network and its critic with their optimizers, of one recipe.
pub struct Duel {
    stakes: Stakes,
    /// γ
    gamma: f32,
    /// The network's.
    pub training: Training,
    critic: Critic,
    /// The weights of the critic.
    pub critic_params: Params,
    critic_sgd: Sgd,
    /// (3·batch, 1)
    ones: Tensor,
    /// For labelled images, and for all else.
    rng: [Rng; 2],
}

impl Duel {
    /// Fresh weights of (seed, round), the network's from the same stream as always; for so many labelled and unlabelled
    /// images.
    pub fn new(stakes: Stakes, trainer: &Trainer, round: u32, [labelled, unlabelled]: [usize; 2]) -> Result<Duel> {
        let (device, rng) = (&trainer.data.device, Rng::new(trainer.seed));
        let training = trainer.start(round)?;
        let mut layout = Layout::default();
        let critic = Critic::new(&mut layout, &*training.model.net);
        let critic_params = layout.init(device, rng.at(Purpose::Init, round, 3))?;
        let critic_sgd = trainer.sgd(&critic_params)?;
        let rows = 3 * trainer.recipe.batch;
        let ones = Tensor::new(device, [rows, 1], &vec![1.0f32; rows])?;
        let ratio = labelled as f32 / unlabelled.max(1) as f32;
        let gamma = stakes.gamma_cap.map_or(ratio, |cap| ratio.min(cap));
        let rng = [Purpose::Dropout, Purpose::Critic].map(|p| rng.at(p, round, 0));
        Ok(Duel { stakes, gamma, training, critic, critic_params, critic_sgd, ones, rng })
    }

    /// The contexts of the network for labelled and unlabelled images.
    fn contexts<'a>(&'a self, clock: &'a Rc<Clock>) -> [Ctx<'a>; 2] {
        self.rng.map(|rng| Ctx::new(Mode::Train, rng, clock, &self.training.model.params))
    }

    fn judge<'a>(&'a self, clock: &'a Rc<Clock>) -> Ctx<'a> {
        Ctx::new(Mode::Train, self.rng[1], clock, &self.critic_params)
    }

    /// d of scores (n, 1)
    fn distance(&self, labelled: &Tensor, unlabelled: &Tensor) -> Result<Tensor> {
        ops::add(&ops::mean_all(unlabelled)?, &ops::scale(&ops::mean_all(labelled)?, -self.gamma)?)
    }

    /// What the network minimises on labelled and unlabelled images (n, H, W, C), with labels y (n); and the statistics it
    /// has seen.
    pub fn network_loss(
        &self,
        [labelled, unlabelled]: [&Tensor; 2],
        y: &Tensor,
        clock: &Rc<Clock>,
    ) -> Result<(Tensor, Vec<(Running, BatchStats)>)> {
        let ([mut l, mut u], judge, net) = (self.contexts(clock), self.judge(clock), &*self.training.model.net);
        let [embedding, h_l] = self.critic.features(net, labelled, &mut l)?;
        let [_, h_u] = self.critic.features(net, unlabelled, &mut u)?;
        let loss = ops::cross_entropy(&net.head(&embedding, &l)?, y)?;
        let g = [self.critic.score(&h_l, LABELLED, &judge)?, self.critic.score(&h_u, UNLABELLED, &judge)?];
        let loss = ops::add(&loss, &ops::scale(&self.distance(&g[0], &g[1])?, self.stakes.alpha)?)?;
        Ok((loss, [l.into_seen(), u.into_seen()].concat()))
    }

    /// What the critic minimises on features of labelled and unlabelled images, (n, D) both, n being at most the batch.
    pub fn critic_loss(&self, labelled: &Tensor, unlabelled: &Tensor, clock: &Rc<Clock>) -> Result<Tensor> {
        let n = labelled.shape().rows("waal")?.0;
        let points = ops::between(labelled, unlabelled, self.rng[1].lane(POINTS), clock)?;
        let [g, slope] = self.critic.score_and_slope(&points, OWN, &self.judge(clock))?;
        let d = self.distance(&ops::slice_rows(&g, 2 * n, n)?, &ops::slice_rows(&g, n, n)?)?;
        let penalty = ops::mse(&slope.reshape([3 * n, 1])?, &ops::slice_rows(&self.ones, 0, 3 * n)?)?;
        let weight = match self.stakes.sign {
            Sign::Plus => 2.0 * self.stakes.alpha,
            Sign::Minus => -2.0 * self.stakes.alpha,
        };
        ops::add(&ops::scale(&d, -self.stakes.alpha)?, &ops::scale(&penalty, weight)?)
    }

    /// The network's half of a step; returns the loss before it.
    pub fn network_step(&mut self, x: [&Tensor; 2], y: &Tensor, clock: &Rc<Clock>) -> Result<Tensor> {
        let (loss, seen) = self.network_loss(x, y, clock)?;
        let Training { model, sgd, .. } = &mut self.training;
        // The critic's weights are tracked too, but only these parameters' gradients are computed.
        let grads = loss.backward(&model.params)?;
        let value = loss.detach();
        drop(loss); // frees the graph's windows on the weights before they move
        sgd.step(&mut model.params, &grads, clock)?;
        model.params.absorb(&seen)?;
        Ok(value)
    }

    /// What the critic looks at, (n, D) of labelled and unlabelled images (n, H, W, C), as constants. The network keeps its
    /// weights, but sees the batches as in training.
    pub fn features(&mut self, [labelled, unlabelled]: [&Tensor; 2], clock: &Rc<Clock>) -> Result<[Tensor; 2]> {
        let ([mut l, mut u], net) = (self.contexts(clock), &*self.training.model.net);
        let [_, h_l] = self.critic.features(net, labelled, &mut l)?;
        let [_, h_u] = self.critic.features(net, unlabelled, &mut u)?;
        let seen = [l.into_seen(), u.into_seen()].concat();
        self.training.model.params.absorb(&seen)?;
        Ok([h_l.detach(), h_u.detach()])
    }

    /// The critic's half; returns the loss before it.
    pub fn critic_step(&mut self, x: [&Tensor; 2], clock: &Rc<Clock>) -> Result<Tensor> {
        let [h_l, h_u] = self.features(x, clock)?;
        let loss = self.critic_loss(&h_l, &h_u, clock)?;
        let grads = loss.backward(&self.critic_params)?;
        let value = loss.detach();
        drop(loss); // as above
        self.critic_sgd.step(&mut self.critic_params, &grads, clock)?;
        Ok(value)
    }

    /// Trains both to the end of the recipe; returns the network and the weights of the critic. Without unlabelled images
    /// the network is trained as ever, and the critic stays as it was.
    pub fn fit(
        mut self,
        trainer: &Trainer,
        round: u32,
        labelled: &[(PoolIdx, u32)],
        unlabelled: &[PoolIdx],
    ) -> Result<(Fit, Params)> {
        let mut seconds = [0.0; 2];
        let mut after = |e: &EpochEnd| {
            seconds[0] += e.training_s;
            seconds[1] += e.evaluation_s;
            (trainer.on_epoch)(e)
        };
        match unlabelled {
            [] => trainer.go_on(&CrossEntropy, round, labelled, &mut self.training, &mut |e, _, _| after(e))?,
            _ => self.play(trainer, round, labelled, unlabelled, &mut after)?,
        }
        let (Training { model, correct, loss, .. }, [training_s, evaluation_s]) = (self.training, seconds);
        Ok((Fit { model, correct, loss, training_s, evaluation_s }, self.critic_params))
    }

    fn play(
        &mut self,
        trainer: &Trainer,
        round: u32,
        labelled: &[(PoolIdx, u32)],
        unlabelled: &[PoolIdx],
        after: &mut dyn FnMut(&EpochEnd) -> Result<()>,
    ) -> Result<()> {
        let (data, recipe, device) = (trainer.data, trainer.recipe, &trainer.data.device);
        // The shorter list is gone through many times in an epoch: its images are augmented anew each time.
        let view = trainer.train_view(round)?.each_step().stored_as(recipe.precision.dtype());
        let plain = trainer.plain_view()?;
        let pass = Pass { view: &plain, batch: trainer.eval_batch, graphs: trainer.graphs };
        let mut evaluator = Evaluator::new(data, pass)?;
        let labels = trainer.labels(labelled)?;
        let sets =
            [labelled.iter().map(|(id, _)| id.0).collect(), unlabelled.iter().map(|id| id.0).collect::<Vec<_>>()];
        let pairs = labelled.len().max(unlabelled.len());
        let sizes = trainer.batch_sizes(pairs);
        let order = || Tensor::zeros(device, [pairs], Dtype::U32);
        let mut orders = [order()?, order()?];
        // The network's and the critic's, by turns.
        let mut losses: Buf<f32> = Buf::zeros(device, 2 * sizes.len())?;
        let clock = Rc::new(Clock::new(device)?);
        let (mut full, mut tail) = (Replay::new(trainer.graphs), Replay::new(trainer.graphs));
        for epoch in 0..recipe.epochs {
            if trainer.settled(&self.training.loss) {
                break;
            }
            let start = Instant::now();
            let shuffle = Rng::new(trainer.seed).at(Purpose::Shuffle, round, epoch);
            for ((order, set), lane) in orders.iter_mut().zip(&sets).zip(1..) {
                order.buf_mut("waal")?.write(device, &passes(set, pairs, shuffle, lane))?;
            }
            let steps = epoch * losses.len() as u32;
            clock.start(steps, epoch, rate_at(recipe.lr, &recipe.milestones, epoch))?;
            for &n in &sizes {
                let replay = if n == recipe.batch { &mut full } else { &mut tail };
                let step = || {
                    let batch_of = |order| ops::gather_images(&data.train.pixels, order, &clock, n, &view);
                    let [l, u] = [batch_of(&orders[0])?, batch_of(&orders[1])?];
                    let y = ops::gather_labels(&labels, &orders[0], &clock, n)?;
                    ops::write_loss(&mut losses, &self.network_step([&l, &u], &y, &clock)?, &clock)?;
                    clock.advance(0)?;
                    ops::write_loss(&mut losses, &self.critic_step([&l, &u], &clock)?, &clock)?;
                    clock.advance(n)
                };
                replay.run(device, step).map_err(|e| {
                    e.needed_for(|| {
                        let remedy = format!("use a smaller batch, such as --set train.batch={}", (n / 2).max(1));
                        (format!("a step of WAAL on twice {n} images"), remedy)
                    })
                })?;
            }
            let steps = losses.to_host()?;
            if let Some(half) = steps.iter().position(|l| !l.is_finite()) {
                return Err(diverged(half, steps[half], round, epoch, recipe.lr));
            }
            let training_s = start.elapsed().as_secs_f64();
            let images_per_second = 2.0 * sizes.iter().sum::<usize>() as f64 / training_s;

            let start = Instant::now();
            let correct = evaluator.correct(&self.training.model)?;
            let evaluation_s = start.elapsed().as_secs_f64();
            let loss = steps.iter().step_by(2).map(|l| f64::from(*l)).sum();
            self.training.correct.push(correct);
            self.training.loss.push(loss);
            after(&EpochEnd { epoch, loss, correct, images_per_second, training_s, evaluation_s })?;
        }
        Ok(())
    }
}

fn diverged(half: usize, loss: f32, round: u32, epoch: u32, rate: f64) -> Error {
    let of = if half.is_multiple_of(2) { "network" } else { "critic" };
    Error::NonFinite {
        what: format!(
            "waal: the loss of the {of} became {loss} in round {round}, epoch {epoch}, step {}; lower the learning rate \
             (--set waal.lr={}) or keep the gradient clamp on (--set train.grad_clamp=0.1); finished rounds are kept",
            half / 2,
            rate / 10.0
        ),
    }
}
