//! source says:            label where the class probabilities vary most over passes with dropout (METHODS 9.1).
//! reference code does:    the mean over the classes of the standard deviation over T = 10 passes, all of them stored.
//! dalcore does:           the same, of the population, from running sums over the passes of BALD.

use super::bald::{Passes, passes};
use super::{Method, Query};
use crate::Result;
use crate::data::PoolIdx;
use crate::ops::McRule;

/// One pass over U for what no dropout reaches and T over the rest; ties go to the lowest id. Memory U.
pub struct MeanStd(pub Passes);

impl Method for MeanStd {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        q.top("mean-std", &passes("mean-std", q, self.0.passes, McRule::MeanStd)?, n)
    }
}
