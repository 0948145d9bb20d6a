//! source says:            MixMatch with random queries (Song et al. 2019): what the unlabelled images are worth by themselves.
//! reference code does:    draws from the generator that training uses too.
//! dalcore does:           the draw of `random` from a stream of its own; the trainer is MixMatch.

use super::random::Random;
use super::{Method, Query};
use crate::Result;
use crate::data::PoolIdx;
use crate::train::TrainerKind;

/// O(U), no model pass.
pub struct SslRandom;

impl Method for SslRandom {
    fn trainer(&self) -> Option<TrainerKind> {
        Some(TrainerKind::MixMatch)
    }

    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        Random.select(q, n)
    }
}
