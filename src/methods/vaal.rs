//! source says:            an auto-encoder and a discriminator of its codes play on labelled and unlabelled images; label
//!                         what looks least labelled (Sinha et al. 2019).
//! reference code does:    leaves the auto-encoder in training mode at the query, so that picks depend on the order of
//!                         the pool; on MNIST a sigmoid stands against pixels that were normalised; steps whose numbers are
//!                         not finite are skipped.
//! dalcore does:           the query by running statistics, pictures without a sigmoid (with it in `repro`), and stops at
//!                         a loss that is not finite. Both networks start anew in every round.

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::{Config, Profile};
use crate::data::PoolIdx;
use crate::nn::vae::Sizes;
use crate::ops::AdamRule;
use crate::train::{Adversarial, Game, Kl};
use crate::{Error, Result, ops};

/// Keys under `vaal`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How the divergence of the codes is counted: its sum, or its mean over batch and dimensions.
    pub kl: Kl,
    /// Layers of the discriminator: 3, which on 28x28x1 are the two of the reference code (2-5-1), or the 5 of the source's.
    pub discriminator: u32,
    /// End the pictures of the auto-encoder for 28x28x1 in a sigmoid, as the reference code does.
    pub sigmoid: bool,
    /// Epochs of the game, of as many steps as the task's training has batches; 0 for `train.epochs`.
    pub epochs: u32,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        Settings { kl: Kl::Sum, discriminator: 3, sigmoid: profile == Profile::Repro, epochs: 0 }
    }

    /// Refuses what no game can use.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, why: &str| Err(Error::Config { key: key.into(), why: why.into() });
        match self {
            Settings { discriminator: 3 | 5, epochs: 0..=1_000_000, .. } => Ok(()),
            Settings { discriminator: 3 | 5, .. } => refuse("vaal.epochs", "must be at most 1000000"),
            _ => refuse("vaal.discriminator", "must be 3 or 5"),
        }
    }
}

/// Trains its networks on L and U, then one pass of the encoder over U. Memory: the auto-encoder with its moments.
pub struct Vaal {
    settings: Settings,
}

impl Vaal {
    /// With the settings of a run.
    pub fn new(config: &Config) -> Vaal {
        Vaal { settings: config.vaal }
    }
}

impl Method for Vaal {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        if q.labelled().is_empty() {
            let why = "learns what labelled images look like; label some first".into();
            return Err(Error::Data { path: "method vaal".into(), why });
        }
        let (trainer, spec) = (q.trainer, &q.trainer.data.spec);
        let sizes = Sizes::of([spec.h, spec.w, spec.c])?;
        let rules = Adversarial {
            sizes,
            sigmoid: self.settings.sigmoid && matches!(sizes, Sizes::Linear { .. }),
            deep: self.settings.discriminator == 5,
            kl: self.settings.kl,
            adam: AdamRule::default(),
            batch: trainer.recipe.batch,
        };
        let epochs = if self.settings.epochs > 0 { self.settings.epochs } else { trainer.recipe.epochs };
        let mut game = Game::new(rules, &trainer.data.device, trainer.seed, q.round)?;
        game.train(trainer, q.round, [q.labelled(), q.unlabelled()], epochs)?;
        let unlike = |x: &_, clock: &_| Ok([ops::scale(&game.verdict(x, clock)?, -1.0)?]);
        let [scores] = q.sweep(q.unlabelled(), [1], unlike)?;
        q.top("vaal", &scores.reshape([scores.len()])?, n)
    }
}
