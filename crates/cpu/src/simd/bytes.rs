//! Products of bytes: what the fast arithmetic needs of a processor.

use super::Lanes;
use crate::lines::{LANES, Line};

/// Blocks whose scales are looked up at once.
pub(crate) const FOUR: usize = 4;

/// Where the code of row `lane` of block `block` lies among those of four blocks: eight rows of a block are neighbours,
/// in the order in which interleaving bytes of 64-byte registers, which goes on in each quarter by itself, leaves
/// whole blocks.
#[inline(always)]
pub(crate) const fn place_in_four(block: usize, lane: usize) -> usize {
    LANES * (block % 2 * 2 + lane / 8) + block / 2 * 8 + lane % 8
}

/// Products of signed bytes for sixteen rows of weights at once, with sums in i32: no sum of one block can overflow.
pub(crate) trait Bytes: Lanes {
    /// Sixteen i32, one for each row.
    type Sums: Copy;
    /// Four columns of sixteen rows.
    type Weights: Copy;
    /// The bytes that codes stand for.
    type Levels: Copy;
    /// The values of 8-bit codes.
    type Map;

    /// Runs `work` where these instructions may be used, as [`Lanes::run`] does.
    fn run_bytes<R>(self, work: impl FnOnce() -> R) -> R;

    /// Takes the 16 levels of a codebook, each within ±127.
    fn levels(self, levels: &[i8; 16]) -> Self::Levels;
    /// The weights of the low nibbles of a line, and of its high ones.
    fn unpack(self, codes: &Line, levels: Self::Levels) -> (Self::Weights, Self::Weights);
    /// The weights of four columns that are held as signed bytes, each within ±127.
    fn signed(self, bytes: &Line) -> Self::Weights;
    /// Keeps weights in memory.
    fn put(self, weights: Self::Weights, to: &mut Line);
    /// Takes them back.
    fn take(self, from: &Line) -> Self::Weights;

    /// Sums to start from, where the activations of the block sum to `total`.
    fn start(self, total: i32) -> Self::Sums;
    /// Adds the products of four columns with four activations, each within ±127.
    fn dot(self, sums: Self::Sums, weights: Self::Weights, x: [i8; 4]) -> Self::Sums;
    /// Adds sums, of which only one was started.
    fn join(self, a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// Sums to add to others.
    fn nothing(self) -> Self::Sums;
    /// As floats.
    fn floats(self, sums: Self::Sums) -> Self::V;

    /// Takes the values of 8-bit codes, which may be rounded to eleven bits: less than the activations' bytes are.
    fn map(self, values: &[f32; 256]) -> Self::Map;
    /// What the values that [`scales`](Self::scales) finds are to be multiplied with.
    fn unit(self, _: &Self::Map) -> f32 {
        1.0
    }
    /// The values of the sixteen codes of each of four blocks, in the order of [`place_in_four`].
    fn scales(self, map: &Self::Map, codes: &[u8; FOUR * LANES]) -> [Self::V; FOUR];
    /// For each row the value of `from` that `at` says, below 16.
    #[inline(always)]
    fn pick(self, from: &[f32; LANES], at: &[u32; LANES]) -> Self::V {
        let mut picked = [0.0; LANES];
        for (picked, at) in picked.iter_mut().zip(at) {
            *picked = from[*at as usize % LANES];
        }
        self.load(&picked)
    }
    /// For each row `after` if `change` is at most `at`, else `before`.
    fn choose(self, change: Self::V, at: f32, before: Self::V, after: Self::V) -> Self::V;
}

/// [`Bytes::scales`] by plain loads: gathers are microcode on many processors, which stops everything else.
#[inline(always)]
pub(super) fn looked_up(map: &[f32; 256], codes: &[u8; FOUR * LANES]) -> [[f32; LANES]; FOUR] {
    let mut values = [[0.0; LANES]; FOUR];
    for (block, values) in values.iter_mut().enumerate() {
        for (lane, value) in values.iter_mut().enumerate() {
            *value = map[usize::from(codes[place_in_four(block, lane)])];
        }
    }
    values
}
