//! The scales of scales (double quantization) of sixteen rows side by side.
//!
//! A scale of a scale belongs to 256 neighbouring blocks of the whole matrix, so that it changes within rows and between
//! them. A panel has fewer blocks of a row than that, so that each row has two of them at most.

use crate::lines::LANES;
use crate::simd::bytes::{Bytes, FOUR};
use halfbyte_quant::NESTED_BLOCKSIZE;

/// Those of the blocks of sixteen rows in one panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nested<'a> {
    /// Of the whole matrix, `[rows * blocks / 256]`.
    pub absmax: &'a [f32],
    /// The number of the first row's first block in the panel, among all of the matrix.
    pub first: usize,
    /// Blocks of a row.
    pub blocks: usize,
}

/// The same in registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InLanes<V> {
    /// Of each row, before `change`.
    pub before: V,
    /// From `change` on.
    pub after: V,
    /// The block of the panel from which on `after` holds: a whole number.
    pub change: V,
}

impl Nested<'_> {
    /// That of `block` of the panel of row `lane`.
    pub fn at(&self, block: usize, lane: usize) -> f32 {
        self.number((self.first + lane * self.blocks + block) / NESTED_BLOCKSIZE)
    }

    /// Number `number`; that before it behind the last.
    fn number(&self, number: usize) -> f32 {
        self.absmax.get(number).or(self.absmax.last()).copied().unwrap_or(1.0)
    }

    /// Whether they change between fours of blocks of the panel in all rows, never within.
    #[inline(always)]
    pub fn change_between_fours(&self) -> bool {
        self.blocks.is_multiple_of(FOUR) && self.first.is_multiple_of(FOUR)
    }

    /// All of them, each multiplied with `unit`.
    #[inline(always)]
    pub fn in_lanes<L: Bytes>(&self, lanes: L, unit: f32) -> InLanes<L::V> {
        const SCALE: u32 = NESTED_BLOCKSIZE as u32;
        let (number, offset) = (self.first / NESTED_BLOCKSIZE, (self.first % NESTED_BLOCKSIZE) as u32);
        // This runs once for some 17 KB of weights, but memory waits for it: no branch, no division, few loads.
        let (mut at, mut change) = ([0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let begin = offset + lane as u32 * self.blocks as u32;
            at[lane] = begin / SCALE;
            change[lane] = (SCALE - begin % SCALE) as f32;
        }
        let last = at[LANES - 1] as usize + 1;
        let (before, after) = if last < LANES
            && let Some(near) = self.absmax.get(number..).and_then(<[f32]>::first_chunk)
        {
            let before = lanes.pick(near, &at);
            for at in &mut at {
                *at += 1;
            }
            (before, lanes.pick(near, &at))
        } else {
            // Rows of more than 14,000 columns, and the last rows of a matrix.
            let (mut before, mut after) = ([0.0; LANES], [0.0; LANES]);
            for lane in 0..LANES {
                before[lane] = self.number(number + at[lane] as usize);
                after[lane] = self.number(number + at[lane] as usize + 1);
            }
            (lanes.load(&before), lanes.load(&after))
        };
        let unit = lanes.splat(unit);
        InLanes {
            before: lanes.mul(before, unit),
            after: lanes.mul(after, unit),
            change: lanes.load(&change),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::portable::Portable;

    fn lanes_have_what_each_block_has<L: Bytes>(lanes: L) {
        for (rows, blocks, width) in [
            (32usize, 1, 1),
            (48, 18, 18),
            (64, 64, 32),
            (32, 172, 36),
            (32, 221, 32),
            (16, 222, 32),
            (32, 448, 32),
            (16, 600, 32),
        ] {
            let absmax: Vec<f32> = (0..(rows * blocks).div_ceil(256)).map(|at| 1.0 + at as f32).collect();
            for group in 0..rows / LANES {
                for start in (0..blocks).step_by(width) {
                    let nested = Nested { absmax: &absmax, first: group * LANES * blocks + start, blocks };
                    let mut of = [[0.0; LANES]; 3];
                    lanes.run_bytes(
                        #[inline(always)]
                        || {
                            let InLanes { before, after, change } = nested.in_lanes(lanes, 2.0);
                            lanes.store(before, &mut of[0]);
                            lanes.store(after, &mut of[1]);
                            lanes.store(change, &mut of[2]);
                        },
                    );
                    for lane in 0..LANES {
                        for block in 0..width.min(blocks - start) {
                            let number = (group * LANES + lane) * blocks + start + block;
                            let wanted = absmax[number / 256];
                            assert_eq!(nested.at(block, lane), wanted);
                            let found = of[usize::from(of[2][lane] <= block as f32)][lane];
                            assert_eq!(found, 2.0 * wanted, "{blocks}: {group} {start} {lane} {block}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn each_row_has_its_own() {
        lanes_have_what_each_block_has(Portable);
        #[cfg(target_arch = "x86_64")]
        {
            use crate::simd::avx512::Avx512;
            if Avx512::fast_kernels().is_some() {
                lanes_have_what_each_block_has(Avx512(()));
            }
        }
    }
}
