//! Decoding in bytes: one row of activations times weights in the registers that they were looked up into.
//!
//! Each thread reads one stream of memory: two at a time, of a gate and of the up beside it, came out slower by a tenth.
//! What happens between two groups of rows is time in which no memory is asked for.

use super::bytes_linear::{FINISH_ROWS, STEPS, plain};
use super::grouped::{Group, Grouped, groups};
use super::norm_linear::finish;
use crate::bound::Epilogue;
use crate::lines::{BLOCK, LANES};
use crate::matrix::Matrix;
use crate::prefetch::first_level;
use crate::quants::QuantRow;
use crate::simd::bytes::Bytes;
use crate::team::{Scatter, Team};
use halfbyte_backend::Arrangement;

/// Blocks of inputs that are asked for ahead of the one that is multiplied.
const AHEAD: usize = 4;

/// See [`Kernels::product`](crate::program::Kernels::product): `y` is `[layer rows]`.
pub(super) fn product<L: Bytes, T: Grouped>(
    lanes: L,
    team: &Team,
    weight: &Matrix,
    epilogue: &Epilogue,
    x: QuantRow<'_>,
    y: &mut [f32],
) {
    let (out, groups) = (Scatter::new(y), groups::<T>(weight));
    let lines = whole_lines::<T>(weight);
    team.stretches(
        groups,
        |_| None,
        |kept: &mut Kept<L, T>, items| {
            let Some(first) = Group::<T>::of(weight, items.start) else { return };
            if !lines {
                for index in items {
                    let sums = lanes.run_bytes(
                        #[inline(always)]
                        || sums::<L, T>(lanes, weight, index, kept, x),
                    );
                    let Some(group) = Group::<T>::of(weight, index) else { return };
                    for (row, sum) in group.rows().into_iter().zip(sums).take(group.count) {
                        // SAFETY: a layer row belongs to one group, and `stretches` gives a group to one thread.
                        unsafe { out.range(row, 1) }.fill(sum);
                    }
                }
                return;
            }
            // Only the last group of a matrix may have fewer rows.
            let (first, len) = (first.rows()[0], LANES * items.len());
            // SAFETY: groups are neighbouring layer rows, and `stretches` gives a group to one thread.
            let y = unsafe { out.range(first, len) };
            lanes.run_bytes(
                #[inline(always)]
                || {
                    for (y, index) in y.chunks_mut(LANES).zip(items) {
                        y.copy_from_slice(&sums::<L, T>(lanes, weight, index, kept, x)[..y.len()]);
                    }
                },
            );
            if !epilogue.gated && !plain(weight, epilogue) {
                lanes.run(
                    #[inline(always)]
                    || finish(lanes, weight, epilogue, first, 1, y),
                );
            }
        },
    );
    if epilogue.gated || !lines && !plain(weight, epilogue) {
        team.chunks(y, FINISH_ROWS, |_, job, y| {
            lanes.run(
                #[inline(always)]
                || finish(lanes, weight, epilogue, job * FINISH_ROWS, 1, y),
            );
        });
    }
}

/// What the weights of a segment are looked up with, and the number of the segment.
type Kept<L, T> = Option<(usize, <T as Grouped>::Tables<L>)>;

/// Whether groups are neighbouring layer rows, sixteen each but for the last.
fn whole_lines<T: Grouped>(weight: &Matrix) -> bool {
    let mut before = weight.tensors.iter().rev().skip(1).filter_map(T::of);
    weight.shape.arrangement == Arrangement::Stacked
        && before.all(|tensor| tensor.rows().is_multiple_of(LANES))
}

/// The sums of group `index`.
#[inline(always)]
fn sums<L: Bytes, T: Grouped>(
    lanes: L,
    weight: &Matrix,
    index: usize,
    kept: &mut Kept<L, T>,
    x: QuantRow<'_>,
) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    let Some(group) = Group::<T>::of(weight, index) else { return sums };
    let (_, tables) = match kept {
        Some(kept) if kept.0 == group.segment => kept,
        kept => kept.insert((group.segment, group.tensor.tables(lanes))),
    };
    lanes.store(one_row(lanes, &group, tables, x), &mut sums);
    sums
}

/// Sixteen rows of weights times one row of activations.
#[inline(always)]
pub(super) fn one_row<L: Bytes, T: Grouped>(
    lanes: L,
    group: &Group<'_, T>,
    tables: &T::Tables<L>,
    x: QuantRow<'_>,
) -> L::V {
    let blocks = group.tensor.blocks(group.group);
    // Lengths are checked here, not at each block.
    let (coarse, fine) = (&x.coarse[..blocks.len()], &x.fine[..blocks.len()]);
    let scales = &x.scales[..blocks.len()];
    let mut total = lanes.splat(0.0);
    group.tensor.each_block(
        lanes,
        group.group,
        tables,
        #[inline(always)]
        |block, scale| {
            // A group of long rows is as large as the first-level cache: by the next one its inputs have left it.
            first_level(coarse, block + AHEAD);
            if T::INPUTS_TWICE {
                first_level(fine, block + AHEAD);
            }
            if block.is_multiple_of(4) {
                first_level(scales, block + 4 * AHEAD);
            }
            let of = &scales[block];
            let sums = block_sums::<L, T>(lanes, &blocks[block], tables, &coarse[block], of.coarse_sum);
            let factor = lanes.mul(scale, lanes.splat(of.coarse));
            total = lanes.mul_add(lanes.floats(sums), factor, total);
            if of.fine != 0.0 {
                let sums = block_sums::<L, T>(lanes, &blocks[block], tables, &fine[block], of.fine_sum);
                let factor = lanes.mul(scale, lanes.splat(of.fine));
                total = lanes.mul_add(lanes.floats(sums), factor, total);
            }
        },
    );
    total
}

/// One block of sixteen rows times one block of activations.
#[inline(always)]
fn block_sums<L: Bytes, T: Grouped>(
    lanes: L,
    block: &T::Block,
    tables: &T::Tables<L>,
    x: &[i8; BLOCK],
    total: i32,
) -> L::Sums {
    let x: &[[[i8; 4]; 2]] = x.as_chunks::<4>().0.as_chunks().0;
    let x = &x[..STEPS / 2];
    // Two chains, so that a product does not wait for the one before it.
    let (mut even, mut odd) = (lanes.start(total), lanes.nothing());
    T::each_pair(
        lanes,
        block,
        tables,
        #[inline(always)]
        |pair, first, second| {
            even = lanes.dot(even, first, x[pair][0]);
            odd = lanes.dot(odd, second, x[pair][1]);
        },
    );
    lanes.join(even, odd)
}
