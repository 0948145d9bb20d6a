//! Arrays in files: `.npy`, `.npz` and `.safetensors`, read by blocks of rows and written row by row.

pub mod npy;
mod read;
mod write;

pub use read::{Number, Source};
pub use write::{Array, Kind, Sink};
