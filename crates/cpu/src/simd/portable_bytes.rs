//! Products of bytes in plain arrays.

use super::bytes::{Bytes, looked_up};
use super::portable::Portable;
use crate::kernels::Fast;
use crate::lines::Line;
use crate::program::Kernels;
use std::array::from_fn;

impl Portable {
    /// The kernels with fast arithmetic.
    pub fn fast_kernels() -> Option<&'static dyn Kernels> {
        Some(&Fast::<Portable, true>(Portable))
    }
}

impl Bytes for Portable {
    type Sums = [i32; 16];
    type Weights = [i8; 64];
    type Levels = [i8; 16];
    type Map = [f32; 256];

    #[inline(always)]
    fn run_bytes<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    #[inline(always)]
    fn levels(self, levels: &[i8; 16]) -> [i8; 16] {
        *levels
    }

    #[inline(always)]
    fn unpack(self, codes: &Line, levels: [i8; 16]) -> ([i8; 64], [i8; 64]) {
        (from_fn(|i| levels[usize::from(codes.0[i] & 15)]), from_fn(|i| levels[usize::from(codes.0[i] >> 4)]))
    }

    #[inline(always)]
    fn signed(self, bytes: &Line) -> [i8; 64] {
        self.take(bytes)
    }

    #[inline(always)]
    fn put(self, weights: [i8; 64], to: &mut Line) {
        to.0 = weights.map(|weight| weight as u8);
    }

    #[inline(always)]
    fn take(self, from: &Line) -> [i8; 64] {
        from.0.map(|weight| weight as i8)
    }

    #[inline(always)]
    fn start(self, _: i32) -> [i32; 16] {
        [0; 16]
    }

    #[inline(always)]
    fn dot(self, sums: [i32; 16], weights: [i8; 64], x: [i8; 4]) -> [i32; 16] {
        from_fn(|row| {
            let product = |col: usize| i32::from(weights[4 * row + col]) * i32::from(x[col]);
            sums[row] + product(0) + product(1) + product(2) + product(3)
        })
    }

    #[inline(always)]
    fn join(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn nothing(self) -> [i32; 16] {
        [0; 16]
    }

    #[inline(always)]
    fn floats(self, sums: [i32; 16]) -> [f32; 16] {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn map(self, values: &[f32; 256]) -> [f32; 256] {
        *values
    }

    #[inline(always)]
    fn scales(self, map: &[f32; 256], codes: &[u8; 64]) -> [[f32; 16]; 4] {
        looked_up(map, codes)
    }

    #[inline(always)]
    fn choose(self, change: [f32; 16], at: f32, before: [f32; 16], after: [f32; 16]) -> [f32; 16] {
        from_fn(|lane| if change[lane] <= at { after[lane] } else { before[lane] })
    }
}
