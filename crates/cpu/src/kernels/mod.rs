//! The fast kernels: work spread over threads, sixteen floats at a time, sums in f32.
//!
//! Each file does what its namesake in `scalar/` does.

#[cfg(all(test, target_arch = "x86_64"))]
mod account;
mod attend;
mod attend_block;
pub(crate) mod bytes_linear;
mod decode;
mod embed;
mod exp;
mod grouped;
mod norm;
mod norm_linear;
mod one_row;
mod records;
pub(crate) mod tile;

use crate::bound::{AttendView, EmbedView, Epilogue, OneRow, PreView, Product};
use crate::cache::Cache;
use crate::matrix::Matrix;
use crate::program::Kernels;
use crate::scratch::Scratch;
use crate::simd::bytes::Bytes;
use crate::team::Team;

/// The kernels for one instruction set; with `BYTES`, 4-bit weights and dense heads are multiplied in bytes.
pub(crate) struct Fast<L, const BYTES: bool>(pub L);

impl<L: Bytes, const BYTES: bool> Kernels for Fast<L, BYTES> {
    fn in_bytes(&self) -> bool {
        BYTES
    }

    fn embed(&self, team: &Team, view: &EmbedView<'_>, out: &mut [f32]) {
        embed::embed(self.0, team, view, out);
    }

    fn pre(&self, team: &Team, view: &PreView<'_>, x: &mut [f32], emitted: &mut [f32]) {
        norm::pre(self.0, team, view, x, emitted);
    }

    fn product(&self, team: &Team, product: Product<'_>, x: &mut [f32], y: &mut [f32], scratch: &Scratch) {
        if !bytes_linear::product(self.0, team, &product, x, y, scratch) {
            norm_linear::product(self.0, team, product, x, y, &scratch.tiles);
        }
    }

    fn takes_one_row(&self, weight: &Matrix, epilogue: &Epilogue) -> bool {
        bytes_linear::takes_one_row(weight, epilogue)
    }

    fn one_row(&self, team: &Team, row: OneRow<'_>, scratch: &Scratch) {
        bytes_linear::one_row(self.0, team, row, scratch);
    }

    fn attend(
        &self,
        team: &Team,
        view: &AttendView<'_>,
        cache: Option<&mut Cache>,
        qkv: &mut [f32],
        out: &mut [f32],
    ) {
        attend::attend(self.0, team, view, cache, qkv, out);
    }

    fn place(
        &self,
        team: &Team,
        y: &[f32],
        step: usize,
        at: usize,
        residual: Option<&[f32]>,
        rows: usize,
        out: &mut [f32],
    ) {
        norm_linear::place(team, y, step, at, residual, rows, out);
    }
}
