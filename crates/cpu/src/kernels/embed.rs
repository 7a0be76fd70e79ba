//! Token ids to vectors.

use super::norm::norm;
use crate::bound::EmbedView;
use crate::simd::Lanes;
use crate::team::Team;

/// See [`Kernels::embed`](crate::program::Kernels::embed).
pub(crate) fn embed<L: Lanes>(lanes: L, team: &Team, view: &EmbedView<'_>, out: &mut [f32]) {
    let hidden = view.table.cols;
    team.chunks(out, hidden, |_, row, out| {
        let place = view.places[row];
        out.fill(0.0);
        add_row(view.table, view.tokens[row] as usize, view.scale, out);
        if let Some((positions, first)) = view.positions {
            add_row(positions, place.position as usize + first as usize, 1.0, out);
        }
        if let Some(types) = view.types {
            add_row(types, place.token_type as usize, 1.0, out);
        }
        if let Some(weight) = &view.norm {
            lanes.run(
                #[inline(always)]
                || norm(lanes, weight, out),
            );
        }
    });
}

/// Adds `scale` times row `row` of a table. One row a token is too little to be worth vectors.
fn add_row(table: &crate::matrix::Matrix, row: usize, scale: f32, out: &mut [f32]) {
    let (tensor, at) = table.source(row);
    for (col, value) in out.iter_mut().enumerate() {
        *value += tensor.element(at * table.cols + col) * scale;
    }
}
