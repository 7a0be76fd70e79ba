//! Products of bytes: what the fast arithmetic needs of a processor.

use super::Lanes;
use crate::lines::Line;

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

    /// Takes the values of 8-bit codes.
    fn map(self, values: &[f32; 256]) -> Self::Map;
    /// The values of the sixteen codes of each of four blocks.
    fn scales(self, map: &Self::Map, codes: &[u8; 64]) -> [Self::V; 4];
}
