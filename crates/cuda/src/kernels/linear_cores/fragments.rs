//! What a plane does with a tile: multiplications of fragments on tensor cores, and the same in loops.

use super::{Cores, GROUP, PITCH, PLANE, SIDE};
use cubecl::cmma;
use cubecl::prelude::*;

/// A fragment of sums, all zero.
#[cube]
pub(super) fn accumulator() -> cmma::Matrix<f32> {
    cmma::Matrix::<f32>::from_value(
        cmma::MatrixIdent::Accumulator,
        16usize,
        16usize,
        16usize,
        cmma::MatrixLayout::Undefined,
        0.0f32,
    )
}

/// 16 rows from `row` on and 16 columns from `column` on of a tile, as the left or right factor.
#[cube]
fn fragment<E: Float>(
    tile: &SharedMemory<E>,
    row: usize,
    column: usize,
    #[comptime] left: bool,
) -> cmma::Matrix<E> {
    let from = row * PITCH + column;
    let rows = tile.slice(from, from + comptime!((SIDE - 1) * PITCH + SIDE));
    if comptime!(left) {
        cmma::Matrix::<E>::from_slice(
            cmma::MatrixIdent::A,
            16usize,
            16usize,
            16usize,
            cmma::MatrixLayout::RowMajor,
            &rows,
            comptime!(PITCH as u32),
        )
    } else {
        // Rows of the matrix are columns of the factor.
        cmma::Matrix::<E>::from_slice(
            cmma::MatrixIdent::B,
            16usize,
            16usize,
            16usize,
            cmma::MatrixLayout::ColMajor,
            &rows,
            comptime!(PITCH as u32),
        )
    }
}

/// Adds the products of 32 columns on tensor cores.
#[cube]
pub(super) fn multiply<E: Float>(
    weights: &SharedMemory<E>,
    input: &SharedMemory<E>,
    plane_row: usize,
    plane_input: usize,
    high: &Sequence<cmma::Matrix<f32>>,
    low: &Sequence<cmma::Matrix<f32>>,
    #[comptime] cores: Cores,
) {
    #[unroll]
    for k in 0..comptime!(GROUP / SIDE) {
        let column = comptime!(k * SIDE);
        let mut left = Sequence::<cmma::Matrix<E>>::new();
        let mut left_low = Sequence::<cmma::Matrix<E>>::new();
        #[unroll]
        for m in 0..comptime!(cores.fragments[1]) {
            let row = plane_input + comptime!(m * SIDE);
            left.push(fragment::<E>(input, row, column, true));
            if comptime!(cores.split) {
                left_low.push(fragment::<E>(input, row + comptime!(cores.batch()), column, true));
            }
        }
        #[unroll]
        for r in 0..comptime!(cores.fragments[0]) {
            let row = plane_row + comptime!(r * SIDE);
            let right = fragment::<E>(weights, row, column, false);
            #[unroll]
            for m in 0..comptime!(cores.fragments[1]) {
                let to = high.index(comptime!(r * cores.fragments[1] + m));
                cmma::execute::<E, E, f32, f32>(left.index(m), &right, to, to);
            }
            if comptime!(cores.split) {
                let right_low = fragment::<E>(weights, row + comptime!(cores.rows()), column, false);
                #[unroll]
                for m in 0..comptime!(cores.fragments[1]) {
                    let to = low.index(comptime!(r * cores.fragments[1] + m));
                    cmma::execute::<E, E, f32, f32>(left.index(m), &right_low, to, to);
                    cmma::execute::<E, E, f32, f32>(left_low.index(m), &right, to, to);
                }
            }
        }
    }
}

/// The same in loops. `once` is 1, which only the caller knows: loops of known lengths are unrolled by drivers, and are
/// compiled for minutes then. Not one column at a time: llvmpipe ends every loop of a unit after 65,535 turns in all.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what a cube shares has no other name")]
pub(super) fn multiply_plain<E: Float>(
    weights: &SharedMemory<E>,
    input: &SharedMemory<E>,
    plane_row: usize,
    plane_input: usize,
    lane: usize,
    once: usize,
    high: &mut Array<f32>,
    low: &mut Array<f32>,
    #[comptime] cores: Cores,
) {
    for i in 0..once * comptime!(cores.sums()) {
        let fragment = i / comptime!(SIDE * SIDE / PLANE);
        let index = lane + i % comptime!(SIDE * SIDE / PLANE) * PLANE;
        let row = plane_row + fragment / comptime!(cores.fragments[1]) * SIDE + index % SIDE;
        let source = plane_input + fragment % comptime!(cores.fragments[1]) * SIDE + index / SIDE;
        let mut sum = 0.0f32;
        let mut mixed = 0.0f32;
        for quarter in 0..once * 4 {
            #[unroll]
            for j in 0..comptime!(GROUP / 4) {
                let k = quarter * comptime!(GROUP / 4) + j;
                let w = f32::cast_from(weights[row * PITCH + k]);
                let x = f32::cast_from(input[source * PITCH + k]);
                sum += w * x;
                if comptime!(cores.split) {
                    let w_low = f32::cast_from(weights[(row + comptime!(cores.rows())) * PITCH + k]);
                    let x_low = f32::cast_from(input[(source + comptime!(cores.batch())) * PITCH + k]);
                    mixed += w_low * x + w * x_low;
                }
            }
        }
        high[i] += sum;
        low[i] += mixed;
    }
}
