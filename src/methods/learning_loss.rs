//! source says:            a head on the intermediate maps learns to rank losses; label the largest predicted ones of a
//!                         random subset (Yoo & Kweon 2019).
//! reference code does:    the lowest ones, of scores in a shuffled order; the layers of the maps are never trained, and
//!                         the maps are never detached.
//! dalcore does:           the largest of the whole pool, maps detached from 80 % of the epochs on; the above in `repro`.

use serde::{Deserialize, Serialize};

use super::{Method, Query, Round};
use crate::bench::config::{Config, Profile};
use crate::data::PoolIdx;
use crate::nn::losshead::LossHead;
use crate::nn::{Ctx, Layout, Mode, Net, Params};
use crate::rng::{Purpose, Rng};
use crate::tensor::Tensor;
use crate::train::{DeviceData, Fit, Model, Objective};
use crate::{Error, Result, ops};

/// Keys under `learning-loss`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// λ, the weight of the ranking loss beside the cross-entropy.
    pub weight: f32,
    /// ξ, by how much a larger loss should be predicted larger.
    pub margin: f32,
    /// From this part of the epochs on the head no longer moves the network.
    pub detach: f64,
    /// Random unlabelled examples that are looked at; 0 for all.
    pub subset: usize,
    /// As the reference code: layers of the maps as first drawn, never detached, and of scores in a random order the
    /// lowest.
    pub reference_bugs: bool,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        let reference_bugs = profile == Profile::Repro;
        Settings { weight: 1.0, margin: 1.0, detach: 0.8, subset: 0, reference_bugs }
    }

    /// Refuses what no training can use.
    pub fn check(&self) -> Result<()> {
        let some = |v: f32| (0.0..f32::INFINITY).contains(&v);
        if some(self.weight) && some(self.margin) && self.detach >= 0.0 {
            return Ok(());
        }
        let why = "weight, margin and detach must be at least 0".into();
        Err(Error::Config { key: "learning-loss".into(), why })
    }
}

/// Trains the head with the network; then one pass over U. Memory U.
pub struct LearningLoss {
    settings: Settings,
}

impl LearningLoss {
    /// With the settings of a run.
    pub fn new(config: &Config) -> LearningLoss {
        LearningLoss { settings: config.learning_loss }
    }

    /// The network with the head behind it, and the layers of the maps where they are no part of training: the same in
    /// every round.
    fn plan(&self, data: &DeviceData, seed: u64) -> Result<(Layout, Box<dyn Net>, Head)> {
        let (mut layout, net) = Model::plan(&data.spec)?;
        let mut fixed = self.settings.reference_bugs.then(Layout::default);
        let head = LossHead::new(&net.tap_widths(), fixed.as_mut(), &mut layout);
        // Another stream than that of the network, which begins with the same lanes.
        let rng = Rng::new(seed).at(Purpose::Init, 0, 1);
        let fixed = fixed.map(|l| l.init(&data.device, rng)).transpose()?;
        Ok((layout, net, Head { head, fixed }))
    }
}

struct Head {
    head: LossHead,
    fixed: Option<Params>,
}

impl Head {
    fn forward(&self, maps: &[Tensor], cx: &Ctx) -> Result<Tensor> {
        match &self.fixed {
            // Not tracked in this mode.
            Some(params) => self.head.forward(maps, &Ctx::new(Mode::Eval, cx.rng, cx.clock, params), cx),
            None => self.head.forward(maps, cx, cx),
        }
    }
}

/// Cross-entropy, and beside it how well the head ranks its rows.
struct Ranked {
    head: Head,
    settings: Settings,
}

impl Objective for Ranked {
    fn loss(&self, net: &dyn Net, x: &Tensor, y: &Tensor, cx: &mut Ctx, stage: u32) -> Result<Tensor> {
        cx.taps = true;
        let out = net.forward(x, cx)?;
        let [loss, each] = ops::cross_entropy_each(&out.logits, y)?;
        let maps = match stage {
            0 => out.taps,
            _ => out.taps.iter().map(Tensor::detach).collect(),
        };
        let ranking = ops::ranking_loss(&self.head.forward(&maps, cx)?, &each, self.settings.margin)?;
        ops::add(&loss, &ops::scale(&ranking, self.settings.weight)?)
    }

    fn stage(&self, epoch: u32, epochs: u32) -> u32 {
        let detached = f64::from(epoch) >= self.settings.detach * f64::from(epochs);
        (detached && !self.settings.reference_bugs).into()
    }
}

impl Method for LearningLoss {
    fn trains_plainly(&self) -> bool {
        false
    }

    fn model(&self, data: &DeviceData, seed: u64, round: u32) -> Result<Model> {
        let (layout, net, _) = self.plan(data, seed)?;
        let params = layout.init(&data.device, Rng::new(seed).at(Purpose::Init, round, 0))?;
        Ok(Model { net, params, classes: data.spec.classes })
    }

    fn fit(&mut self, round: &Round) -> Result<Fit> {
        let trainer = round.trainer;
        let (_, _, head) = self.plan(trainer.data, trainer.seed)?;
        let model = self.model(trainer.data, trainer.seed, round.number)?;
        trainer.fit_to(&Ranked { head, settings: self.settings }, model, round.number, round.labelled)
    }

    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let ids = q.subset(self.settings.subset, n);
        if n == 0 || ids.is_empty() {
            return Ok(Vec::new());
        }
        let (_, _, head) = self.plan(q.trainer.data, q.trainer.seed)?;
        let [scores] = q.sweep(&ids, [1], |x, clock| {
            let cx = q.model.context(clock).with_taps();
            let losses = head.forward(&q.model.net.forward(x, &cx)?.taps, &cx)?;
            Ok([losses.reshape([losses.len(), 1])?])
        })?;
        if !self.settings.reference_bugs {
            return q.top_of("learning-loss", &ids, &scores.reshape([ids.len()])?, n);
        }
        let order = q.rng().with_b(1).permutation(ids.len());
        let shuffled = ops::gather_rows(&scores, &Tensor::new(scores.device(), [ids.len()], &order)?)?;
        q.top_of("learning-loss", &ids, &ops::scale(&shuffled, -1.0)?.reshape([ids.len()])?, n)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::clock::Clock;
    use crate::data::mnist;
    use crate::device::Device;

    /// Gradients of the layers of the network, the maps' layers and the last one, for a weight of the ranking loss.
    fn grads(reference_bugs: bool, weight: f32, stage: u32) -> [Vec<f32>; 3] {
        let settings = Settings { weight, reference_bugs, ..Settings::of(Profile::Clean) };
        let method = LearningLoss { settings };
        let images = || crate::data::Images { n: 0, h: 28, w: 28, c: 1, pixels: Vec::new(), labels: Vec::new() };
        let data = crate::data::Dataset::new(&mnist::SPEC, images(), images());
        let data = DeviceData::new(&Device::Cpu, &data).unwrap();
        let (layout, net, head) = method.plan(&data, 3).unwrap();
        let params = layout.init(&data.device, Rng::new(3)).unwrap();
        let clock = Rc::new(Clock::new(&data.device).unwrap());
        let x: Vec<f32> = (0..4 * 784).map(|e| Rng::new(4).uniform(e)).collect();
        let x = Tensor::new(&data.device, [4, 28, 28, 1], &x).unwrap();
        let y = Tensor::new(&data.device, [4], &[3u32, 1, 4, 1]).unwrap();
        let mut cx = Ctx::new(Mode::Train, Rng::new(5).at(Purpose::Dropout, 0, 0), &clock, &params);
        let loss = Ranked { head, settings }.loss(&*net, &x, &y, &mut cx, stage).unwrap();
        let grads = loss.backward(&params).unwrap();
        let mut found = [Vec::new(), Vec::new(), Vec::new()];
        for (i, g) in grads.params() {
            let name = &params.slots()[i].name;
            let at = if name.starts_with("loss.tap") { 1 } else { 2 * usize::from(name.starts_with("loss.out")) };
            found[at].extend(g.to_vec::<f32>().unwrap());
        }
        found
    }

    #[test]
    fn detached_the_ranking_moves_the_head_alone() {
        let [net, taps, out] = grads(false, 1.0, 0);
        assert_eq!([net.len(), taps.len() + out.len()], [21_840, 4_353]);
        let [plain, ..] = grads(false, 0.0, 0);
        assert_ne!(net, plain, "together, the ranking moves the network");
        let [detached, by_detached, _] = grads(false, 1.0, 1);
        assert_eq!(detached, plain, "detached, it does not");
        assert_eq!(by_detached, taps);
        // The reference code: the layers of the maps are no parameters at all.
        let [net, taps, out] = grads(true, 1.0, 0);
        assert!(net != plain && taps.is_empty() && out.len() == 257);
    }

    #[test]
    fn stages() {
        let ranked = |profile| {
            let settings = Settings::of(profile);
            let head = Head { head: LossHead::new(&[], None, &mut Layout::default()), fixed: None };
            let ranked = Ranked { head, settings };
            [0, 39, 40, 49].map(|epoch| ranked.stage(epoch, 50))
        };
        assert_eq!(ranked(Profile::Clean), [0, 0, 1, 1]);
        assert_eq!(ranked(Profile::Repro), [0; 4]);
    }
}
