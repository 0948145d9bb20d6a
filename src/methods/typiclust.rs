//! source says:            for few labels: as many clusters of normalised features as labels there will be, 500 at most; from
//!                         those without a label, the largest first, the point whose 20 nearest are nearest on average
//!                         (Hacohen et al. 2022).
//! reference code does:    squared distances, to what is left of the cluster, half of it at most; clusters of five points or
//!                         fewer are dropped; counts are not renewed within a query.
//! dalcore does:           distances, to all of the cluster; no cluster is dropped, small ones come last; each pick counts.

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::data::PoolIdx;
use crate::rng::Rng;
use crate::select::{NEIGHBOURS, Stops, Typical, kmeans, typical};
use crate::tensor::Tensor;
use crate::{Error, Result, ops};

/// Keys under `typiclust`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Clusters at most; otherwise as many as there are labels after the query.
    pub clusters: usize,
    /// How many of the nearest of its cluster make a point typical.
    pub neighbours: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { clusters: 500, neighbours: 20 }
    }
}

impl Settings {
    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, why: String| Err(Error::Config { key: format!("typiclust.{key}"), why });
        if self.clusters == 0 {
            return refuse("clusters", "must be at least 1; 500 is the default".into());
        }
        if !(1..=NEIGHBOURS).contains(&self.neighbours) {
            let why = format!("{} is not between 1 and {NEIGHBOURS}; 20 is the default", self.neighbours);
            return refuse("neighbours", why);
        }
        Ok(())
    }
}

/// k of the candidates, ascending; every other row of `embeddings` (N, D) is labelled.
pub(crate) fn choose(
    embeddings: &Tensor,
    candidates: &[u32],
    k: usize,
    settings: Settings,
    rng: Rng,
) -> Result<Typical> {
    let x = ops::normalize_rows(embeddings)?;
    let n = x.dims()[0];
    let labels = n - candidates.len() + k.min(candidates.len());
    let stops = Stops { restarts: 1, iterations: 100, tolerance: 1e-4 };
    let clusters = kmeans(&x, labels.min(settings.clusters), stops, rng)?.labels.to_vec::<u32>()?;
    typical(&x, &clusters, candidates, k, settings.neighbours)
}

/// One pass over the pool, O(iterations·N·C·D) for C clusters, and distances within those picked from. Memory N·D and a tile
/// of 32 MiB.
pub struct TypiClust(pub Settings);

impl Method for TypiClust {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let candidates: Vec<u32> = q.unlabelled().iter().map(|i| i.0).collect();
        let picked = choose(q.embeddings()?, &candidates, n, self.0, q.rng())?;
        Ok(picked.ids.into_iter().map(PoolIdx).collect())
    }
}
