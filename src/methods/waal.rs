//! source says:            network and critic are trained so that labelled and unlabelled features have a small Wasserstein
//!                         distance; label what is uncertain and looks unlabelled (Shui et al. 2020).
//! reference code does:    subtracts the penalty on the critic's slope, which pushes its length away from 1; that of the
//!                         study goes on from the weights of the round before, at a rate of .1 without a clamp.
//! dalcore does:           adds the penalty (subtracts it in `repro`); fresh weights in every round, the gradient clamp of
//!                         all training, and for LeNet a rate of .01.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Method, Query, Round};
use crate::bench::config::{Config, Profile};
use crate::data::{self, PoolIdx};
use crate::nn::critic::Critic;
use crate::nn::{Layout, Net};
use crate::rng::{Purpose, Rng};
use crate::train::{DeviceData, Duel, Fit, Model, Recipe, Sign, Stakes, Trainer};
use crate::{Error, Result, ops};

/// Keys under `waal`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Initial learning rate of network and critic, in the place of `train.lr`.
    pub lr: f64,
    /// α, the weight of the distance beside the cross-entropy.
    pub alpha: f32,
    /// γ, the weight of the labelled side of the distance, is labelled / unlabelled, but at most this; 0 for no limit.
    pub gamma_cap: f32,
    /// How the penalty on the critic's slope counts: plus, or minus as in the reference code.
    pub penalty: Sign,
    /// Weight of the critic's verdict in the query.
    pub weight: f32,
}

impl Settings {
    /// Those of a profile, for a network.
    pub fn of(profile: Profile, model: data::Model) -> Settings {
        Settings {
            lr: if model == data::Model::LeNet { 0.01 } else { 0.1 },
            alpha: 2e-3,
            gamma_cap: 0.0,
            penalty: if profile == Profile::Repro { Sign::Minus } else { Sign::Plus },
            weight: 10.0,
        }
    }

    /// Refuses what no training can use.
    pub fn check(&self) -> Result<()> {
        let some = |v: f64| (0.0..f64::INFINITY).contains(&v);
        let all = [
            ("lr", self.lr),
            ("alpha", self.alpha.into()),
            ("gamma_cap", self.gamma_cap.into()),
            ("weight", self.weight.into()),
        ];
        match all.into_iter().find(|(_, v)| !some(*v)) {
            None => Ok(()),
            Some((key, v)) => Err(Error::Config {
                key: format!("waal.{key}"),
                why: format!("must be a number of at least 0, not {v}"),
            }),
        }
    }
}

/// Trains on L and U together, then one pass over U. Memory U.
pub struct Waal {
    settings: Settings,
}

impl Waal {
    /// With the settings of a run.
    pub fn new(config: &Config) -> Waal {
        Waal { settings: config.waal }
    }

    /// The network with the critic behind it: what is saved.
    fn plan(&self, data: &DeviceData) -> Result<(Layout, Box<dyn Net>, Critic)> {
        let (mut layout, net) = Model::plan(&data.spec)?;
        let critic = Critic::new(&mut layout, &*net);
        Ok((layout, net, critic))
    }
}

impl Method for Waal {
    fn trains_plainly(&self) -> bool {
        false
    }

    fn model(&self, data: &DeviceData, seed: u64, round: u32) -> Result<Model> {
        let (layout, net, _) = self.plan(data)?;
        let params = layout.init(&data.device, Rng::new(seed).at(Purpose::Init, round, 0))?;
        Ok(Model { net, params, classes: data.spec.classes })
    }

    fn fit(&mut self, round: &Round) -> Result<Fit> {
        let Settings { lr, alpha, gamma_cap, penalty: sign, .. } = self.settings;
        let recipe = Recipe { lr, ..round.trainer.recipe.clone() };
        let trainer = Trainer { recipe: &recipe, ..*round.trainer };
        let (data, labelled) = (trainer.data, round.labelled);
        if labelled.is_empty() {
            let why = "trains on labelled images; label some first".into();
            return Err(Error::Data { path: "method waal".into(), why });
        }
        let mut known = vec![false; data.train.len()];
        labelled.iter().for_each(|(id, _)| known[id.index()] = true);
        let unlabelled: Vec<PoolIdx> = (0..).map(PoolIdx).zip(&known).filter(|(_, k)| !**k).map(|(id, _)| id).collect();

        let stakes = Stakes { alpha, gamma_cap: Some(gamma_cap).filter(|c| *c > 0.0), sign };
        let duel = Duel::new(stakes, &trainer, round.number, [labelled.len(), unlabelled.len()])?;
        let (fit, critic) = duel.fit(&trainer, round.number, labelled, &unlabelled)?;

        // Trained apart, as each has an optimizer of its own; kept together.
        let mut model = self.model(data, trainer.seed, round.number)?;
        model.params.set_precision(recipe.precision)?;
        let parts = [fit.model.params.to_host()?, critic.to_host()?].concat();
        let mut values: HashMap<String, Vec<f32>> = parts.into_iter().map(|(slot, v)| (slot.name, v)).collect();
        let lost = |name: &str| Error::Device { op: "waal", why: format!("lost {name}") };
        model.params.load(|slot| values.remove(&slot.name).ok_or_else(|| lost(&slot.name)))?;
        Ok(Fit { model, ..fit })
    }

    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let (_, _, critic) = self.plan(q.trainer.data)?;
        let net = &*q.model.net;
        let [scores] = q.sweep(q.unlabelled(), [1], |x, clock| {
            let mut cx = q.model.context(clock);
            let [embedding, seen] = critic.features(net, x, &mut cx)?;
            let verdicts = critic.score(&seen, 0, &cx)?;
            let scores = ops::uniform_scores(&net.head(&embedding, &cx)?, &verdicts, self.settings.weight)?;
            Ok([ops::scale(&scores, -1.0)?.reshape([scores.len(), 1])?]) // the smallest first
        })?;
        q.top("waal", &scores.reshape([scores.len()])?, n)
    }
}
