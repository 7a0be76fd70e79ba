//! Weights sixteen rows side by side, as products in bytes take them: 4-bit codes to look up, and bytes.

use crate::byte_rows::{self, ByteRows};
use crate::interleaved::{self, Interleaved, Run};
use crate::lines::{LANES, Line};
use crate::matrix::{Matrix, Tensor};
use crate::nested::InLanes;
use crate::panels::Panels;
use crate::simd::bytes::{Bytes, FOUR, place_in_four};
use halfbyte_backend::Arrangement;

/// A tensor whose rows lie in groups of sixteen.
pub(crate) trait Grouped: Sized + Sync {
    /// The lines of one block of 64 columns.
    type Block;
    /// What the tensor is looked up in, as registers hold it.
    type Tables<L: Bytes>;
    /// Whether all inputs are held twice, in sixteen bits.
    const INPUTS_TWICE: bool;

    /// The tensor, if it is held so.
    fn of(tensor: &Tensor) -> Option<&Self>;
    /// Its rows.
    fn rows(&self) -> usize;
    /// How its columns are held.
    fn panels(&self) -> &Panels;
    /// The lines from the first of a group on.
    fn from(&self, group: usize) -> &[Line];
    /// What to look it up in.
    fn tables<L: Bytes>(&self, lanes: L) -> Self::Tables<L>;
    /// Calls `work(number, block, scales)` for every block of a group in a panel, counted from its first, with the scales
    /// of its sixteen rows.
    fn each_block<L: Bytes>(
        &self,
        lanes: L,
        panel: usize,
        group: usize,
        tables: &Self::Tables<L>,
        work: impl FnMut(usize, &Self::Block, L::V),
    );
    /// Calls `work(pair, first, second)` for each pair of the sixteen steps of four columns of a block.
    fn each_pair<L: Bytes>(
        lanes: L,
        block: &Self::Block,
        tables: &Self::Tables<L>,
        work: impl FnMut(usize, L::Weights, L::Weights),
    );
}

/// One group of a matrix.
pub(crate) struct Group<'a, T> {
    pub tensor: &'a T,
    /// The tensor's number in the matrix.
    pub segment: usize,
    pub group: usize,
    /// Lanes that have a row.
    pub count: usize,
    /// Rows of the tensors before this one.
    above: usize,
    arrangement: Arrangement,
    /// Tensors of the matrix.
    tensors: usize,
}

impl<'a, T: Grouped> Group<'a, T> {
    /// Group `index` of all groups of `weight`.
    #[inline(always)]
    pub fn of(weight: &'a Matrix, index: usize) -> Option<Self> {
        let (mut group, mut above) = (index, 0);
        for (segment, tensor) in weight.tensors.iter().enumerate() {
            let tensor = T::of(tensor)?;
            let groups = tensor.rows().div_ceil(LANES);
            if group < groups {
                let (arrangement, tensors) = (weight.shape.arrangement, weight.tensors.len());
                let count = LANES.min(tensor.rows() - group * LANES);
                return Some(Self { tensor, segment, group, count, above, arrangement, tensors });
            }
            group -= groups;
            above += tensor.rows();
        }
        None
    }

    /// Layer row of each lane.
    pub fn rows(&self) -> [usize; LANES] {
        let at: [usize; LANES] = std::array::from_fn(|lane| self.group * LANES + lane);
        let half = self.tensor.rows() / 2;
        // The cases are outside of the loops over lanes, which become vectors.
        match (self.arrangement, self.tensors) {
            (Arrangement::Stacked, _) => at.map(|at| self.above + at),
            (Arrangement::Interleaved, 1) => {
                at.map(|at| if at < half { 2 * at } else { 2 * (at - half) + 1 })
            }
            (Arrangement::Interleaved, _) => at.map(|at| 2 * at + self.segment),
        }
    }
}

/// Groups of a matrix.
pub(crate) fn groups<T: Grouped>(weight: &Matrix) -> usize {
    weight.tensors.iter().filter_map(T::of).map(|tensor| tensor.rows().div_ceil(LANES)).sum()
}

/// What the codes of 4-bit weights are looked up in.
pub(crate) struct CodeTables<L: Bytes> {
    levels: L::Levels,
    map: L::Map,
    unit: f32,
    offset: L::V,
}

/// Codes of up to three blocks in the order of [`place_in_four`].
fn four_of(blocks: &[[u8; LANES]]) -> [u8; FOUR * LANES] {
    let mut four = [0; FOUR * LANES];
    for (block, codes) in blocks.iter().enumerate() {
        let (first, second) = codes.split_at(LANES / 2);
        four[place_in_four(block, 0)..][..LANES / 2].copy_from_slice(first);
        four[place_in_four(block, LANES / 2)..][..LANES / 2].copy_from_slice(second);
    }
    four
}

impl Grouped for Interleaved {
    type Block = [Line; interleaved::LINES];
    type Tables<L: Bytes> = CodeTables<L>;
    const INPUTS_TWICE: bool = false;

    #[inline(always)]
    fn of(tensor: &Tensor) -> Option<&Self> {
        match tensor {
            Tensor::Interleaved(held) => Some(held),
            _ => None,
        }
    }

    #[inline(always)]
    fn rows(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    fn panels(&self) -> &Panels {
        self.panels()
    }

    #[inline(always)]
    fn from(&self, group: usize) -> &[Line] {
        self.from(group)
    }

    #[inline(always)]
    fn tables<L: Bytes>(&self, lanes: L) -> CodeTables<L> {
        let (map, offset) = self.nested();
        let map = lanes.map(map);
        let unit = lanes.unit(&map);
        CodeTables { levels: lanes.levels(&self.levels), map, unit, offset: lanes.splat(offset) }
    }

    #[inline(always)]
    fn each_block<L: Bytes>(
        &self,
        lanes: L,
        panel: usize,
        group: usize,
        tables: &CodeTables<L>,
        mut work: impl FnMut(usize, &Self::Block, L::V),
    ) {
        match self.run(panel, group) {
            Run::Plain(run) => {
                for (number, [scales, block @ ..]) in run.iter().enumerate() {
                    work(number, block, lanes.load_f32(&scales.0));
                }
            }
            Run::Nested { fours, last, codes } => {
                let scales = self.scales_of_scales(panel, group);
                let InLanes { before, after, change } = scales.in_lanes(lanes, tables.unit);
                let whole = scales.change_between_fours();
                let mut number = 0;
                for [codes, blocks @ ..] in fours {
                    let values = lanes.scales(&tables.map, &codes.0);
                    let mut nested = lanes.choose(change, number as f32, before, after);
                    for (block, value) in blocks.as_chunks().0.iter().zip(values) {
                        if !whole {
                            nested = lanes.choose(change, number as f32, before, after);
                        }
                        work(number, block, lanes.mul_add(value, nested, tables.offset));
                        number += 1;
                    }
                }
                if !last.is_empty() {
                    let values = lanes.scales(&tables.map, &four_of(codes));
                    for (block, value) in last.iter().zip(values) {
                        let nested = lanes.choose(change, number as f32, before, after);
                        work(number, block, lanes.mul_add(value, nested, tables.offset));
                        number += 1;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn each_pair<L: Bytes>(
        lanes: L,
        block: &Self::Block,
        tables: &CodeTables<L>,
        mut work: impl FnMut(usize, L::Weights, L::Weights),
    ) {
        for (at, line) in block.iter().enumerate() {
            let (first, second) = lanes.unpack(line, tables.levels);
            work(at, first, second);
        }
    }
}

impl Grouped for ByteRows {
    type Block = [Line; byte_rows::LINES];
    type Tables<L: Bytes> = ();
    // These products wait for memory, so that it costs nothing, and nothing after a head evens errors out.
    const INPUTS_TWICE: bool = true;

    #[inline(always)]
    fn of(tensor: &Tensor) -> Option<&Self> {
        match tensor {
            Tensor::Bytes(held) => Some(held),
            _ => None,
        }
    }

    #[inline(always)]
    fn rows(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    fn panels(&self) -> &Panels {
        self.panels()
    }

    #[inline(always)]
    fn from(&self, group: usize) -> &[Line] {
        self.from(group)
    }

    #[inline(always)]
    fn tables<L: Bytes>(&self, _: L) {}

    #[inline(always)]
    fn each_block<L: Bytes>(
        &self,
        lanes: L,
        panel: usize,
        group: usize,
        (): &(),
        mut work: impl FnMut(usize, &Self::Block, L::V),
    ) {
        let run = self.run(panel, group);
        let mut number = 0;
        for [scales, blocks @ ..] in run.twos {
            let scales = scales.0.as_chunks().0;
            for (block, scales) in blocks.as_chunks().0.iter().zip(scales) {
                work(number, block, lanes.load_bf16(scales));
                number += 1;
            }
        }
        if let Some((block, scales)) = run.last {
            work(number, block, lanes.load_bf16(scales));
        }
    }

    #[inline(always)]
    fn each_pair<L: Bytes>(
        lanes: L,
        block: &Self::Block,
        (): &(),
        mut work: impl FnMut(usize, L::Weights, L::Weights),
    ) {
        for (at, lines) in block.as_chunks::<2>().0.iter().enumerate() {
            work(at, lanes.signed(&lines[0]), lanes.signed(&lines[1]));
        }
    }
}
