//! source says:            a graph network learns to tell labelled from unlabelled; label where it is least sure
//!                         (UncertainGCN), or k-center on its features (CoreGCN), among random examples (Caramalau et al.
//!                         2021).
//! reference code does:    the first 10,000 unlabelled ids, which are of few classes where files are sorted; an N×N matrix;
//!                         CoreGCN takes the score for a 129th feature.
//! dalcore does:           10,000 random ones, or all; products with the factors of the matrix; 128 features, and the
//!                         score beside them in `repro`.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::{Config, Profile};
use crate::clock::Clock;
use crate::data::PoolIdx;
use crate::device::cuda::Replay;
use crate::nn::gcn::{Gcn, Graph};
use crate::nn::{Ctx, Layout, Mode};
use crate::ops::AdamRule;
use crate::optim::Adam;
use crate::rng::{Purpose, Rng};
use crate::select::kcenter;
use crate::tensor::{Dtype, Tensor};
use crate::{Error, Result, ops};

/// How the graph network is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Steps of Adam, each over the whole graph.
    pub steps: u32,
    /// Its learning rate.
    pub lr: f32,
    /// Coupled L2 decay.
    pub weight_decay: f32,
    /// Rate of the dropout of the hidden features.
    pub dropout: f32,
    /// λ, the weight of the unlabelled in the loss beside the labelled.
    pub weight: f32,
}

impl Default for Training {
    fn default() -> Training {
        Training { steps: 200, lr: 1e-3, weight_decay: 5e-4, dropout: 0.3, weight: 1.2 }
    }
}

impl Training {
    /// Refuses what no training can use.
    pub fn check(&self, method: &str) -> Result<()> {
        let some = |v: f32| (0.0..f32::INFINITY).contains(&v);
        if some(self.lr) && some(self.weight_decay) && some(self.weight) && (0.0..1.0).contains(&self.dropout) {
            return Ok(());
        }
        let why = "lr, weight_decay and weight must be at least 0, dropout in 0 to below 1".into();
        Err(Error::Config { key: format!("{method}.train"), why })
    }
}

/// Keys under `core-gcn`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreSettings {
    /// Random unlabelled examples in the graph; 0 for all.
    pub subset: usize,
    /// The score of a node is a feature too.
    pub append_score: bool,
    /// The graph network.
    pub train: Training,
}

impl CoreSettings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> CoreSettings {
        CoreSettings { subset: 10_000, append_score: profile == Profile::Repro, train: Training::default() }
    }
}

/// Keys under `uncertain-gcn`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncertainSettings {
    /// Random unlabelled examples in the graph; 0 for all.
    pub subset: usize,
    /// The score that is sought.
    pub margin: f32,
    /// The graph network.
    pub train: Training,
}

impl UncertainSettings {
    /// Those of a profile.
    pub fn of(_profile: Profile) -> UncertainSettings {
        UncertainSettings { subset: 10_000, margin: 0.1, train: Training::default() }
    }
}

/// O(steps·(M + L)·D·128), then k-center; memory (M + L)·(D + 128).
pub struct CoreGcn {
    settings: CoreSettings,
}

/// O(steps·(M + L)·D·128), then a top-k; memory (M + L)·(D + 128).
pub struct UncertainGcn {
    settings: UncertainSettings,
}

impl CoreGcn {
    /// With the settings of a run.
    pub fn new(config: &Config) -> CoreGcn {
        CoreGcn { settings: config.core_gcn }
    }
}

impl UncertainGcn {
    /// With the settings of a run.
    pub fn new(config: &Config) -> UncertainGcn {
        UncertainGcn { settings: config.uncertain_gcn }
    }
}

impl Method for CoreGcn {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let ids = q.subset(self.settings.subset, n);
        if n == 0 || ids.is_empty() {
            return Ok(Vec::new());
        }
        let [hidden, scores] = learn_from(q, "core-gcn", &ids, &self.settings.train)?;
        let features = if self.settings.append_score { ops::concat_cols(&[&hidden, &scores])? } else { hidden };
        let (m, all) = (ids.len() as u32, features.dims()[0] as u32);
        let (labelled, candidates): (Vec<u32>, Vec<u32>) = ((m..all).collect(), (0..m).collect());
        let picks = kcenter(&features, &labelled, &candidates, n.min(ids.len()))?;
        Ok(picks.ids.into_iter().map(|row| ids[row as usize]).collect())
    }
}

impl Method for UncertainGcn {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let ids = q.subset(self.settings.subset, n);
        if n == 0 || ids.is_empty() {
            return Ok(Vec::new());
        }
        let [_, scores] = learn_from(q, "uncertain-gcn", &ids, &self.settings.train)?;
        let nearness = nearness(&ops::slice_rows(&scores, 0, ids.len())?, self.settings.margin)?;
        q.top_of("uncertain-gcn", &ids, &nearness, n)
    }
}

/// −|s − margin| for scores (M, 1): (M).
fn nearness(scores: &Tensor, margin: f32) -> Result<Tensor> {
    let sought = Tensor::new(scores.device(), [1], &[-margin])?;
    // The root of a square gives back what was squared, to the bit.
    ops::scale(&ops::row_norms(&ops::add_bias(scores, &sought)?)?, -1.0)
}

/// Hidden features (M + L, 128) and scores (M + L, 1) of the unlabelled `ids` and then of all labelled examples.
fn learn_from(q: &Query, method: &'static str, ids: &[PoolIdx], training: &Training) -> Result<[Tensor; 2]> {
    if q.labelled().is_empty() {
        let why = "nothing is labelled, and the graph network learns from what is; label a start set first".into();
        return Err(Error::Data { path: format!("method {method}"), why });
    }
    let rows: Vec<u32> =
        (0..).zip(q.unlabelled()).filter(|(_, id)| ids.binary_search(id).is_ok()).map(|r| r.0).collect();
    let features = q.features()?;
    let chosen = ops::gather_rows(features, &Tensor::new(features.device(), [rows.len()], &rows)?)?;
    let nodes = ops::concat_rows(&[&chosen, q.labelled_features()?])?;
    let rng = Rng::new(q.trainer.seed).at(Purpose::Gcn, q.round, 0);
    learn(&nodes, ids.len(), training, rng, q.trainer.graphs, q.trainer.check)
}

/// Trains a fresh network on features (M + L, D), the first `unlabelled` of which are unlabelled: hidden features
/// (M + L, 128) and scores (M + L, 1), the probability of being labelled. `rng`: a stream with `b` = 0. Each step is
/// replayed as a graph where `graphs` says so; `check` is asked between steps.
pub fn learn(
    features: &Tensor,
    unlabelled: usize,
    training: &Training,
    rng: Rng,
    graphs: bool,
    check: &dyn Fn() -> Result<()>,
) -> Result<[Tensor; 2]> {
    let (device, [nodes, d]) = (features.device(), features.shape().matrix("gcn")?);
    let graph = Graph::new(features)?;
    let mut layout = Layout::default();
    let net = Gcn::new(&mut layout, d);
    let mut params = layout.init(device, rng)?;
    let rule = AdamRule { decay: training.weight_decay, ..AdamRule::default() };
    let mut adam = Adam::new(&params, rule)?;
    let clock = Rc::new(Clock::new(device)?);
    clock.start(0, 0, training.lr)?;
    // The lanes below are those of the weights.
    let dropout = (training.dropout, rng.lane(16));
    let labelled = nodes - unlabelled;
    let zeros = Tensor::zeros(device, [unlabelled, 1], Dtype::F32)?;
    let ones = Tensor::new(device, [labelled, 1], &vec![1.0f32; labelled])?;
    let mut replay = Replay::new(graphs);
    for _ in 0..training.steps {
        check()?;
        replay.run(device, || {
            let cx = Ctx::new(Mode::Train, rng, &clock, &params);
            let [_, logits] = net.forward(&graph, dropout, &cx)?;
            let loss = loss(&logits, &zeros, &ones, training.weight)?;
            let grads = loss.backward(&params)?;
            drop((loss, logits));
            adam.step(&mut params, &grads, &clock)?;
            clock.advance(nodes)
        })?;
    }
    let cx = Ctx::new(Mode::Eval, rng, &clock, &params);
    let [hidden, logits] = net.forward(&graph, dropout, &cx)?;
    Ok([hidden, ops::sigmoid(&logits)?])
}

/// −mean over the labelled of log s − λ mean over the unlabelled of log(1 − s), s = σ(logits) (M + L, 1).
fn loss(logits: &Tensor, zeros: &Tensor, ones: &Tensor, weight: f32) -> Result<Tensor> {
    let m = zeros.len();
    let of_unlabelled = ops::bce_with_logits(&ops::slice_rows(logits, 0, m)?, zeros)?;
    let of_labelled = ops::bce_with_logits(&ops::slice_rows(logits, m, ones.len())?, ones)?;
    ops::add(&of_labelled, &ops::scale(&of_unlabelled, weight)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn column(v: &[f32]) -> Tensor {
        Tensor::new(&Device::Cpu, [v.len(), 1], v).unwrap()
    }

    /// METHODS 6.12.
    #[test]
    fn the_worked_examples() {
        let near = nearness(&column(&[0.05, 0.12, 0.30, 0.09]), 0.1).unwrap();
        assert_eq!(ops::top_k(&near, 2).unwrap().to_vec::<u32>().unwrap(), [3, 1]);
        let logits: Vec<f32> = [0.2f32, 0.1, 0.9, 0.8].iter().map(|s| (s / (1.0 - s)).ln()).collect();
        let l = loss(&column(&logits), &column(&[0.0; 2]), &column(&[1.0; 2]), 1.2).unwrap();
        assert!((l.to_vec::<f32>().unwrap()[0] - 0.361_354).abs() < 1e-5);
        // The unlabelled alone are weighted: ln 2 for every even chance.
        let even = |weight| loss(&column(&[0.0, 9.0]), &column(&[0.0]), &column(&[1.0]), weight).unwrap();
        let of_unlabelled = even(3.0).to_vec::<f32>().unwrap()[0] - even(1.0).to_vec::<f32>().unwrap()[0];
        assert!((of_unlabelled - 2.0 * 2f32.ln()).abs() < 1e-5, "{of_unlabelled}");
    }

    /// Labelled nodes in one corner, unlabelled ones there and in another: those are told apart.
    #[test]
    fn learns_what_is_labelled() {
        let noise = |e: usize| 0.2 * (Rng::new(1).uniform(e as u64) - 0.5);
        let at = |e: usize, corner: [f32; 2]| [corner[0] + noise(2 * e), corner[1] + noise(2 * e + 1)];
        let mut rows: Vec<f32> = (0..20).flat_map(|e| at(e, if e < 10 { [1.0, 0.0] } else { [0.0, 1.0] })).collect();
        rows.extend((20..40).flat_map(|e| at(e, [1.0, 0.0])));
        let features = Tensor::new(&Device::Cpu, [40, 2], &rows).unwrap();
        let training = Training { steps: 400, lr: 0.02, ..Training::default() };
        let rng = Rng::new(7).at(Purpose::Gcn, 1, 0);
        let [hidden, scores] = learn(&features, 20, &training, rng, true, &|| Ok(())).unwrap();
        assert_eq!((hidden.dims(), scores.dims()), (&[40, 128][..], &[40, 1][..]));
        let s = scores.to_vec::<f32>().unwrap();
        let (near, far) = (&s[..10], &s[10..20]);
        let least = near.iter().copied().fold(1.0, f32::min);
        assert!(far.iter().all(|v| *v < least), "unlabelled here {near:?}, and there {far:?}");
        let stopped = learn(&features, 20, &training, rng, true, &|| Err(Error::NonFinite { what: "stop".into() }));
        assert!(stopped.is_err());
    }
}
