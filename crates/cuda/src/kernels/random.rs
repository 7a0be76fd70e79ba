//! Threefry-2x32 with 20 rounds (Salmon et al. 2011), as [`halfbyte_backend::random`] has it on the host.

use cubecl::prelude::*;

#[cube]
fn turned(word: u32, #[comptime] by: u32) -> u32 {
    (word << by) | (word >> comptime!(32 - by))
}

/// The first word of the number that `counter` gives with this key.
#[cube]
fn threefry(low: u32, high: u32, counter: u32) -> u32 {
    let third = low ^ high ^ 0x1BD1_1BDAu32;
    let mut x = counter + low;
    let mut y = high;
    #[unroll]
    for group in 0..5u32 {
        #[unroll]
        for round in 0..4u32 {
            x += y;
            y = turned(y, comptime!(rotation(group, round))) ^ x;
        }
        x += key(low, high, third, comptime!((group + 1) % 3));
        y += key(low, high, third, comptime!((group + 2) % 3)) + comptime!(group + 1);
    }
    x
}

/// By how many bits round `round` of group `group` turns.
fn rotation(group: u32, round: u32) -> u32 {
    [13, 15, 26, 6, 17, 29, 16, 24][(group as usize % 2) * 4 + round as usize]
}

#[cube]
fn key(low: u32, high: u32, third: u32, #[comptime] index: u32) -> u32 {
    if comptime!(index == 0) {
        low
    } else if comptime!(index == 1) {
        high
    } else {
        third
    }
}

/// Uniform in `[0, 1)` with 24 bits, for the seed `[low, high]` and a counter.
#[cube]
pub(crate) fn uniform(low: u32, high: u32, counter: u32) -> f32 {
    f32::cast_from(threefry(low, high, counter) >> 8u32) * 5.960_464_5e-8f32
}
