//! Token ids to vectors.

use super::norm::norm;
use crate::bound::EmbedView;

/// `norm(table[token] * scale + positions[position + first] + types[type])`
pub(crate) fn embed(view: &EmbedView<'_>, out: &mut [f32]) {
    let hidden = view.table.cols;
    for (row, out) in out.chunks_exact_mut(hidden).enumerate() {
        let place = view.places[row];
        for (col, value) in out.iter_mut().enumerate() {
            *value = view.table.weight(view.tokens[row] as usize, col) * view.scale;
            if let Some((positions, first)) = view.positions {
                *value += positions.weight(place.position as usize + first as usize, col);
            }
            if let Some(types) = view.types {
                *value += types.weight(place.token_type as usize, col);
            }
        }
        if let Some(weight) = &view.norm {
            norm(weight, out);
        }
    }
}
