//! source says:            k-center on penultimate features, refined by a mixed-integer program (Sener & Savarese 2018).
//! reference code does:    greedy farthest-first only; square roots of tiny negative numbers are skipped silently.
//! dalcore does:           greedy farthest-first on squared distances by direct differences; ties to the lowest id.

use super::{Method, Query};
use crate::Result;
use crate::data::PoolIdx;
use crate::select::kcenter;

/// O((L + K)·U·D), memory N·D + U; no N×N matrix.
pub struct CoreSet;

impl Method for CoreSet {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let (labelled, candidates) = (raw(q.labelled()), raw(q.unlabelled()));
        if n == 0 || candidates.is_empty() {
            return Ok(Vec::new());
        }
        let picks = kcenter(q.embeddings()?, &labelled, &candidates, n.min(candidates.len()))?;
        Ok(picks.ids.into_iter().map(PoolIdx).collect())
    }
}

fn raw(ids: &[PoolIdx]) -> Vec<u32> {
    ids.iter().map(|i| i.0).collect()
}
