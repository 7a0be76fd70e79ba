//! Keys and values into a cache: staged words into stretches of a buffer that begin at any word.

use cubecl::prelude::*;

/// Units of one cube.
pub(crate) const UNITS: u32 = 256;

/// Copies `count` words of `staging` to `to`. They are words `from..` of stretches of `words` each, one behind the other,
/// of which each begins `pitch` words after the one before, the first at word `at` of `to`.
#[cube(launch_unchecked)]
pub(crate) fn scatter_words(
    staging: &Array<u32>,
    to: &mut Array<u32>,
    words: u32,
    at: u32,
    pitch: u32,
    from: u32,
    count: u32,
) {
    let i = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if i < count {
        let word = from + i;
        to[(at + word / words * pitch + word % words) as usize] = staging[i as usize];
    }
}
