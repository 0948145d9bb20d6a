//! source says:            label samples whose predictions vary under augmentation (Gao et al. 2020: over the sample and N of
//!                         its perturbations); training adds a consistency loss.
//! reference code does:    50 views, all of them stored, without the clean image; training is plain MixMatch.
//! dalcore does:           the same 50 views, in running sums per example and class; `include_clean` adds the clean one.

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::data::PoolIdx;
use crate::ops::{McRule, McSums};
use crate::tensor::Tensor;
use crate::train::TrainerKind;
use crate::{Error, Result, ops};

/// Keys under `ssl-consistency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// V, random views.
    pub views: u32,
    /// The clean image is one more.
    pub include_clean: bool,
    /// Where images are flipped but not cropped there are two views: both once, in place of V draws.
    pub exact_flips: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { views: 50, include_clean: false, exact_flips: false }
    }
}

impl Settings {
    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        if (1..=1_000_000).contains(&self.views) {
            return Ok(());
        }
        let why = format!("{} views: 1 to 1000000 are possible; 50 is the default", self.views);
        Err(Error::Config { key: "ssl-consistency.views".into(), why })
    }
}

/// V passes over U; memory 3·U·C.
pub struct SslConsistency(pub Settings);

impl Method for SslConsistency {
    fn trainer(&self) -> Option<TrainerKind> {
        Some(TrainerKind::MixMatch)
    }

    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        q.top("ssl-consistency", &inconsistency(q, self.0)?, n)
    }
}

/// Σ_c Var_v p_c of each unlabelled example (U).
fn inconsistency(q: &Query, settings: Settings) -> Result<Tensor> {
    let recipe = q.trainer.recipe;
    if recipe.crop_pad == 0 && !recipe.flip {
        let why = "training images are neither cropped nor flipped: all views are the same and every variance is 0; set \
                   train.crop_pad or train.flip";
        return Err(Error::Config { key: "ssl-consistency".into(), why: why.into() });
    }
    let device = &q.trainer.data.device;
    let mut sums = McSums::new(McRule::Variance, device, [q.unlabelled().len(), q.classes()])?;
    let mut add = |logits: &Tensor| sums.add(&ops::softmax(logits)?);
    let exact = settings.exact_flips && recipe.crop_pad == 0;
    if settings.include_clean || exact {
        add(q.logits()?)?;
    }
    if exact {
        add(&q.flipped_logits()?)?;
    } else {
        for view in 0..settings.views {
            (q.trainer.check)()?;
            add(&q.augmented_logits(view)?)?;
        }
    }
    sums.scores()
}
