//! The reference: plain loops in f64 over weights decoded one by one.
//!
//! Nothing here is meant to be fast. It is meant to be read beside the definitions in
//! [`halfbyte_backend::Step`] and believed.

mod attend;
mod embed;
mod linear;
mod norm;

use crate::bound::{AttendView, EmbedView, PreView, Product};
use crate::cache::Cache;
use crate::program::Kernels;
use crate::scratch::Scratch;
use crate::team::Team;

/// The reference kernels.
pub(crate) struct Scalar;

impl Kernels for Scalar {
    fn embed(&self, _: &Team, view: &EmbedView<'_>, out: &mut [f32]) {
        embed::embed(view, out);
    }

    fn pre(&self, _: &Team, view: &PreView<'_>, x: &mut [f32], emitted: &mut [f32]) {
        norm::pre(view, x, emitted);
    }

    fn product(&self, _: &Team, product: Product<'_>, x: &mut [f32], y: &mut [f32], _: &Scratch) {
        linear::product(product.weight, &product.epilogue, product.rows, x, y);
    }

    fn attend(
        &self,
        _: &Team,
        view: &AttendView<'_>,
        cache: Option<&mut Cache>,
        qkv: &mut [f32],
        out: &mut [f32],
    ) {
        attend::attend(view, cache, qkv, out);
    }

    fn place(
        &self,
        _: &Team,
        y: &[f32],
        step: usize,
        at: usize,
        residual: Option<&[f32]>,
        rows: usize,
        out: &mut [f32],
    ) {
        linear::place(y, step, at, residual, rows, out);
    }
}
