//! What products need beside their inputs and results.

use crate::buffer::{Shortage, zeroed};
use crate::kernels::bytes_linear::PANEL_GROUPS;
use crate::layout::Sizes;
use crate::lines::{BLOCK, LANES, Line};
use crate::quants::Quants;
use std::sync::Mutex;

/// Scratch of a program. Locks are never waited for: a thread takes its own.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Decoded weights, `[tile rows, padded columns]` for each thread.
    pub tiles: Vec<Mutex<Vec<f32>>>,
    /// Looked-up weights of each thread.
    pub panels: Vec<Mutex<Panel>>,
    /// Inputs as bytes.
    pub quants: Mutex<Quants>,
}

impl Scratch {
    /// Allocates what `sizes` says, for `threads`.
    pub fn reserve(sizes: &Sizes, threads: usize) -> Result<Self, Shortage> {
        let tile = |_| zeroed(sizes.tile).map(Mutex::new);
        let panel = |_| Panel::reserve(sizes.panel).map(Mutex::new);
        Ok(Self {
            tiles: (0..threads).map(tile).collect::<Result<_, _>>()?,
            panels: (0..threads).map(panel).collect::<Result<_, _>>()?,
            quants: Mutex::new(Quants::reserve(sizes.quants)?),
        })
    }
}

/// Looked-up weights of some groups of rows, and their scales.
#[derive(Debug)]
pub(crate) struct Panel {
    lines: Vec<Line>,
    scales: Vec<f32>,
}

/// Lines of a panel of `cols` columns.
fn lines(cols: usize) -> usize {
    cols / 4 * PANEL_GROUPS
}

/// Scales of a panel of `cols` columns.
fn scales(cols: usize) -> usize {
    cols / BLOCK * LANES * PANEL_GROUPS
}

/// Bytes of a panel of `cols` columns.
pub(crate) fn panel_bytes(cols: usize) -> usize {
    lines(cols) * size_of::<Line>() + scales(cols) * 4
}

impl Panel {
    fn reserve(cols: usize) -> Result<Self, Shortage> {
        Ok(Self { lines: zeroed(lines(cols))?, scales: zeroed(scales(cols))? })
    }

    /// Lines and scales for `cols` columns.
    pub fn parts(&mut self, cols: usize) -> (&mut [Line], &mut [f32]) {
        (&mut self.lines[..lines(cols)], &mut self.scales[..scales(cols)])
    }
}
