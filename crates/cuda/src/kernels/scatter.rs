//! Uploads: rows of a staging buffer into their places in a weight.

use super::Quad;
use cubecl::prelude::*;

/// Units of one cube.
pub(crate) const UNITS: u32 = 256;

/// Copies row `i` of `staging`, `[rows, quads]` of 16 bytes, to row `at + i * step` of `to`.
///
/// Interleaved layers (gate and up row by row) take every second row, the others `step` 1.
#[cube(launch_unchecked)]
pub(crate) fn scatter(
    staging: &Array<Quad<u32>>,
    to: &mut Array<Quad<u32>>,
    quads: u32,
    at: u32,
    step: u32,
    count: u32,
) {
    // Two dimensions of cubes, since one holds only 65,535 on some devices.
    let i = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if i < count {
        let row = at + i / quads * step;
        to[(row * quads + i % quads) as usize] = staging[i as usize];
    }
}
