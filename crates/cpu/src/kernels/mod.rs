//! The fast kernels: work spread over threads, sixteen floats at a time, sums in f32.
//!
//! Each file does what its namesake in `scalar/` does.

mod attend;
mod decode;
mod embed;
mod norm;
mod norm_linear;
mod records;
pub(crate) mod tile;

use crate::bound::{AttendView, EmbedView, Epilogue, PreView};
use crate::cache::Cache;
use crate::matrix::Matrix;
use crate::program::Kernels;
use crate::simd::Lanes;
use std::sync::Mutex;

/// The kernels for one instruction set.
pub(crate) struct Fast<L>(pub L);

impl<L: Lanes> Kernels for Fast<L> {
    fn embed(&self, view: &EmbedView<'_>, out: &mut [f32]) {
        embed::embed(self.0, view, out);
    }

    fn pre(&self, view: &PreView<'_>, x: &mut [f32], emitted: &mut [f32]) {
        norm::pre(self.0, view, x, emitted);
    }

    fn product(
        &self,
        weight: &Matrix,
        epilogue: &Epilogue,
        rows: usize,
        x: &mut [f32],
        y: &mut [f32],
        tiles: &[Mutex<Vec<f32>>],
    ) {
        norm_linear::product(self.0, weight, epilogue, rows, x, y, tiles);
    }

    fn attend(&self, view: &AttendView<'_>, cache: Option<&mut Cache>, qkv: &mut [f32], out: &mut [f32]) {
        attend::attend(self.0, view, cache, qkv, out);
    }

    fn place(
        &self,
        y: &[f32],
        step: usize,
        at: usize,
        residual: Option<&[f32]>,
        rows: usize,
        out: &mut [f32],
    ) {
        norm_linear::place(y, step, at, residual, rows, out);
    }
}
