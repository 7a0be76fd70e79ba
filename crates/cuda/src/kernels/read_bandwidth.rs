//! Reads a buffer and does nothing with it: how fast a device's memory is.

use super::Quad;
use cubecl::prelude::*;

/// Units of a cube.
pub(crate) const UNITS: u32 = 256;

/// Reads `quads` times 16 bytes of `data`, neighbouring units neighbouring quads. `out` is written if the words
/// happen to cancel to one value, so that nobody leaves the reading out.
#[cube(launch_unchecked)]
pub(crate) fn read_bandwidth(data: &Array<Quad<u32>>, out: &mut Array<u32>, quads: u32) {
    let stride = CUBE_COUNT_X * UNITS;
    let mut i = CUBE_POS_X * UNITS + UNIT_POS;
    let mut mixed = 0u32;
    while i < quads {
        let words = data[i as usize];
        mixed = mixed ^ words[0] ^ words[1] ^ words[2] ^ words[3];
        i += stride;
    }
    if mixed == 0x5EED_5EEDu32 {
        out[0] = mixed;
    }
}
