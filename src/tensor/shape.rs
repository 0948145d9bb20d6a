//! Shapes: up to six sizes, row-major, no strides.

use crate::{Error, Result};

/// The sizes of a tensor, outermost first. A scalar has none.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.iter().product()
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sizes.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The sizes of a matrix (N, C); anything of higher rank counts as rows of its last size.
    pub fn rows(&self, op: &'static str) -> Result<(usize, usize)> {
        match self.0.as_slice() {
            [outer @ .., c] => Ok((outer.iter().product(), *c)),
            [] => Err(self.refuse(op, "(N, C)")),
        }
    }

    /// The sizes of images or activations (N, H, W, C).
    pub fn nhwc(&self, op: &'static str) -> Result<[usize; 4]> {
        self.0.as_slice().try_into().map_err(|_| self.refuse(op, "(N, H, W, C)"))
    }

    /// The sizes of a matrix, exactly two.
    pub fn matrix(&self, op: &'static str) -> Result<[usize; 2]> {
        self.0.as_slice().try_into().map_err(|_| self.refuse(op, "a matrix"))
    }

    /// The error that names what was wanted instead of this shape.
    pub fn refuse(&self, op: &'static str, want: impl Into<String>) -> Error {
        Error::Shape { op, want: want.into(), got: format!("{self:?}") }
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str(")")
    }
}

impl From<&[usize]> for Shape {
    fn from(d: &[usize]) -> Shape {
        Shape(d.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(d: Vec<usize>) -> Shape {
        Shape(d)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(d: [usize; N]) -> Shape {
        Shape(d.to_vec())
    }
}
