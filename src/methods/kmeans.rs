//! source says:            as many centres as queries, informative rows weighted and filtered first (Zhdanov 2019).
//! reference code does:    the library's k-means, ten restarts, no weights; fails where a cluster is empty.
//! dalcore does:           plain k-means, one restart, the row nearest to each centre; empty clusters move to far rows.

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::Profile;
use crate::data::PoolIdx;
use crate::select::{Stops, kmeans};
use crate::{Error, Result};

/// Keys under `kmeans`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Fresh seeds, of which the best clustering counts.
    pub restarts: u32,
    /// Moves of the centres at most.
    pub iterations: u32,
    /// Centres stand still when their squared shifts sum to this times the mean variance of the features.
    pub tolerance: f64,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        match profile {
            Profile::Clean => Settings { restarts: 1, iterations: 100, tolerance: 1e-4 },
            Profile::Repro => Settings { restarts: 10, iterations: 300, tolerance: 1e-4 },
        }
    }

    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, why: String| Err(Error::Config { key: format!("kmeans.{key}"), why });
        for (key, v) in [("restarts", self.restarts), ("iterations", self.iterations)] {
            if !(1..=1_000_000).contains(&v) {
                return refuse(key, format!("{v} must be between 1 and 1000000"));
            }
        }
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return refuse(
                "tolerance",
                format!("{} must be a number of at least 0; 0.0001 is the default", self.tolerance),
            );
        }
        Ok(())
    }
}

/// One pass over U, then O(restarts·iterations·U·K·D) on the device; memory U·D.
pub struct KMeans(pub Settings);

impl Method for KMeans {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let unlabelled = q.unlabelled();
        if n == 0 || unlabelled.is_empty() {
            return Ok(Vec::new());
        }
        let h = q.features()?;
        q.check_finite("kmeans: the features", h)?;
        if n >= unlabelled.len() {
            return Ok(unlabelled.to_vec());
        }
        let Settings { restarts, iterations, tolerance } = self.0;
        let rows = kmeans(h, n, Stops { restarts, iterations, tolerance }, q.rng())?.central(h)?;
        Ok(rows.into_iter().map(|r| unlabelled[r as usize]).collect())
    }
}
