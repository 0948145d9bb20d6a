//! source says:            label what has the smallest top probability (Wang & Shang 2014).
//! reference code does:    sorts max p ascending; confident rows all saturate at exactly 1.
//! dalcore does:           ranks by −log p_max from the logits, which is the same order with full resolution.

use super::{Method, Query};
use crate::data::PoolIdx;
use crate::{Error, Result, ops};

/// One pass over U, then a top-k on the device; ties go to the lowest id. Memory U·C.
pub struct LeastConfidence;

impl Method for LeastConfidence {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        let ids = q.unlabelled();
        if n == 0 || ids.is_empty() {
            return Ok(Vec::new());
        }
        let scores = ops::least_confidence(q.logits()?)?;
        let rows = ops::top_k(&scores, n.min(ids.len())).map_err(|e| name_the_example(e, ids))?;
        Ok(rows.to_vec::<u32>()?.into_iter().map(|r| ids[r as usize]).collect())
    }
}

/// A score that is not a number is reported by row; the user knows pool ids.
fn name_the_example(e: Error, ids: &[PoolIdx]) -> Error {
    match e {
        Error::NonFinite { what } => {
            let what = format!("least-confidence: {what} (rows count the {} unlabelled examples in order)", ids.len());
            Error::NonFinite { what }
        }
        other => other,
    }
}
