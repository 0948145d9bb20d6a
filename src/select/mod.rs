//! Selection algorithms: pure functions on matrices. They know nothing of pools, models or methods; ids are row
//! numbers.

mod attack;
mod cover;
mod hac;
mod kcenter;
mod kmeans;
mod likeness;
mod planes;
mod seeding;
mod typical;

pub use attack::{Along, Attack, NEVER};
pub use cover::{Cover, max_cover, purity_radius};
pub use hac::{Merge, Tree, average_linkage, half_matrix};
pub use kcenter::{Picks, coverage_radius, kcenter};
pub use kmeans::{Clusters, Stops, kmeans, lloyd};
pub use likeness::{Labelled, Unlike, unlikeness};
pub(crate) use seeding::first_non_finite;
pub use seeding::{Points, kmeans_pp, label_gradients};
pub use typical::{NEIGHBOURS, Typical, typical};
