//! dalcore: a hand-written CUDA compute engine for deep active learning.
//!
//! Tensors ([`tensor`]), a minimal autograd ([`autograd`]), operations with CPU and CUDA code side by side
//! ([`ops`]), networks ([`nn`]), training ([`train`]), selection algorithms on plain matrices ([`select`]), the
//! methods of the study ([`methods`]), the resumable experiment ([`mod@bench`]) and its report ([`report`]).

#![deny(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::undocumented_unsafe_blocks)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod arrays;
pub mod autograd;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod csv;
pub mod data;
pub mod device;
pub mod embed;
pub mod error;
pub mod label;
pub mod methods;
pub mod names;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod pick;
pub mod report;
pub mod rng;
pub mod select;
pub mod tensor;
pub mod train;

pub use error::{Error, Result};
