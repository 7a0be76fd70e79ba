//! The linear product in bytes: activations in bytes with a scale for each block, times a codebook of bytes.
//!
//! A row of activations (decoding) is multiplied with weights in the registers that these were looked up into, one
//! stream of memory for each thread. More rows (prompts) share a panel: thirty-two rows of weights, looked up once
//! and kept in the second-level cache. Both add the same numbers in the same order, so that a text does not depend
//! on how its prompt was cut.

use super::norm_linear::{JOB_ROWS, finish};
use crate::bound::Product;
use crate::interleaved::{BLOCK, GroupScales, Interleaved, LANES, LINES, Line};
use crate::matrix::{Matrix, Tensor};
use crate::quants::{QuantRow, Quants, quantize_row};
use crate::scratch::{Panel, Scratch};
use crate::simd::bytes::Bytes;
use crate::team::{Scatter, Team};
use halfbyte_backend::{Act, Arrangement};
use std::sync::PoisonError;

/// Groups of rows of weights in a panel.
pub(crate) const PANEL_GROUPS: usize = 2;

/// Rows of activations that are multiplied at once: their sums, in whole numbers and floats, fill the registers.
const TOGETHER: usize = 6;

/// Layer rows in one job of the epilogue; even, so that gate and up stay together.
const FINISH_ROWS: usize = 512;

/// Whether this product is for these kernels.
pub(crate) fn takes(weight: &Matrix) -> bool {
    matches!(weight.tensors.first(), Some(Tensor::Interleaved(_)))
}

/// One group of a matrix, and where its rows go.
pub(super) struct Group<'a> {
    pub tensor: &'a Interleaved,
    /// The tensor's number in the matrix.
    pub segment: usize,
    pub group: usize,
    /// Layer row of each lane.
    pub rows: [usize; LANES],
}

/// Group `index` of all groups of `weight`.
fn group(weight: &Matrix, index: usize) -> Option<Group<'_>> {
    let (mut index, mut above) = (index, 0);
    for (segment, tensor) in weight.tensors.iter().enumerate() {
        let Tensor::Interleaved(tensor) = tensor else { return None };
        if index >= tensor.groups() {
            index -= tensor.groups();
            above += tensor.rows;
            continue;
        }
        let at: [usize; LANES] = std::array::from_fn(|lane| index * LANES + lane);
        let half = tensor.rows / 2;
        // The cases are outside of the loops over lanes, which become vectors.
        let rows = match (weight.shape.arrangement, weight.tensors.len()) {
            (Arrangement::Stacked, _) => at.map(|at| above + at),
            (Arrangement::Interleaved, 1) => {
                at.map(|at| if at < half { 2 * at } else { 2 * (at - half) + 1 })
            }
            (Arrangement::Interleaved, _) => at.map(|at| 2 * at + segment),
        };
        return Some(Group { tensor, segment, group: index, rows });
    }
    None
}

/// See [`Kernels::product`](crate::program::Kernels::product).
pub(crate) fn product<L: Bytes>(
    lanes: L,
    team: &Team,
    product: Product<'_>,
    x: &[f32],
    y: &mut [f32],
    scratch: &Scratch,
) {
    let Product { weight, next, epilogue, rows } = product;
    let cols = weight.cols;
    let mut quants = scratch.quants.lock().unwrap_or_else(PoisonError::into_inner);
    quantize(lanes, team, rows, cols, x, &mut quants);
    let quants = &*quants;
    expect(team, next);
    let groups = weight.rows / LANES;
    let out = Scatter::new(y);
    if rows == 1 {
        let x = quants.row(0, cols);
        // What a thread looks weights up with stays from one group to the next of a segment.
        team.each_with(
            groups,
            |_| None,
            |tables: &mut Option<(usize, Tables<L>)>, index| {
                let Some(group) = group(weight, index) else { return };
                let mut sums = [0.0; LANES];
                lanes.run_bytes(
                    #[inline(always)]
                    || {
                        let (_, tables) = match tables {
                            Some(tables) if tables.0 == group.segment => tables,
                            tables => tables.insert((group.segment, Tables::of(lanes, group.tensor))),
                        };
                        lanes.store(one_row(lanes, &group, tables, x), &mut sums);
                    },
                );
                for (row, sum) in group.rows.into_iter().zip(sums) {
                    // SAFETY: a layer row belongs to one group, and `each_with` gives a group to one thread.
                    unsafe { out.range(row, 1) }.fill(sum);
                }
            },
        );
    } else {
        team.each(groups.div_ceil(PANEL_GROUPS), |thread, index| {
            let mut panel = scratch.panels[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let both = [PANEL_GROUPS * index, PANEL_GROUPS * index + 1].map(|index| group(weight, index));
            lanes.run_bytes(
                #[inline(always)]
                || many_rows(lanes, &both, rows, cols, quants, &mut panel, &out),
            );
        });
    }
    let plain = !epilogue.gated
        && epilogue.act == Act::Identity
        && epilogue.scale == 1.0
        && epilogue.softcap.is_none()
        && weight.bias.is_empty();
    if !plain {
        team.chunks(y, FINISH_ROWS * rows, |_, job, y| {
            lanes.run(
                #[inline(always)]
                || finish(lanes, weight, &epilogue, job * FINISH_ROWS, rows, y),
            );
        });
    }
}

/// Tells the threads where the product after this one will have them begin.
pub(crate) fn expect(team: &Team, next: Option<&Matrix>) {
    let Some(next) = next else { return team.expect(|_, _| None) };
    team.expect(|thread, threads| match next.tensors.first()? {
        Tensor::Interleaved(_) => {
            let group = group(next, next.rows / LANES * thread / threads)?;
            Some(group.tensor.group(group.group).as_ptr().cast())
        }
        Tensor::Dense { dtype, bytes } => {
            let row = next.rows.div_ceil(JOB_ROWS) * thread / threads * JOB_ROWS;
            bytes.get(row * next.cols * dtype.size() as usize..).map(<[u8]>::as_ptr)
        }
        Tensor::Quant(_) => None,
    });
}

/// Turns `x`, `[rows, cols]`, into bytes.
fn quantize<L: Bytes>(lanes: L, team: &Team, rows: usize, cols: usize, x: &[f32], to: &mut Quants) {
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
            || quantize_row(&x[row * cols..][..cols], coarse, fine, scales),
        );
    });
}

/// What the codes of a tensor are looked up in, as registers hold it.
pub(super) struct Tables<L: Bytes> {
    levels: L::Levels,
    map: L::Map,
    offset: L::V,
}

impl<L: Bytes> Tables<L> {
    #[inline(always)]
    pub(super) fn of(lanes: L, tensor: &Interleaved) -> Self {
        let (map, offset) = tensor.nested();
        Self { levels: lanes.levels(&tensor.levels), map: lanes.map(map), offset: lanes.splat(offset) }
    }
}

/// Calls `work(block, scales)` for every block of a group, with the scales of its sixteen rows.
#[inline(always)]
fn each_block<L: Bytes>(lanes: L, group: &Group<'_>, tables: &Tables<L>, mut work: impl FnMut(usize, L::V)) {
    match group.tensor.scales(group.group) {
        GroupScales::Plain(scales) => {
            for (block, scales) in scales.iter().enumerate() {
                work(block, lanes.load(scales));
            }
        }
        scales @ GroupScales::Nested { codes, .. } => {
            let mut start = 0;
            while start < codes.len() {
                let (nested, until) = scales.nested(start);
                let (nested, until) = (lanes.load(&nested), until.min(codes.len()));
                let (fours, rest) = codes[start..until].as_chunks::<4>();
                for four in fours {
                    let values = lanes.scales(&tables.map, bytemuck::cast_ref(four));
                    for value in values {
                        work(start, lanes.mul_add(value, nested, tables.offset));
                        start += 1;
                    }
                }
                if !rest.is_empty() {
                    let mut four = [[0; LANES]; 4];
                    four[..rest.len()].copy_from_slice(rest);
                    let values = lanes.scales(&tables.map, bytemuck::cast_ref(&four));
                    for value in &values[..rest.len()] {
                        work(start, lanes.mul_add(*value, nested, tables.offset));
                        start += 1;
                    }
                }
            }
        }
    }
}

/// Sixteen rows of weights times one row of activations.
#[inline(always)]
pub(super) fn one_row<L: Bytes>(lanes: L, group: &Group<'_>, tables: &Tables<L>, x: QuantRow<'_>) -> L::V {
    let lines = group.tensor.group(group.group);
    // Lengths are checked here, not at each block.
    let (coarse, fine, scales) = (&x.coarse[..lines.len()], &x.fine[..lines.len()], &x.scales[..lines.len()]);
    let mut total = lanes.splat(0.0);
    each_block(
        lanes,
        group,
        tables,
        #[inline(always)]
        |block, scale| {
            let of = &scales[block];
            let sums = block_sums(lanes, &lines[block], tables.levels, &coarse[block], of.coarse_sum);
            let factor = lanes.mul(scale, lanes.splat(of.coarse));
            total = lanes.mul_add(lanes.floats(sums), factor, total);
            if of.fine != 0.0 {
                let sums = block_sums(lanes, &lines[block], tables.levels, &fine[block], of.fine_sum);
                let factor = lanes.mul(scale, lanes.splat(of.fine));
                total = lanes.mul_add(lanes.floats(sums), factor, total);
            }
        },
    );
    total
}

/// One block of sixteen rows times one block of activations.
#[inline(always)]
fn block_sums<L: Bytes>(
    lanes: L,
    lines: &[Line; LINES],
    levels: L::Levels,
    x: &[i8; BLOCK],
    total: i32,
) -> L::Sums {
    // Two chains, so that a product does not wait for the one before it.
    let (mut low, mut high) = (lanes.start(total), lanes.nothing());
    let x: &[[i8; 4]] = x.as_chunks().0;
    for (line, x) in lines.iter().zip(x.as_chunks::<2>().0) {
        let (first, second) = lanes.unpack(line, levels);
        low = lanes.dot(low, first, x[0]);
        high = lanes.dot(high, second, x[1]);
    }
    lanes.join(low, high)
}

/// Up to two groups of rows times all rows of activations.
#[inline(always)]
fn many_rows<L: Bytes>(
    lanes: L,
    groups: &[Option<Group<'_>>; PANEL_GROUPS],
    rows: usize,
    cols: usize,
    quants: &Quants,
    panel: &mut Panel,
    out: &Scatter<'_, f32>,
) {
    let blocks = cols / BLOCK;
    let (lines, scales) = panel.parts(cols);
    let (lines, _) = lines.as_chunks_mut::<{ PANEL_GROUPS * 2 * LINES }>();
    let (scales, _) = scales.as_chunks_mut::<{ PANEL_GROUPS * LANES }>();
    for (at, group) in groups.iter().enumerate() {
        // An odd group has no companion: its sums are not stored.
        let Some(group) = group else { continue };
        let tables = Tables::of(lanes, group.tensor);
        let codes = group.tensor.group(group.group);
        each_block(
            lanes,
            group,
            &tables,
            #[inline(always)]
            |block, scale| {
                if let Some(to) = scales[block][at * LANES..].first_chunk_mut() {
                    lanes.store(scale, to);
                }
                for (j, line) in codes[block].iter().enumerate() {
                    let (first, second) = lanes.unpack(line, tables.levels);
                    lanes.put(first, &mut lines[block][2 * j * PANEL_GROUPS + at]);
                    lanes.put(second, &mut lines[block][(2 * j + 1) * PANEL_GROUPS + at]);
                }
            },
        );
    }
    let panel = BlockPanel { lines: &lines[..blocks], scales: &scales[..blocks] };
    let store = |first: usize, sums: &[[[f32; LANES]; PANEL_GROUPS]]| {
        for (at, group) in groups.iter().enumerate() {
            let Some(group) = group else { continue };
            for (lane, row) in group.rows.into_iter().enumerate() {
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
    lines: &'a [[Line; PANEL_GROUPS * 2 * LINES]],
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
            x[m] = &rows[m].coarse[index].as_chunks().0[..2 * LINES];
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
    lines: &[Line; PANEL_GROUPS * 2 * LINES],
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
