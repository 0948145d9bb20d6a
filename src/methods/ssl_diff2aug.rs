//! source says:            label where the mean prediction over a sample and its augmentation has the smallest margin (Song
//!                         et al. 2019); `kmeans`: the smallest margins of every cluster, by its size.
//! reference code does:    two loaders that are assumed to be aligned; clusters of one feature per batch, over all data.
//! dalcore does:           the clean view and one random view, by (seed, round, id); `kmeans`: 20 clusters of the unlabelled
//!                         features, anew in every round, what rounding leaves over going to the largest (in `repro` to
//!                         the first).

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::Profile;
use crate::data::PoolIdx;
use crate::select::{Stops, kmeans};
use crate::tensor::Tensor;
use crate::train::TrainerKind;
use crate::{Error, Result, ops};

/// Two passes over U, memory U·C.
pub struct Direct;

/// −log of the margin of each unlabelled example.
fn uncertainty(q: &Query) -> Result<Tensor> {
    ops::margin_of_mean(q.logits()?, &q.augmented_logits(0)?)
}

impl Method for Direct {
    fn trainer(&self) -> Option<TrainerKind> {
        Some(TrainerKind::MixMatch)
    }

    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        q.top("ssl-diff2aug-direct", &uncertainty(q)?, n)
    }
}

/// Keys under `ssl-diff2aug-kmeans`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Clusters of the unlabelled features; of fewer examples as many as there are.
    pub clusters: usize,
    /// Fresh seeds of the clustering, of which the best counts.
    pub restarts: u32,
    /// What rounding leaves over goes to the largest clusters, and not to the first.
    pub largest_first: bool,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        Settings { clusters: 20, restarts: 3, largest_first: profile == Profile::Clean }
    }

    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        if self.clusters > 0 && (1..=1_000_000).contains(&self.restarts) {
            return Ok(());
        }
        let why = "clusters and restarts must be at least 1".into();
        Err(Error::Config { key: "ssl-diff2aug-kmeans".into(), why })
    }
}

/// Two passes over U and a clustering of U; memory U·D.
pub struct KMeans(pub Settings);

impl Method for KMeans {
    fn trainer(&self) -> Option<TrainerKind> {
        Some(TrainerKind::MixMatch)
    }

    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let unlabelled = q.unlabelled();
        if n == 0 || unlabelled.is_empty() {
            return Ok(Vec::new());
        }
        if n >= unlabelled.len() {
            return Ok(unlabelled.to_vec());
        }
        // All of them by uncertainty; then each as long as its cluster has not got its share.
        let ranked = q.top("ssl-diff2aug-kmeans", &uncertainty(q)?, unlabelled.len())?;
        let h = q.features()?;
        q.check_finite("ssl-diff2aug-kmeans: the features", h)?;
        let k = self.0.clusters.min(unlabelled.len());
        let stops = Stops { restarts: self.0.restarts, iterations: 100, tolerance: 1e-4 };
        let labels = kmeans(h, k, stops, q.rng())?.labels.to_vec::<u32>()?;
        let mut sizes = vec![0; k];
        labels.iter().for_each(|l| sizes[*l as usize] += 1);
        let mut quota = quotas(&sizes, n, self.0.largest_first);
        let cluster = |id: &PoolIdx| unlabelled.binary_search(id).map(|at| labels[at] as usize);
        let takes = |id: &PoolIdx| {
            cluster(id).is_ok_and(|c| {
                quota[c] > 0 && {
                    quota[c] -= 1;
                    true
                }
            })
        };
        let mut takes = takes;
        Ok(ranked.into_iter().filter(|id| takes(id)).collect())
    }
}

/// How many of `n` picks each cluster gets: ⌊n · size / all⌋, and what is left over one each, to the largest first (the lowest
/// of equals) or in order; a full cluster passes its turn on.   n is at most the sum of the sizes
fn quotas(sizes: &[usize], n: usize, largest_first: bool) -> Vec<usize> {
    let all: usize = sizes.iter().sum();
    let mut quota: Vec<usize> =
        sizes.iter().map(|size| (n as u128 * *size as u128 / all.max(1) as u128) as usize).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    if largest_first {
        order.sort_by_key(|c| std::cmp::Reverse(sizes[*c]));
    }
    let mut left = n - quota.iter().sum::<usize>();
    for c in order.into_iter().cycle() {
        if left == 0 {
            break;
        }
        if quota[c] < sizes[c] {
            quota[c] += 1;
            left -= 1;
        }
    }
    quota
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// METHODS 6.18.
    #[test]
    fn quotas_are_those_of_the_specification() {
        assert_eq!(quotas(&[5, 3, 2], 5, true), [3, 1, 1]);
        assert_eq!(quotas(&[3, 5, 2], 5, true), [1, 3, 1]);
        assert_eq!(quotas(&[3, 5, 2], 5, false), [2, 2, 1]);
        assert_eq!(quotas(&[1, 0, 1, 9], 11, true), [1, 0, 1, 9], "everything");
        assert_eq!(quotas(&[4, 4], 1, true), [1, 0], "the lowest of equals");
    }

    #[test]
    fn quotas_fit_and_sum_up() {
        for case in 0..200u32 {
            let r = Rng::new(7).with_b(case);
            let sizes: Vec<usize> = (0..1 + u64::from(case % 9)).map(|e| (r.u32(e) % 7) as usize).collect();
            let all: usize = sizes.iter().sum();
            for n in 0..=all {
                let q = quotas(&sizes, n, case % 2 == 0);
                assert_eq!(q.iter().sum::<usize>(), n);
                for (q, size) in q.iter().zip(&sizes) {
                    let floor = n * size / all.max(1);
                    assert!(*q <= *size && *q >= floor && *q <= floor + 1, "{sizes:?}, {n}");
                }
            }
        }
    }
}
