//! source says:            balls of radius δ around normalised features; the point that covers most that is uncovered; δ the
//!                         largest radius at which 95 % of balls are pure under k-means labels (Yehuda et al. 2022).
//! reference code does:    that on an N×N graph; δ is chosen by hand from a curve.
//! dalcore does:           no graph; δ exactly, under the classes that the model predicts (and the labels that are known),
//!                         or as given.

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::data::PoolIdx;
use crate::select::{max_cover, purity_radius};
use crate::{Error, Result, ops};

/// Keys under `probcover`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// δ, the radius of the balls; 0 for the largest at which enough balls are pure.
    pub radius: f32,
    /// How large a share of the balls must be pure.
    pub purity: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { radius: 0.0, purity: 0.95 }
    }
}

impl Settings {
    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, why: String| Err(Error::Config { key: format!("probcover.{key}"), why });
        if !(0.0..=2.0).contains(&self.radius) {
            return refuse("radius", format!("{} is not between 0 and 2, the largest distance there is", self.radius));
        }
        if !(0.0..=1.0).contains(&self.purity) {
            return refuse("purity", format!("{} is not between 0 and 1; 0.95 is the default", self.purity));
        }
        Ok(())
    }
}

/// One pass over the pool, then 2·N²·D (N²·D more for δ). Memory N·D and a tile of 32 MiB.
pub struct ProbCover(pub Settings);

impl Method for ProbCover {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let x = ops::normalize_rows(q.embeddings()?)?;
        let raw = |of: &[PoolIdx]| of.iter().map(|i| i.0).collect::<Vec<u32>>();
        let (labelled, candidates) = (raw(q.labelled()), raw(q.unlabelled()));
        let radius = match self.0.radius {
            0.0 => {
                let mut classes = vec![0; q.pool_len()];
                let predicted = ops::argmax_rows(q.logits()?)?.to_vec::<u32>()?;
                let known = candidates.iter().zip(predicted).chain(labelled.iter().zip(q.labels()?));
                known.for_each(|(id, class)| classes[*id as usize] = class);
                purity_radius(&x, &classes, q.classes(), self.0.purity)?
            }
            given => given,
        };
        let cover = max_cover(&x, &labelled, &candidates, n, radius)?;
        Ok(cover.ids.into_iter().map(PoolIdx).collect())
    }
}
