//! Memory of weights that lie sixteen rows side by side.

use crate::buffer::{Shortage, reserved, settle};
use crate::pages;
use std::ops::{Deref, DerefMut};

/// Rows of a group.
pub(crate) const LANES: usize = 16;

/// Columns that share a scale, of weights and of activations.
pub(crate) const BLOCK: usize = 64;

/// A line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; 64]);

impl Default for Line {
    fn default() -> Self {
        Line([0; 64])
    }
}

/// The lines of one matrix, in large pages where the system gives them.
#[derive(Debug)]
pub(crate) struct Lines {
    lines: Vec<Line>,
    count: usize,
}

impl Lines {
    /// Room for `count` lines, which are there after [`settle`](Self::settle).
    pub fn reserve(count: usize) -> Result<Self, Shortage> {
        Ok(Self { lines: reserved(count)?, count })
    }

    /// Asks for large pages; before the arrays of any matrix beside it are settled.
    pub fn ask_for_large_pages(&mut self) {
        pages::ask_for_large_around(self.lines.spare_capacity_mut());
    }

    /// Touches the memory, so that it is really there: zeros.
    pub fn settle(&mut self) {
        pages::make_ends_large(self.lines.spare_capacity_mut());
        settle(&mut self.lines, self.count);
    }

    /// Bytes, as allocated.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }
}

impl Deref for Lines {
    type Target = [Line];

    #[inline(always)]
    fn deref(&self) -> &[Line] {
        &self.lines
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }
}
