//! Decoding in bytes: one row of activations times weights in the registers that they were looked up into.
//!
//! Each thread reads one stream of memory: two at a time, of a gate and of the up beside it, came out slower by a tenth.
//! So a thread multiplies a piece of gates, then the ups beside them, and has both to put the activation where it is
//! wanted. What happens between two groups of rows is time in which no memory is asked for.

use super::bytes_linear::STEPS;
use super::grouped::{Group, Grouped, groups};
use super::norm_linear::{activate, finish, finish_values};
use crate::bound::{Epilogue, OneRow};
use crate::lines::{BLOCK, LANES};
use crate::matrix::Matrix;
use crate::quants::QuantRow;
use crate::simd::bytes::Bytes;
use crate::team::{Scatter, Team};
use halfbyte_backend::{Act, Arrangement};
use std::ops::Range;

/// Groups whose results a thread keeps until they are put in place.
const PIECE: usize = 32;

/// Whether [`product`] multiplies with `weight`: results of neighbouring groups are neighbours, sixteen each but for the
/// last, and a gate's up lies as many groups behind it for all.
pub(super) fn takes<T: Grouped>(weight: &Matrix, epilogue: &Epilogue) -> bool {
    let mut rows = weight.tensors.iter().map(|tensor| T::of(tensor).map_or(1, T::rows));
    match (weight.shape.arrangement, weight.tensors.len()) {
        (Arrangement::Stacked, count) => {
            !epilogue.gated && rows.take(count.saturating_sub(1)).all(|rows| rows.is_multiple_of(LANES))
        }
        (Arrangement::Interleaved, 1) => epilogue.gated && rows.all(|rows| rows.is_multiple_of(2 * LANES)),
        (Arrangement::Interleaved, _) => epilogue.gated && rows.all(|rows| rows.is_multiple_of(LANES)),
    }
}

/// How many items the product of one row with `weight` has, groups of rows or a gate's with its up's, and how many of them
/// lie together. Of gates and ups, gates come first.
pub(super) fn items<T: Grouped>(weight: &Matrix) -> (usize, usize) {
    let gated = weight.shape.arrangement == Arrangement::Interleaved;
    let grain = weight.tensors.first().and_then(T::of).map_or(1, |tensor| tensor.panels().grain());
    (groups::<T>(weight) / if gated { 2 } else { 1 }, grain)
}

/// See [`Kernels::one_row`](crate::program::Kernels::one_row).
pub(super) fn product<L: Bytes, T: Grouped>(lanes: L, team: &Team, row: OneRow<'_>, x: QuantRow<'_>) {
    let OneRow { weight, epilogue, residual, out, .. } = row;
    let gated = epilogue.gated;
    let (count, grain) = items::<T>(weight);
    let out = Scatter::new(out);
    team.stretches(
        (count, grain),
        |_| {
            x.load();
            (None, None)
        },
        |(kept, other): &mut (Kept<L, T>, Kept<L, T>), items| {
            let mut first = items.start;
            while first < items.end {
                let piece = first..items.end.min(first + PIECE);
                let at = first * LANES;
                // SAFETY: results of groups do not overlap, and `stretches` gives a group to one thread.
                let out = unsafe { out.range(at, LANES * piece.len()) };
                first = piece.end;
                lanes.run_bytes(
                    #[inline(always)]
                    || {
                        let (mut values, mut ups) = ([[0.0; LANES]; PIECE], [[0.0; LANES]; PIECE]);
                        sums_of::<L, T>(lanes, weight, piece.clone(), kept, x, &mut values);
                        let values = &mut values.as_flattened_mut()[..out.len()];
                        if gated {
                            let piece = piece.start + count..piece.end + count;
                            sums_of::<L, T>(lanes, weight, piece, other, x, &mut ups);
                            gate(weight, &epilogue, at, values, ups.as_flattened());
                        } else if !plain(weight, &epilogue) {
                            finish(lanes, weight, &epilogue, at, 1, values);
                        }
                        put(out, values, residual.map(|all| all.get(at..).unwrap_or_default()));
                    },
                );
            }
        },
    );
}

/// Puts values in place: alone, added to what is there (`Some(&[])`), or to `residual`.
#[inline(always)]
fn put(out: &mut [f32], values: &[f32], residual: Option<&[f32]>) {
    match residual {
        None => out.copy_from_slice(&values[..out.len()]),
        Some([]) => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
        Some(residual) => {
            let sums = residual.iter().zip(values).map(|(residual, value)| residual + value);
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
        }
    }
}

/// Whether results need nothing more.
pub(super) fn plain(weight: &Matrix, epilogue: &Epilogue) -> bool {
    let Epilogue { act, gated, scale, softcap } = *epilogue;
    !gated && act == Act::Identity && scale == 1.0 && softcap.is_none() && weight.bias.is_empty()
}

/// `act(gate) * up` in place of the gates of results from `first` on.
#[inline(always)]
fn gate(weight: &Matrix, epilogue: &Epilogue, first: usize, gates: &mut [f32], ups: &[f32]) {
    // A bias lies as layer rows do, pair by pair.
    let bias = weight.bias.as_chunks::<2>().0.get(first..).unwrap_or_default();
    gates.iter_mut().zip(bias).for_each(|(gate, bias)| *gate += bias[0]);
    activate(epilogue.act, gates);
    if bias.is_empty() {
        gates.iter_mut().zip(ups).for_each(|(gate, up)| *gate *= up);
    } else {
        let ups = ups.iter().zip(bias).map(|(up, bias)| up + bias[1]);
        gates.iter_mut().zip(ups).for_each(|(gate, up)| *gate *= up);
    }
    finish_values(epilogue, gates);
}

/// What the weights of a segment are looked up with, and the number of the segment.
type Kept<L, T> = Option<(usize, <T as Grouped>::Tables<L>)>;

/// The sums of groups.
#[inline(always)]
fn sums_of<L: Bytes, T: Grouped>(
    lanes: L,
    weight: &Matrix,
    groups: Range<usize>,
    kept: &mut Kept<L, T>,
    x: QuantRow<'_>,
    to: &mut [[f32; LANES]],
) {
    let mut first = groups.start;
    while let Some(Group { tensor, segment, group, .. }) =
        Group::<T>::of(weight, first).filter(|_| first < groups.end)
    {
        let end = tensor.rows().div_ceil(LANES).min(group + groups.end - first);
        let (_, tables) = match &mut *kept {
            Some(kept) if kept.0 == segment => kept,
            kept => kept.insert((segment, tensor.tables(lanes))),
        };
        let to = &mut to[first - groups.start..];
        tensor.panels().walk(
            group..end,
            #[inline(always)]
            |panel, at| {
                let to = &mut to[at - group];
                lanes.store(one_row(lanes, tensor, [panel, at], tables, x, lanes.load(to)), to);
            },
        );
        first += end - group;
    }
}

/// Sixteen rows of weights times one row of activations, both in one panel of columns, added to `total`: `at` is the
/// panel and the group.
#[inline(always)]
pub(super) fn one_row<L: Bytes, T: Grouped>(
    lanes: L,
    tensor: &T,
    [panel, group]: [usize; 2],
    tables: &T::Tables<L>,
    x: QuantRow<'_>,
    mut total: L::V,
) -> L::V {
    let columns = tensor.panels().blocks(panel);
    // Lengths are checked here, not at each block.
    let (coarse, fine) = (&x.coarse[columns.clone()], &x.fine[columns.clone()]);
    let scales = &x.scales[columns];
    tensor.each_block(
        lanes,
        panel,
        group,
        tables,
        #[inline(always)]
        |number, block, scale| {
            let of = &scales[number];
            let sums = block_sums::<L, T>(lanes, block, tables, &coarse[number], of.coarse_sum);
            let factor = lanes.mul(scale, lanes.splat(of.coarse));
            total = lanes.mul_add(lanes.floats(sums), factor, total);
            if of.fine != 0.0 {
                let sums = block_sums::<L, T>(lanes, block, tables, &fine[number], of.fine_sum);
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
