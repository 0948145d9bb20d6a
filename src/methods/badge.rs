//! source says:            k-means++ over the gradients of the last layer for the predicted label (Ash et al. 2020).
//! reference code does:    forms N×(C·D) gradients in f64, takes C from labels it must not see, and may draw an id twice.
//! dalcore does:           the same seeding, longest gradient first, on the factors δ and h; a picked id has no weight.

use super::{Method, Query};
use crate::Result;
use crate::data::PoolIdx;
use crate::select::{Points, kmeans_pp, label_gradients};

/// One pass over U, then O(K·U·(C + D)) on the device; memory U·(C + D).
pub struct Badge;

impl Method for Badge {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let (logits, h) = (q.logits()?, q.features()?);
        q.check_finite("badge: the logits", logits)?;
        q.check_finite("badge: the features", h)?;
        let delta = label_gradients(logits)?;
        let rows = kmeans_pp(Points::Gradients { delta: &delta, h }, n, q.rng())?;
        Ok(rows.into_iter().map(|r| q.unlabelled()[r as usize]).collect())
    }
}
