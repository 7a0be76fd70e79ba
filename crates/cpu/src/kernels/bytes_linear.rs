//! The linear product in bytes: activations in bytes with a scale for each block, times a codebook of bytes.
//!
//! A row of activations (decoding) is multiplied with weights in the registers that these were looked up into, one
//! stream of memory for each thread. More rows (prompts) share a panel: thirty-two rows of weights, looked up once
//! and kept in the second-level cache. Both add the same numbers in the same order, so that a text does not depend
//! on how its prompt was cut.

use super::grouped::{Group, Grouped, groups};
use super::norm_linear::{JOB_ROWS, finish};
use super::one_row;
use crate::bound::{Epilogue, OneRow, Product};
use crate::byte_rows::ByteRows;
use crate::interleaved::Interleaved;
use crate::lines::{BLOCK, LANES, Line};
use crate::matrix::{Matrix, Tensor};
use crate::quants::{Quants, hold_large_twice, quantize_blocks, quantize_row};
use crate::scratch::{Panel, Scratch};
use crate::simd::bytes::Bytes;
use crate::team::{Scatter, Team};
use std::ops::Range;
use std::sync::PoisonError;

/// Groups of rows of weights in a panel.
pub(crate) const PANEL_GROUPS: usize = 2;

/// Rows of activations that are multiplied at once: their sums, in whole numbers and floats, fill the registers.
const TOGETHER: usize = 6;

/// Steps of four columns of a block.
pub(super) const STEPS: usize = BLOCK / 4;

/// Columns from which on all threads turn one row into bytes: it lies in the caches of those who made it, and fetching
/// 4096 values from there takes longer than two steps of the team.
const SHARED_COLS: usize = 4096;

/// Blocks of it that a thread takes at a time.
const PART: usize = 8;

/// Layer rows in one job of the epilogue; even, so that gate and up stay together.
pub(super) const FINISH_ROWS: usize = 512;

/// See [`Kernels::product`](crate::program::Kernels::product). Returns whether the product was for these kernels.
pub(crate) fn product<L: Bytes>(
    lanes: L,
    team: &Team,
    product: &Product<'_>,
    x: &[f32],
    y: &mut [f32],
    scratch: &Scratch,
) -> bool {
    match product.weight.tensors.first() {
        Some(Tensor::Interleaved(_)) => product_of::<L, Interleaved>(lanes, team, product, x, y, scratch),
        Some(Tensor::Bytes(_)) => product_of::<L, ByteRows>(lanes, team, product, x, y, scratch),
        _ => return false,
    }
    true
}

/// See [`Kernels::takes_one_row`](crate::program::Kernels::takes_one_row).
pub(crate) fn takes_one_row(weight: &Matrix, epilogue: &Epilogue) -> bool {
    match weight.tensors.first() {
        Some(Tensor::Interleaved(_)) => one_row::takes::<Interleaved>(weight, epilogue),
        Some(Tensor::Bytes(_)) => one_row::takes::<ByteRows>(weight, epilogue),
        _ => false,
    }
}

/// See [`Kernels::one_row`](crate::program::Kernels::one_row).
pub(crate) fn one_row<L: Bytes>(lanes: L, team: &Team, row: OneRow<'_>, scratch: &Scratch) {
    let cols = row.weight.cols;
    let bytes = matches!(row.weight.tensors.first(), Some(Tensor::Bytes(_)));
    let twice = if bytes { ByteRows::INPUTS_TWICE } else { Interleaved::INPUTS_TWICE };
    let mut quants = scratch.quants.lock().unwrap_or_else(PoisonError::into_inner);
    if cols < SHARED_COLS {
        quantize(lanes, team, [1, cols], row.x, twice, &mut quants);
    } else {
        quantize_together(lanes, team, &row.x[..cols], twice, &mut quants);
    }
    expect(team, row.next);
    let x = quants.row(0, cols);
    if bytes {
        one_row::product::<L, ByteRows>(lanes, team, row, x);
    } else {
        one_row::product::<L, Interleaved>(lanes, team, row, x);
    }
}

fn product_of<L: Bytes, T: Grouped>(
    lanes: L,
    team: &Team,
    product: &Product<'_>,
    x: &[f32],
    y: &mut [f32],
    scratch: &Scratch,
) {
    let &Product { weight, next, epilogue, rows } = product;
    let cols = weight.cols;
    let mut quants = scratch.quants.lock().unwrap_or_else(PoisonError::into_inner);
    quantize(lanes, team, [rows, cols], x, T::INPUTS_TWICE, &mut quants);
    let quants = &*quants;
    expect(team, next);
    let groups = groups::<T>(weight);
    let out = Scatter::new(y);
    team.each(groups.div_ceil(PANEL_GROUPS), |thread, index| {
        let mut panel = scratch.panels[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let both =
            [PANEL_GROUPS * index, PANEL_GROUPS * index + 1].map(|index| Group::<T>::of(weight, index));
        lanes.run_bytes(
            #[inline(always)]
            || many_rows(lanes, &both, rows, cols, quants, &mut panel, &out),
        );
    });
    if !one_row::plain(weight, &epilogue) {
        team.chunks(y, FINISH_ROWS * rows, |_, job, y| {
            lanes.run(
                #[inline(always)]
                || finish(lanes, weight, &epilogue, job * FINISH_ROWS, rows, y),
            );
        });
    }
}

/// Tells the threads what the product after this one will have them read first. The program that has `next` keeps it until
/// its run ends, and then [takes this back](Team::expect_nothing).
pub(crate) fn expect(team: &Team, next: Option<&Matrix>) {
    match next.and_then(|next| Some((next, next.tensors.first()?))) {
        Some((next, Tensor::Interleaved(_))) => expect_groups::<Interleaved>(team, next),
        Some((next, Tensor::Bytes(_))) => expect_groups::<ByteRows>(team, next),
        Some((next, Tensor::Dense { dtype, bytes })) if bytes.file().is_none() => {
            let job = JOB_ROWS * next.cols * dtype.size() as usize;
            // SAFETY: whoever named `next` keeps it, see above.
            unsafe {
                team.expect((next.rows.div_ceil(JOB_ROWS), 1), |index| {
                    bytes.get(index * job..).map(<[u8]>::as_ptr_range)
                });
            }
        }
        // To wait for a disk is not what waiting threads are for.
        Some((_, Tensor::Dense { .. } | Tensor::Quant(_))) | None => team.expect_nothing(),
    }
}

/// Tells them which groups of `next` they will begin with.
fn expect_groups<T: Grouped>(team: &Team, next: &Matrix) {
    let count = one_row::items::<T>(next);
    // SAFETY: as in `expect`.
    unsafe {
        team.expect(count, |index| {
            let group = Group::<T>::of(next, index)?;
            let Range { start, end } = group.tensor.from(group.group).as_ptr_range();
            Some(start.cast()..end.cast())
        });
    }
}

/// Turns `x`, `[rows, cols]`, into bytes.
fn quantize<L: Bytes>(
    lanes: L,
    team: &Team,
    [rows, cols]: [usize; 2],
    x: &[f32],
    all_twice: bool,
    to: &mut Quants,
) {
    let (coarse, fine, scales) = to.parts(rows, cols);
    let (coarse, fine, scales) = (Scatter::new(coarse), Scatter::new(fine), Scatter::new(scales));
    let blocks = cols / BLOCK;
    team.each(rows, |_, row| {
        // SAFETY: rows do not overlap, and `each` gives a row to one thread.
        let (coarse, fine, scales) = unsafe {
            (coarse.range(row * cols, cols), fine.range(row * cols, cols), scales.range(row * blocks, blocks))
        };
        lanes.run(
            #[inline(always)]
            || quantize_row(&x[row * cols..][..cols], all_twice, coarse, fine, scales),
        );
    });
}

/// Turns one long row into bytes, each thread what is nearest to it: those that made it have it in their caches.
fn quantize_together<L: Bytes>(lanes: L, team: &Team, x: &[f32], all_twice: bool, to: &mut Quants) {
    let (all_coarse, all_fine, scales) = to.parts(1, x.len());
    let (coarse, fine) = (Scatter::new(&mut *all_coarse), Scatter::new(&mut *all_fine));
    team.chunks(scales, PART, |_, part, scales| {
        let (at, len) = (part * PART * BLOCK, scales.len() * BLOCK);
        // SAFETY: parts do not overlap, and `chunks` gives a part to one thread.
        let (coarse, fine) = unsafe { (coarse.range(at, len), fine.range(at, len)) };
        lanes.run(
            #[inline(always)]
            || quantize_blocks(&x[at..], all_twice, coarse, fine, scales),
        );
    });
    // Few are, if any.
    lanes.run(
        #[inline(always)]
        || hold_large_twice(x, all_coarse, all_fine, scales),
    );
}

/// Up to two groups of rows times all rows of activations.
#[inline(always)]
fn many_rows<L: Bytes, T: Grouped>(
    lanes: L,
    groups: &[Option<Group<'_, T>>; PANEL_GROUPS],
    rows: usize,
    cols: usize,
    quants: &Quants,
    panel: &mut Panel,
    out: &Scatter<'_, f32>,
) {
    let blocks = cols / BLOCK;
    let (lines, scales) = panel.parts(cols);
    let (lines, _) = lines.as_chunks_mut::<{ PANEL_GROUPS * STEPS }>();
    let (scales, _) = scales.as_chunks_mut::<{ PANEL_GROUPS * LANES }>();
    for (at, group) in groups.iter().enumerate() {
        // An odd group has no companion: its sums are not stored.
        let Some(group) = group else { continue };
        let tables = group.tensor.tables(lanes);
        for part in 0..group.tensor.panels().count() {
            let first = group.tensor.panels().blocks(part).start;
            let (lines, scales) = (&mut lines[first..], &mut scales[first..]);
            group.tensor.each_block(
                lanes,
                part,
                group.group,
                &tables,
                #[inline(always)]
                |number, block, scale| {
                    if let Some(to) = scales[number][at * LANES..].first_chunk_mut() {
                        lanes.store(scale, to);
                    }
                    T::each_pair(
                        lanes,
                        block,
                        &tables,
                        #[inline(always)]
                        |pair, first, second| {
                            lanes.put(first, &mut lines[number][2 * pair * PANEL_GROUPS + at]);
                            lanes.put(second, &mut lines[number][(2 * pair + 1) * PANEL_GROUPS + at]);
                        },
                    );
                },
            );
        }
    }
    let panel = BlockPanel { lines: &lines[..blocks], scales: &scales[..blocks] };
    let store = |first: usize, sums: &[[[f32; LANES]; PANEL_GROUPS]]| {
        for (at, group) in groups.iter().enumerate() {
            let Some(group) = group else { continue };
            for (lane, row) in group.rows().into_iter().enumerate().take(group.count) {
                // SAFETY: a layer row belongs to one group, and `each` gives a group to one thread.
                let out = unsafe { out.range(row * rows + first, sums.len()) };
                out.iter_mut().zip(sums).for_each(|(out, sums)| *out = sums[at][lane]);
            }
        }
    };
    let mut first = 0;
    while first < rows {
        let count = TOGETHER.min(rows - first);
        let mut sums = [[[0.0; LANES]; PANEL_GROUPS]; TOGETHER];
        match count {
            1 => block::<L, 1>(lanes, &panel, quants, first, cols, &mut sums),
            2 => block::<L, 2>(lanes, &panel, quants, first, cols, &mut sums),
            3 => block::<L, 3>(lanes, &panel, quants, first, cols, &mut sums),
            4 => block::<L, 4>(lanes, &panel, quants, first, cols, &mut sums),
            5 => block::<L, 5>(lanes, &panel, quants, first, cols, &mut sums),
            _ => block::<L, TOGETHER>(lanes, &panel, quants, first, cols, &mut sums),
        }
        store(first, &sums[..count]);
        first += count;
    }
}

/// Weights and scales of two groups, looked up.
struct BlockPanel<'a> {
    /// `[blocks, 16 steps of 4 columns, groups]`
    lines: &'a [[Line; PANEL_GROUPS * STEPS]],
    /// `[blocks, groups, LANES]`
    scales: &'a [[f32; PANEL_GROUPS * LANES]],
}

/// A panel times `M` rows of activations from `first` on.
#[inline(always)]
fn block<L: Bytes, const M: usize>(
    lanes: L,
    panel: &BlockPanel<'_>,
    quants: &Quants,
    first: usize,
    cols: usize,
    out: &mut [[[f32; LANES]; PANEL_GROUPS]; TOGETHER],
) {
    let blocks = panel.lines.len();
    // Loops instead of `array::from_fn`: its closures are compiled without these instructions.
    let mut rows = [quants.row(first, cols); M];
    for (m, row) in rows.iter_mut().enumerate() {
        *row = quants.row(first + m, cols);
        row.coarse = &row.coarse[..blocks];
        row.scales = &row.scales[..blocks];
    }
    let mut totals = [[lanes.splat(0.0); PANEL_GROUPS]; M];
    for (index, (lines, scales)) in panel.lines.iter().zip(panel.scales).enumerate() {
        let mut sums = [[lanes.nothing(); PANEL_GROUPS]; M];
        let mut x: [&[[i8; 4]]; M] = [&[]; M];
        for m in 0..M {
            sums[m] = [lanes.start(rows[m].scales[index].coarse_sum); PANEL_GROUPS];
            x[m] = &rows[m].coarse[index].as_chunks().0[..STEPS];
        }
        for (k, lines) in lines.as_chunks::<PANEL_GROUPS>().0.iter().enumerate() {
            let weights = [lanes.take(&lines[0]), lanes.take(&lines[1])];
            for m in 0..M {
                let x = x[m][k];
                sums[m][0] = lanes.dot(sums[m][0], weights[0], x);
                sums[m][1] = lanes.dot(sums[m][1], weights[1], x);
            }
        }
        let scales: &[[f32; LANES]] = scales.as_chunks().0;
        let scales = [lanes.load(&scales[0]), lanes.load(&scales[1])];
        let mut twice = false;
        for m in 0..M {
            let of = &rows[m].scales[index];
            let coarse = lanes.splat(of.coarse);
            for g in 0..PANEL_GROUPS {
                let factor = lanes.mul(scales[g], coarse);
                totals[m][g] = lanes.mul_add(lanes.floats(sums[m][g]), factor, totals[m][g]);
            }
            twice |= of.fine != 0.0;
        }
        if twice {
            for m in 0..M {
                let of = &rows[m].scales[index];
                if of.fine != 0.0 {
                    let fine = lanes.splat(of.fine);
                    let sums = fine_sums(lanes, lines, &rows[m].fine[index], of.fine_sum);
                    for g in 0..PANEL_GROUPS {
                        let factor = lanes.mul(scales[g], fine);
                        totals[m][g] = lanes.mul_add(lanes.floats(sums[g]), factor, totals[m][g]);
                    }
                }
            }
        }
    }
    for m in 0..M {
        for g in 0..PANEL_GROUPS {
            lanes.store(totals[m][g], &mut out[m][g]);
        }
    }
}

/// A block of a panel times the fine bytes of one row.
#[inline(always)]
fn fine_sums<L: Bytes>(
    lanes: L,
    lines: &[Line; PANEL_GROUPS * STEPS],
    x: &[i8; BLOCK],
    total: i32,
) -> [L::Sums; PANEL_GROUPS] {
    let mut sums = [lanes.start(total); PANEL_GROUPS];
    for (lines, &x) in lines.as_chunks::<PANEL_GROUPS>().0.iter().zip(x.as_chunks().0) {
        sums[0] = lanes.dot(sums[0], lanes.take(&lines[0]), x);
        sums[1] = lanes.dot(sums[1], lanes.take(&lines[1]), x);
    }
    sums
}
