//! How planes and their fragments tile a product.

use super::{PLANE, SIDE};

/// How products of many rows use tensor cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Cores {
    /// Fragments of a plane along the rows of the matrix, and along the rows of `x`.
    pub fragments: [usize; 2],
    /// Planes of a cube along the rows of the matrix, and along the rows of `x`.
    pub planes: [usize; 2],
    /// Whether numbers are taken in two halves.
    pub split: bool,
    /// Whether loops multiply.
    pub plain: bool,
}

impl Cores {
    /// For GPUs: 128 rows of the matrix and 64 of `x`, 39 KiB of shared memory.
    pub(crate) const GPU: Self = Self { fragments: [2, 2], planes: [4, 2], split: true, plain: false };
    /// For tests: 32 rows of the matrix and 32 of `x`, 24 KiB of shared memory.
    pub(crate) const PLAIN: Self = Self { fragments: [1, 2], planes: [2, 1], split: true, plain: true };

    /// Units of a cube.
    pub(crate) fn units(self) -> usize {
        self.plane_count() * PLANE
    }

    /// Rows of the matrix for each cube.
    pub(crate) fn rows(self) -> usize {
        self.fragments[0] * self.planes[0] * SIDE
    }

    /// Rows of `x` for each cube.
    pub(crate) fn batch(self) -> usize {
        self.fragments[1] * self.planes[1] * SIDE
    }

    pub(super) fn plane_count(self) -> usize {
        self.planes[0] * self.planes[1]
    }

    /// Halves that a number is taken in.
    pub(super) fn parts(self) -> usize {
        if self.split { 2 } else { 1 }
    }

    /// Fragments of a plane.
    pub(super) fn own(self) -> usize {
        self.fragments[0] * self.fragments[1]
    }

    /// Sums of a unit where loops multiply; an array cannot be empty.
    pub(super) fn sums(self) -> usize {
        if self.plain { self.own() * SIDE * SIDE / PLANE } else { 1 }
    }
}
