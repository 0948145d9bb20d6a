//! source says:            what needs the smallest adversarial perturbation to change class is nearest to the boundary (BIM:
//!                         Kurakin 2016; as a query Ducoffe & Precioso 2018, by DeepFool).
//! reference code does:    one image at a time; an image whose softmax is saturated never moves, scores 0 and is picked first.
//! dalcore does:           full batches, see `select::Attack`; where the cross-entropy has no gradient, that of the margin;
//!                         what keeps its class is infinitely far away. The reference's scores in `repro`.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::Profile;
use crate::clock::Clock;
use crate::data::PoolIdx;
use crate::select::{Along, Attack};
use crate::tensor::{Dtype, Tensor};
use crate::{Error, Result, ops};

/// Keys under `adversarial-bim`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Step of every normalised pixel.
    pub eps: f32,
    /// Most steps of an image.
    pub cap: u32,
    /// What is climbed.
    pub loss: Loss,
    /// With loss `ce`: an image whose gradient is zero everywhere goes on by the margin.
    pub fallback: bool,
    /// What becomes of an image that keeps its class.
    pub unflipped: Unflipped,
}

/// What the attack climbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// The cross-entropy with the predicted class.
    Ce,
    /// The largest other logit minus that of the predicted class.
    Margin,
}

/// What becomes of an image that keeps its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unflipped {
    /// It comes last.
    Last,
    /// It counts with the perturbation it has got to.
    Norm,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        let (fallback, unflipped) = match profile {
            Profile::Clean => (true, Unflipped::Last),
            Profile::Repro => (false, Unflipped::Norm),
        };
        Settings { eps: 0.05, cap: 100, loss: Loss::Ce, fallback, unflipped }
    }

    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, why: String| Err(Error::Config { key: format!("adversarial-bim.{key}"), why });
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return refuse("eps", format!("{} is no step; 0.05 is the default", self.eps));
        }
        if !(1..=1_000_000).contains(&self.cap) {
            return refuse("cap", format!("{} is not between 1 and 1000000; 100 is the default", self.cap));
        }
        Ok(())
    }
}

/// Passes forward and backward of batches that are kept full, up to the cap for an image; then the n smallest norms, ties
/// to the lowest id. Memory: the activations of a batch.
pub struct AdversarialBim(pub Settings);

impl Method for AdversarialBim {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let found = self.norms(q)?;
        let mut order: Vec<(u64, PoolIdx)> = found.into_iter().zip(q.unlabelled().iter().copied()).collect();
        order.sort_unstable();
        Ok(order.into_iter().take(n).map(|(_, id)| id).collect())
    }
}

impl AdversarialBim {
    /// The squared norms in steps squared, see [`Attack::run`].
    fn norms(&self, q: &Query) -> Result<Vec<u64>> {
        let Settings { eps, cap, loss, fallback, unflipped } = self.0;
        let along = match loss {
            Loss::Ce => Along::CrossEntropy { fallback },
            Loss::Margin => Along::Margin,
        };
        let pass = q.pass();
        let keep_norm = unflipped == Unflipped::Norm;
        let attack = Attack { eps, cap, along, keep_norm, batch: pass.batch, graphs: pass.graphs };
        let ids: Vec<u32> = q.unlabelled().iter().map(|i| i.0).collect();
        let pixels = &q.trainer.data.train.pixels;
        let [_, h, w, c] = pixels.shape().nhwc("adversarial-bim")?;
        let clock = Rc::new(Clock::new(pixels.device())?);
        let images =
            |ids: &Tensor| ops::cast(&ops::gather_images(pixels, ids, &clock, ids.len(), pass.view)?, Dtype::F32);
        let logits = |x: &Tensor| Ok(q.model.output(x, &clock)?.logits);
        attack.run((&ids, h * w * c), &ops::argmax_rows(q.logits()?)?, images, logits).map_err(|e| {
            e.needed_for(|| {
                let half = (pass.batch / 2).max(1);
                let what = format!("a pass forward and backward over {} images", pass.batch);
                (what, format!("use a smaller batch, such as --set eval.batch={half}"))
            })
        })
    }
}
