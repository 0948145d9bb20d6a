//! source says:            label where the two largest probabilities differ least (Scheffer et al. 2001; METHODS 9.1).
//! reference code does:    sorts p1 − p2 of a softmax that saturates: all sure rows have margin 1.
//! dalcore does:           ranks by −log (p1 − p2) from the logits, the same order with full resolution at both ends.

use super::{Method, Query};
use crate::data::PoolIdx;
use crate::{Result, ops};

/// One pass over U, then a top-k on the device; ties go to the lowest id. Memory U·C.
pub struct Margin;

impl Method for Margin {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        q.top("margin", &ops::margin(q.logits()?)?, n)
    }
}
