//! source says:            draw uniformly without replacement.
//! reference code does:    draws from the global generator, whose state depends on what training consumed.
//! dalcore does:           a shuffle of the unlabelled ids by a stream of its own (seed, round, "random").

use super::{Method, Query};
use crate::Result;
use crate::data::PoolIdx;

/// The reference line of every comparison. O(U), no model pass.
pub struct Random;

impl Method for Random {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let ids = q.unlabelled();
        Ok(q.rng().permutation(ids.len()).into_iter().take(n).map(|i| ids[i as usize]).collect())
    }
}
