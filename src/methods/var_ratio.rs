//! source says:            1 − the share of the modal class among the predictions of T passes with dropout (Freeman 1965).
//! reference code does:    1 − max p instead, which is least confidence.
//! dalcore does:           counts votes. There are only T values of it: ties, which are many, go to the lowest id.

use super::bald::{Passes, passes};
use super::{Method, Query};
use crate::Result;
use crate::data::PoolIdx;
use crate::ops::McRule;

/// One pass over U for what no dropout reaches and T over the rest; ties go to the lowest id. Memory U.
pub struct VarRatio(pub Passes);

impl Method for VarRatio {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        q.top("var-ratio", &passes("var-ratio", q, self.0.passes, McRule::VarRatio)?, n)
    }
}
