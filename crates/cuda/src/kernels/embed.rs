//! `out[r] = norm(table[token] * scale + positions[position + first] + types[type])`: one launch, a cube a row.

use super::dense::dense_quad;
use super::places::row_word;
use super::pre::norm_row;
use super::variant::{Elements, Norming, Team};
use super::{GROUP, Quad};
use cubecl::prelude::*;

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EmbedVariant {
    pub table: Elements,
    pub positions: Option<Elements>,
    pub types: Option<Elements>,
    pub norm: Norming,
    pub team: Team,
}

/// The kernel. Tables and `out` have rows padded to whole groups; `chosen` are the tokens of the last greedy
/// choice, `[outputs]`; `norm` its weight and, from the padded `cols`, its bias.
#[cube(launch_unchecked)]
pub(crate) fn embed(
    table: &Array<Quad<u32>>,
    positions: &Array<Quad<u32>>,
    types: &Array<Quad<u32>>,
    norm: &Array<Quad<f32>>,
    chosen: &Array<u32>,
    places: &Array<u32>,
    out: &mut Array<Quad<f32>>,
    cols: u32,
    first_position: u32,
    scale: f32,
    eps: f32,
    norm_offset: f32,
    #[comptime] variant: EmbedVariant,
) {
    let row = CUBE_POS_X as usize;
    let quads = (cols as usize).div_ceil(GROUP) * comptime!(GROUP / 4);
    let mut token = row_word(places, row, 0usize) as usize;
    if places[3] == 1u32 {
        token = chosen[row] as usize;
    }
    let mut quad = UNIT_POS as usize;
    while quad < quads {
        let mut sum = dense_quad(table, token * quads + quad, variant.table) * Quad::<f32>::new(scale);
        if comptime!(variant.positions.is_some()) {
            let position = (row_word(places, row, 2usize) + first_position) as usize;
            sum += dense_quad(positions, position * quads + quad, comptime!(variant.positions.unwrap()));
        }
        if comptime!(variant.types.is_some()) {
            let kind = row_word(places, row, 3usize) as usize;
            sum += dense_quad(types, kind * quads + quad, comptime!(variant.types.unwrap()));
        }
        out[row * quads + quad] = sum;
        quad += comptime!(variant.team.units());
    }
    if comptime!(variant.norm != Norming::None) {
        let mut partial = SharedMemory::<f32>::new(comptime!(variant.team.units()));
        let mut totals = SharedMemory::<f32>::new(comptime!(variant.team.teams));
        norm_row(
            out,
            norm,
            row,
            cols,
            eps,
            norm_offset,
            &mut partial,
            &mut totals,
            variant.norm,
            variant.team,
        );
    }
}
