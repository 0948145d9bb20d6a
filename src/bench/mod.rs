//! The experiment: its description, the rounds, what is on disk, and the numbers derived from it.

pub mod config;
pub mod epochs;
pub mod metrics;
mod partial;
mod progress;
pub mod runner;
pub mod store;
pub mod study;
pub mod training;
