//! source says:            label where the predicted distribution has the largest entropy, −Σ p ln p (Shannon; METHODS 9.1).
//! reference code does:    multiplies p by log p of a saturated softmax; 0·log 0 is not a number there.
//! dalcore does:           the entropy from the logits, in terms that do not cancel near certainty.

use super::{Method, Query};
use crate::data::PoolIdx;
use crate::{Result, ops};

/// One pass over U, then a top-k on the device; ties go to the lowest id. Memory U·C.
pub struct Entropy;

impl Method for Entropy {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        q.top("entropy", &ops::entropy(q.logits()?)?, n)
    }
}
