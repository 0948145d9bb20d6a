//! Selection algorithms: pure functions on matrices. They know nothing of pools, models or methods; ids are row
//! numbers.

mod attack;
mod kcenter;

pub use attack::{Along, Attack, NEVER};
pub use kcenter::{Picks, coverage_radius, kcenter};
