//! source says:            label what the passes with dropout disagree about while each is sure (Gal, Islam, Ghahramani 2017).
//! reference code does:    puts the whole network into training mode, which also moves the statistics of batch normalisation;
//!                         its ResNet-18 has no dropout, so all passes coincide and rounding noise ranks by entropy.
//! dalcore does:           T passes with dropout only, masks by pool id, over what no dropout reaches computed once;
//!                         I = H(p̄) − mean H(p) in sums that do not cancel near certainty.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::Profile;
use crate::clock::Clock;
use crate::data::PoolIdx;
use crate::nn::{Ctx, Dropout, Mode};
use crate::ops::{McRule, McSums};
use crate::rng::{Purpose, Rng};
use crate::tensor::Tensor;
use crate::{Error, Result, ops};

/// Keys under `bald`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// T, passes with dropout.
    pub passes: u32,
    /// What to do with a network that is trained without dropout (ResNet-18).
    pub trained_without: TrainedWithout,
}

/// What BALD does with a network that is trained without dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainedWithout {
    /// Drops features before the last layer at query time (METHODS 1.5).
    Drop,
    /// Ranks by entropy: what the rounding noise of the reference code amounts to.
    Entropy,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        let trained_without = match profile {
            Profile::Clean => TrainedWithout::Drop,
            Profile::Repro => TrainedWithout::Entropy,
        };
        Settings { passes: 10, trained_without }
    }

    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        check_passes("bald", self.passes)
    }
}

/// Keys of the other rules on the same passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passes {
    /// T, passes with dropout.
    pub passes: u32,
}

impl Default for Passes {
    fn default() -> Passes {
        Passes { passes: 10 }
    }
}

impl Passes {
    /// Refuses what no query can use; `method` is the table it is in.
    pub fn check(&self, method: &str) -> Result<()> {
        check_passes(method, self.passes)
    }
}

/// Refuses numbers of passes that make no sense under `key`.
pub(super) fn check_passes(key: &str, passes: u32) -> Result<()> {
    // Two dropout layers a pass must find room in a stream's lanes.
    if (2..=1_000_000).contains(&passes) {
        return Ok(());
    }
    let why = format!("{passes} passes: disagreement wants 2 to 1000000; 10 is the default");
    Err(Error::Config { key: format!("{key}.passes"), why })
}

/// One pass over U for what no dropout reaches and T over the rest, then a top-k on the device; ties go to the lowest id.
/// Memory U, and C per image of a batch: T×U×C is never stored.
pub struct Bald(pub Settings);

impl Method for Bald {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let scores = match (q.model.net.dropout(), self.0.trained_without) {
            (Dropout::AtQueries, TrainedWithout::Entropy) => ops::entropy(q.logits()?)?,
            _ => passes("bald", q, self.0.passes, McRule::Bald)?,
        };
        q.top("bald", &scores, n)
    }
}

/// The scores (U) by `rule` of T passes with dropout over the unlabelled examples. The masks of an example depend on the
/// seed, the round, the pass and its id: all rules see the same passes.
pub(super) fn passes(method: &str, q: &Query, passes: u32, rule: McRule) -> Result<Tensor> {
    let (model, unlabelled) = (q.model, q.unlabelled());
    if model.net.dropout() == Dropout::Never {
        let why = "this network has no dropout: all passes are the same and their disagreement is rounding noise; use \
                   entropy or margin";
        return Err(Error::Config { key: method.into(), why: why.into() });
    }
    let rng = Rng::new(q.trainer.seed).at(Purpose::McDropout, q.round, 0);
    let ids: Vec<u32> = unlabelled.iter().map(|i| i.0).collect();
    let order = Tensor::new(model.params.device(), [ids.len()], &ids)?;
    let [scores] = q.sweep(unlabelled, [1], |x: &Tensor, clock: &Rc<Clock>| {
        let pass = |pass| Ctx::new(Mode::McDropout { pass }, rng, clock, &model.params).of_examples(&order);
        let stem = model.net.stem(x, &pass(0), &mut Vec::new())?;
        let mut sums = McSums::new(rule, x.device(), [x.shape().nhwc("passes")?[0], model.classes])?;
        for t in 0..passes {
            let h = model.net.rest(&stem, &pass(t), &mut Vec::new())?;
            sums.add(&ops::softmax(&model.net.head(&h, &pass(t))?)?)?;
        }
        Ok([sums.scores()?])
    })?;
    scores.reshape([ids.len()])
}
