//! source says:            label what has the smallest top probability (Wang & Shang 2014).
//! reference code does:    sorts max p ascending; confident rows all saturate at exactly 1.
//! dalcore does:           ranks by −log p_max from the logits, which is the same order with full resolution.

use super::{Method, Query};
use crate::data::PoolIdx;
use crate::{Result, ops};

/// One pass over U, then a top-k on the device; ties go to the lowest id. Memory U·C.
pub struct LeastConfidence;

impl Method for LeastConfidence {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        q.top("least-confidence", &ops::least_confidence(q.logits()?)?, n)
    }
}
