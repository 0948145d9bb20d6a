//! The resumable experiment: results on disk ([`store`]) and what is derived from them ([`metrics`]).

pub mod metrics;
pub mod store;
