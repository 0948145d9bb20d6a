//! Fully supervised training, METHODS 1.1 and 3: SGD from fresh weights on what is labelled.

use std::rc::Rc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::mixmatch::{self, MixMatch};
use super::{DeviceData, Evaluator, Pass};
use crate::clock::Clock;
use crate::data::{self, PoolIdx};
use crate::device::Device;
use crate::device::cuda::Replay;
use crate::nn::lenet::LeNet;
use crate::nn::resnet::ResNet18;
use crate::nn::{Ctx, Layout, Mode, Net, Output, Params, Precision};
use crate::ops::{self, View};
use crate::optim::{Sgd, rate_at};
use crate::rng::{Purpose, Rng};
use crate::tensor::{Buf, Tensor};
use crate::{Error, Result};

/// How a model is trained. Every field is a configuration key under `train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Epochs per round.
    pub epochs: u32,
    /// Epochs (0-based) from which the learning rate is a tenth of what it was before.
    pub milestones: Vec<u32>,
    /// Initial learning rate.
    pub lr: f64,
    /// Momentum of SGD.
    pub momentum: f32,
    /// Coupled L2 decay of every parameter.
    pub weight_decay: f32,
    /// Gradient elements are clipped to ± this before the step; 0 turns it off.
    pub grad_clamp: f32,
    /// Images per step.
    pub batch: usize,
    /// The last batch of an epoch is left out when it is smaller than a quarter of the batch (never the only one).
    pub drop_small_tail: bool,
    /// Stop when the epoch's summed loss changes by less than this; 0 turns it off.
    pub early_stop: f64,
    /// Zero padding of the random crop in pixels; 0 for none.
    pub crop_pad: usize,
    /// Mirror images with probability one half.
    pub flip: bool,
    /// What activations and their gradients are stored as: f32, or bf16 on tensor cores.
    pub precision: Precision,
}

/// A network with its weights.
pub struct Model {
    /// The layers.
    pub net: Box<dyn Net>,
    /// The weights.
    pub params: Params,
    /// C
    pub classes: usize,
}

impl Model {
    /// Fresh weights of the data set's network from the stream (seed, round).
    pub fn fresh(data: &DeviceData, seed: u64, round: u32) -> Result<Model> {
        Model::build(&data.spec, &data.device, Rng::new(seed).at(Purpose::Init, round, 0))
    }

    /// The network that `spec` names, for its images and classes; `rng` draws the weights.
    pub fn build(spec: &data::Spec, device: &Device, rng: Rng) -> Result<Model> {
        let (layout, net) = Model::plan(spec)?;
        Ok(Model { net, params: layout.init(device, rng)?, classes: spec.classes })
    }

    /// The layers of the network that `spec` names, and the places of their parameters. Whoever adds to the network
    /// reserves parameters behind them.
    pub fn plan(spec: &data::Spec) -> Result<(Layout, Box<dyn Net>)> {
        let mut layout = Layout::default();
        let classes = spec.classes;
        let refuse = |why: String| Err(Error::Config { key: "model".into(), why });
        let net: Box<dyn Net> = match spec.model {
            data::Model::LeNet if [spec.h, spec.w, spec.c] != [28, 28, 1] => {
                let size = format!("{}x{}x{}", spec.h, spec.w, spec.c);
                return refuse(format!("LeNet wants images of 28x28x1, not {size}; resize them, or use ResNet-18"));
            }
            data::Model::LeNet => Box::new(LeNet::new(&mut layout, classes)),
            data::Model::ResNet18 { .. } if spec.h != spec.w => {
                return refuse(format!("ResNet-18 wants square images, not {}x{}; resize them", spec.h, spec.w));
            }
            data::Model::ResNet18 { width } => Box::new(ResNet18::new(&mut layout, width, [spec.h, spec.c], classes)?),
        };
        Ok((layout, net))
    }

    /// What the network makes of images (n, H, W, C) with dropout off.
    pub fn output(&self, x: &Tensor, clock: &Rc<Clock>) -> Result<Output> {
        self.net.forward(x, &self.context(clock))
    }

    /// For a pass with dropout off.
    pub fn context<'a>(&'a self, clock: &'a Rc<Clock>) -> Ctx<'a> {
        let rng = Rng::new(0).at(Purpose::Dropout, 0, 0); // not drawn from
        Ctx::new(Mode::Eval, rng, clock, &self.params)
    }

    /// Columns of logits and of embeddings.
    pub fn widths(&self) -> [usize; 2] {
        [self.classes, self.net.embedding_width()]
    }
}

/// What training minimises.
pub trait Objective {
    /// The loss, a scalar, of images x (n, H, W, C) with labels y (n). Captured in a graph: what it computes depends on
    /// the size of the batch and on the stage only.
    fn loss(&self, net: &dyn Net, x: &Tensor, y: &Tensor, cx: &mut Ctx, stage: u32) -> Result<Tensor>;

    /// Which of its losses it uses in an epoch, of all `epochs`.
    fn stage(&self, _epoch: u32, _epochs: u32) -> u32 {
        0
    }
}

/// Mean cross-entropy of the logits.
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    fn loss(&self, net: &dyn Net, x: &Tensor, y: &Tensor, cx: &mut Ctx, _stage: u32) -> Result<Tensor> {
        ops::cross_entropy(&net.forward(x, cx)?.logits, y)
    }
}

/// What is known after an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochEnd {
    /// 0-based.
    pub epoch: u32,
    /// Sum over the steps of the mean training loss.
    pub loss: f64,
    /// Test images classified correctly.
    pub correct: u32,
    /// Images trained on per second, evaluation not counted.
    pub images_per_second: f64,
    /// Seconds of training steps.
    pub training_s: f64,
    /// Seconds of the test pass.
    pub evaluation_s: f64,
}

/// A training between two epochs: everything that the next one depends on.
pub struct Training {
    /// The weights.
    pub model: Model,
    /// The momentum.
    pub sgd: Sgd,
    /// Correct test images after each epoch so far.
    pub correct: Vec<u32>,
    /// Summed training loss of each epoch so far.
    pub loss: Vec<f64>,
}

/// The steps of the epoch that has just ended.
pub struct Steps<'a> {
    /// Mean loss of each.
    pub losses: &'a [f32],
    /// Pool ids in the order in which they were trained on; fewer when a small last batch was left out.
    pub order: &'a [u32],
    /// Images per step but the last.
    pub batch: usize,
}

/// What is done after an epoch; an error stops the training.
pub type AfterEpoch<'a> = &'a mut dyn FnMut(&EpochEnd, &Training, &Steps) -> Result<()>;

/// A trained model and how it got there.
pub struct Fit {
    /// The model after the last epoch.
    pub model: Model,
    /// Correct test images after each epoch.
    pub correct: Vec<u32>,
    /// Summed training loss of each epoch.
    pub loss: Vec<f64>,
    /// Seconds of training steps.
    pub training_s: f64,
    /// Seconds of test passes.
    pub evaluation_s: f64,
}

/// Trains on one data set, one device, one seed.
pub struct Trainer<'a> {
    /// The data.
    pub data: &'a DeviceData,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Images per evaluation batch.
    pub eval_batch: usize,
    /// Replay steps as CUDA graphs.
    pub graphs: bool,
    /// The run's seed.
    pub seed: u64,
    /// Called after every epoch; an error stops the training.
    pub on_epoch: &'a dyn Fn(&EpochEnd) -> Result<()>,
    /// Asked now and then by other long work, such as a selection; an error stops it.
    pub check: &'a dyn Fn() -> Result<()>,
    /// Train by MixMatch, on the unlabelled examples too.
    pub mixmatch: Option<MixMatch<'a>>,
}

impl Trainer<'_> {
    /// The test transform: normalise only.
    pub fn plain_view(&self) -> Result<View> {
        let view = View::plain(&self.data.device, &self.data.spec.mean, &self.data.spec.std)?;
        Ok(view.stored_as(self.recipe.precision.dtype()))
    }

    /// The training transform of a round, in f32.
    pub fn train_view(&self, round: u32) -> Result<View> {
        let (spec, recipe) = (&self.data.spec, self.recipe);
        let flip = if recipe.flip { data::Flip::Half } else { data::Flip::Never };
        let rng = Rng::new(self.seed);
        View::train(&self.data.device, &spec.mean, &spec.std, recipe.crop_pad, flip, rng, round)
    }

    /// Sizes of an epoch's batches for `n` examples.
    pub(super) fn batch_sizes(&self, n: usize) -> Vec<usize> {
        let b = self.recipe.batch;
        let mut sizes = vec![b; n / b];
        let tail = n % b;
        if tail > 0 && (sizes.is_empty() || !self.recipe.drop_small_tail || tail * 4 >= b) {
            sizes.push(tail);
        }
        sizes
    }

    /// Trains a fresh model on the labelled examples (ascending ids, with their labels), by MixMatch where that is asked for.
    pub fn fit(&self, round: u32, labelled: &[(PoolIdx, u32)]) -> Result<Fit> {
        if let Some(how) = self.mixmatch {
            return mixmatch::fit(self, how, round, labelled);
        }
        self.fit_to(&CrossEntropy, Model::fresh(self.data, self.seed, round)?, round, labelled)
    }

    /// Trains `model`, which is fresh, towards another objective.
    pub fn fit_to(
        &self,
        objective: &dyn Objective,
        model: Model,
        round: u32,
        labelled: &[(PoolIdx, u32)],
    ) -> Result<Fit> {
        let mut training = self.begin(model)?;
        let (mut training_s, mut evaluation_s) = (0.0, 0.0);
        self.go_on(objective, round, labelled, &mut training, &mut |e, _, _| {
            training_s += e.training_s;
            evaluation_s += e.evaluation_s;
            (self.on_epoch)(e)
        })?;
        let Training { model, correct, loss, .. } = training;
        Ok(Fit { model, correct, loss, training_s, evaluation_s })
    }

    /// Fresh weights, before the first epoch.
    pub fn start(&self, round: u32) -> Result<Training> {
        self.begin(Model::fresh(self.data, self.seed, round)?)
    }

    fn begin(&self, mut model: Model) -> Result<Training> {
        model.params.set_precision(self.recipe.precision)?;
        let sgd = self.sgd(&model.params)?;
        Ok(Training { model, sgd, correct: Vec::new(), loss: Vec::new() })
    }

    /// The recipe's optimizer.
    pub(super) fn sgd(&self, params: &Params) -> Result<Sgd> {
        let Recipe { momentum, weight_decay, grad_clamp, .. } = *self.recipe;
        Sgd::new(params, momentum, weight_decay, Some(grad_clamp).filter(|c| *c > 0.0))
    }

    /// Every image's label (N). Those that are not revealed are no class at all: a step that touched one would stop the run.
    pub(super) fn labels(&self, labelled: &[(PoolIdx, u32)]) -> Result<Buf<u32>> {
        let mut labels = vec![u32::MAX; self.data.train.len()];
        for (id, label) in labelled {
            labels[id.index()] = *label;
        }
        Buf::from_host(&self.data.device, &labels)
    }

    /// True when the last epoch changed the loss by less than the recipe cares for.
    pub(super) fn settled(&self, loss: &[f64]) -> bool {
        matches!(loss, [.., before, last] if (last - before).abs() < self.recipe.early_stop)
    }

    /// Trains to the end of the recipe from wherever `training` is. The same bytes, however often it was interrupted.
    pub fn go_on(
        &self,
        objective: &dyn Objective,
        round: u32,
        labelled: &[(PoolIdx, u32)],
        training: &mut Training,
        after: AfterEpoch,
    ) -> Result<()> {
        let (data, recipe, device) = (self.data, self.recipe, &self.data.device);
        let rng = Rng::new(self.seed);
        let view = self.train_view(round)?.stored_as(recipe.precision.dtype());
        let plain = self.plain_view()?;
        let pass = Pass { view: &plain, batch: self.eval_batch, graphs: self.graphs };
        let mut evaluator = Evaluator::new(data, pass)?;

        let labels = self.labels(labelled)?;
        let sizes = self.batch_sizes(labelled.len());
        let mut order = Tensor::zeros(device, [labelled.len()], crate::tensor::Dtype::U32)?;
        let mut losses: Buf<f32> = Buf::zeros(device, sizes.len())?;
        let clock = Rc::new(Clock::new(device)?);
        let (mut full, mut tail, mut stage) = (Replay::new(self.graphs), Replay::new(self.graphs), None);

        for epoch in training.loss.len() as u32..recipe.epochs {
            if self.settled(&training.loss) {
                break;
            }
            let Training { model, sgd, .. } = &mut *training;
            let start = Instant::now();
            let now = objective.stage(epoch, recipe.epochs);
            if stage.replace(now).is_some_and(|before| before != now) {
                (full, tail) = (Replay::new(self.graphs), Replay::new(self.graphs));
            }
            let shuffle = rng.at(Purpose::Shuffle, round, epoch).permutation(labelled.len());
            let ids: Vec<u32> = shuffle.iter().map(|i| labelled[*i as usize].0.0).collect();
            order.buf_mut("fit")?.write(device, &ids)?;
            clock.start(epoch * sizes.len() as u32, epoch, rate_at(recipe.lr, &recipe.milestones, epoch))?;
            for &n in &sizes {
                let replay = if n == recipe.batch { &mut full } else { &mut tail };
                replay
                    .run(device, || {
                        let x = ops::gather_images(&data.train.pixels, &order, &clock, n, &view)?;
                        let y = ops::gather_labels(&labels, &order, &clock, n)?;
                        let rng = rng.at(Purpose::Dropout, round, 0);
                        let mut cx = Ctx::new(Mode::Train, rng, &clock, &model.params);
                        let loss = objective.loss(&*model.net, &x, &y, &mut cx, now)?;
                        let grads = loss.backward(&model.params)?;
                        let seen = cx.into_seen();
                        ops::write_loss(&mut losses, &loss.detach(), &clock)?;
                        drop(loss); // frees the graph's windows on the weights before they move
                        sgd.step(&mut model.params, &grads, &clock)?;
                        model.params.absorb(&seen)?;
                        clock.advance(n)
                    })
                    .map_err(|e| {
                        e.needed_for(|| {
                            let remedy = format!("use a smaller batch, such as --set train.batch={}", (n / 2).max(1));
                            (format!("a training step of {n} images"), remedy)
                        })
                    })?;
            }
            let steps = losses.to_host()?;
            if let Some(step) = steps.iter().position(|l| !l.is_finite()) {
                let remedy = format!(
                    "lower the learning rate (--set train.lr={}) or keep the gradient clamp on (--set train.grad_clamp=0.1)",
                    recipe.lr / 10.0
                );
                return Err(diverged(round, epoch, step, steps[step], &remedy));
            }
            let training_s = start.elapsed().as_secs_f64();
            let trained = sizes.iter().sum::<usize>();
            let images_per_second = trained as f64 / training_s;

            let start = Instant::now();
            let correct = evaluator.correct(model)?;
            let evaluation_s = start.elapsed().as_secs_f64();
            let loss = steps.iter().map(|l| f64::from(*l)).sum();
            training.correct.push(correct);
            training.loss.push(loss);
            let end = EpochEnd { epoch, loss, correct, images_per_second, training_s, evaluation_s };
            after(&end, training, &Steps { losses: &steps, order: &ids[..trained], batch: recipe.batch })?;
        }
        Ok(())
    }
}

pub(super) fn diverged(round: u32, epoch: u32, step: usize, loss: f32, remedy: &str) -> Error {
    let what = format!("the training loss became {loss} in round {round}, epoch {epoch}, step {step}");
    Error::NonFinite { what: format!("{what}; {remedy}; finished rounds are kept") }
}
