//! source says:            average-linkage clusters of the pool, once; then small margins, a cluster at a time, small clusters
//!                         first, a random one in each (Citovsky et al. 2021).
//! reference code does:    20 clusters of the last map, of which one image's values stood for its whole batch; the smallest
//!                         margin of a cluster.
//! dalcore does:           20 clusters of the penultimate features; the smallest margin of a cluster. One image for its batch
//!                         in `repro`.

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::{Config, Profile};
use crate::data::PoolIdx;
use crate::select::average_linkage;
use crate::tensor::Tensor;
use crate::{Error, Result, ops};

/// Keys under `cluster-margin`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Clusters of the pool.
    pub n_clusters: usize,
    /// Instead of that, as many as have at least this many examples in the mean; 0 for `n_clusters`.
    pub mean_cluster_size: f64,
    /// k_m / K: candidates per example that is chosen.
    pub candidates: usize,
    /// GiB that the distances of the clustering may take; beyond it they are squared, which other clusters come of.
    pub memory_gib: f64,
    /// As the reference code: the second image of each batch, as the data set is evaluated in, stands for all of it.
    pub reference_bugs: bool,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        let reference_bugs = profile == Profile::Repro;
        Settings { n_clusters: 20, mean_cluster_size: 0.0, candidates: 10, memory_gib: 8.0, reference_bugs }
    }

    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        let refuse =
            |key: &str, why: &str| Err(Error::Config { key: format!("cluster-margin.{key}"), why: why.into() });
        if self.n_clusters == 0 || self.candidates == 0 {
            let key = if self.n_clusters == 0 { "n_clusters" } else { "candidates" };
            return refuse(key, "must be at least 1");
        }
        if !(self.mean_cluster_size == 0.0 || (1.0..f64::INFINITY).contains(&self.mean_cluster_size)) {
            return refuse("mean_cluster_size", "must be 0, or at least 1");
        }
        if !(0.0..=1e9).contains(&self.memory_gib) {
            return refuse("memory_gib", "must be at least 0");
        }
        Ok(())
    }

    /// The bound in bytes.
    pub fn memory(&self) -> u64 {
        (self.memory_gib * (1u64 << 30) as f64) as u64
    }
}

/// Once O(N²·D) for the clusters, which are kept; then a pass over U and a top-k. Memory: half an N×N matrix within the
/// bound, or N·D.
pub struct ClusterMargin {
    settings: Settings,
    /// Of each example of the pool.
    clusters: Vec<u32>,
}

impl ClusterMargin {
    /// With the settings of a run.
    pub fn new(config: &Config) -> ClusterMargin {
        ClusterMargin { settings: config.cluster_margin, clusters: Vec::new() }
    }
}

impl Method for ClusterMargin {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if self.clusters.is_empty() {
            let mut x = q.embeddings()?.clone();
            if self.settings.reference_bugs {
                let rows = stand_ins(q.pool_len(), q.trainer.data.spec.batch_test);
                x = ops::gather_rows(&x, &Tensor::new(x.device(), [rows.len()], &rows)?)?;
            }
            let tree = average_linkage(&x, self.settings.memory(), q.trainer.check)?;
            self.clusters = match self.settings.mean_cluster_size {
                0.0 => tree.cut(self.settings.n_clusters),
                size => tree.cut_to_mean_size(size),
            };
        }
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let candidates =
            q.top("cluster-margin", &ops::margin(q.logits()?)?, n.saturating_mul(self.settings.candidates))?;
        Ok(round_robin(&candidates, |id| self.clusters[id.index()], n))
    }

    fn save(&self) -> serde_json::Value {
        self.clusters.clone().into()
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        self.clusters = serde_json::from_value(state.clone())
            .map_err(|e| Error::Data { path: "the clusters of cluster-margin".into(), why: e.to_string() })?;
        Ok(())
    }
}

/// For each of `n` rows the second of its batch, the first where it is alone.
fn stand_ins(n: usize, batch: usize) -> Vec<u32> {
    (0..n).map(|row| (row / batch * batch + 1).min(n - 1) as u32).collect()
}

/// The first `n` of a round over clusters, small ones first and then by number, that takes from each the first of
/// `candidates` it has left.
pub(crate) fn round_robin<T: Copy>(candidates: &[T], cluster: impl Fn(T) -> u32, n: usize) -> Vec<T> {
    let mut groups = std::collections::BTreeMap::<u32, Vec<T>>::new();
    candidates.iter().for_each(|c| groups.entry(cluster(*c)).or_default().push(*c));
    // Stable: by size, then by number.
    let mut groups: Vec<Vec<T>> = groups.into_values().collect();
    groups.sort_by_key(Vec::len);
    let most = groups.last().map_or(0, Vec::len);
    (0..most).flat_map(|turn| groups.iter().filter_map(move |g| g.get(turn).copied())).take(n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// METHODS 6.7: candidates 7,3,9,1,4,8,2 with clusters A,A,B,A,C,B,A.
    #[test]
    fn the_worked_example() {
        let cluster = |id: u32| match id {
            7 | 3 | 1 | 2 => 0,
            9 | 8 => 1,
            _ => 2,
        };
        let pick = |n| round_robin(&[7, 3, 9, 1, 4, 8, 2], cluster, n);
        assert_eq!(pick(4), [4, 9, 7, 8]);
        assert_eq!(pick(6), [4, 9, 7, 8, 3, 1]);
        assert_eq!(pick(99), [4, 9, 7, 8, 3, 1, 2]);
        assert_eq!(stand_ins(7, 3), [1, 1, 1, 4, 4, 4, 6]);
        // All in one: plain margin. Equal sizes: by number.
        assert_eq!(round_robin(&[5, 2, 9], |_| 3, 2), [5, 2]);
        assert_eq!(round_robin(&[5, 2, 9], |id| 10 - id, 3), [9, 5, 2]);
    }
}
