//! 4-bit weights as the fast arithmetic reads them: sixteen rows side by side.
//!
//! A group of sixteen rows is one stream: for each block of 64 columns eight [`Line`]s. Byte `4 r + c` of line `j`
//! holds row `r`'s column `8 j + c` in its low nibble and column `8 j + 4 + c` in the high one. So a line meets eight
//! activations, each product sums four of them for all rows at once, and nothing is summed across lanes. A block's
//! sixteen scales are neighbours too; codes of nested scales lie four blocks together, as
//! [`place_in_four`] says. Long rows lie in [`Panels`]. It takes exactly the bytes of the canonical form.

use crate::buffer::{Shortage, zeroed};
use crate::contents::map_of;
use crate::lines::{BLOCK, LANES, Line, Lines};
use crate::matrix::{Codes, copy};
use crate::panels::Panels;
use crate::simd::bytes::{FOUR, place_in_four};
use halfbyte_backend::{Fault, Format, QuantFormat, Segment};
use halfbyte_quant::threads::each;
use halfbyte_quant::{Absmax, NESTED_BLOCKSIZE, Quantized};

/// Blocks of a panel: 16 KiB of a group, beside which their inputs stay in the first-level cache.
const PANEL: usize = 32;

/// Lines of a block.
pub(crate) const LINES: usize = LANES * BLOCK / 128;

/// The weights of one segment, `[rows, cols]`.
#[derive(Debug)]
pub(crate) struct Interleaved {
    /// Output features: a multiple of [`LANES`].
    pub rows: usize,
    /// Input features: a multiple of [`BLOCK`].
    pub cols: usize,
    /// The codebook as bytes: `code[i]` is about `levels[i] / factor`.
    pub levels: [i8; 16],
    factor: f32,
    code: [f32; 16],
    panels: Panels,
    /// Blocks as `panels` has them, `[LINES]` each.
    lines: Lines,
    scales: LaneScales,
}

/// The scales of blocks, over [`Interleaved::levels`]' factor.
#[derive(Debug)]
enum LaneScales {
    /// Blocks as lines have them, `[LANES]` each.
    Plain(Vec<f32>),
    /// As [`Scales::Nested`](crate::matrix::Scales::Nested), but for the order of `codes`.
    Nested {
        /// `[blocks of a panel * LANES]` of each panel and group, in the order of [`place`].
        codes: Vec<u8>,
        /// `[rows * blocks / 256]`, by the canonical number of a block.
        absmax: Vec<f32>,
        /// `[256]`
        map: Vec<f32>,
        offset: f32,
    },
}

/// Whether a segment can be held so: blocks of 64 that do not cross rows, and rows in sixteens.
pub(crate) fn fits(segment: &Segment) -> bool {
    let quant = matches!(segment.format, Format::Quant(format) if format.blocksize == BLOCK);
    quant && segment.rows.is_multiple_of(LANES) && segment.cols.is_multiple_of(BLOCK)
}

impl Interleaved {
    /// Allocates the arrays of a segment that [`fits`], to be used once its [`lines`](Self::lines) are settled.
    pub fn reserve(segment: &Segment, format: QuantFormat) -> Result<Self, Shortage> {
        let (rows, cols) = (segment.rows, segment.cols);
        let blocks = rows * cols / BLOCK;
        let scales = if format.double_quant {
            LaneScales::Nested {
                codes: zeroed(blocks)?,
                absmax: zeroed(blocks.div_ceil(NESTED_BLOCKSIZE))?,
                map: zeroed(256)?,
                offset: 0.0,
            }
        } else {
            LaneScales::Plain(zeroed(blocks)?)
        };
        let code = *format.quant_type.codebook();
        let (levels, factor) = levels(&code);
        let panels = Panels::new(rows / LANES, cols / BLOCK, PANEL);
        let lines = Lines::reserve(rows * cols / 128)?;
        Ok(Self { rows, cols, levels, factor, code, panels, lines, scales })
    }

    /// Its memory, to be settled.
    pub fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// Bytes of its arrays, as allocated.
    pub fn bytes(&self) -> u64 {
        let scales = match &self.scales {
            LaneScales::Plain(values) => size_of_val(values.as_slice()),
            LaneScales::Nested { codes, absmax, map, .. } => {
                codes.len() + size_of_val(absmax.as_slice()) + size_of_val(map.as_slice())
            }
        };
        (self.lines.bytes() + scales) as u64
    }

    /// Blocks of a row.
    fn blocks(&self) -> usize {
        self.cols / BLOCK
    }

    /// How its columns are held.
    pub fn panels(&self) -> &Panels {
        &self.panels
    }

    /// The lines of a group's blocks in a panel.
    pub fn lines_of(&self, panel: usize, group: usize) -> &[[Line; LINES]] {
        &self.lines.as_chunks().0[self.panels.part(panel, group)]
    }

    /// Their scales.
    pub fn scales_of(&self, panel: usize, group: usize) -> GroupScales<'_> {
        let part = self.panels.part(panel, group);
        match &self.scales {
            LaneScales::Plain(values) => GroupScales::Plain(&values.as_chunks().0[part]),
            LaneScales::Nested { codes, absmax, map, offset } => GroupScales::Nested {
                codes: &codes[part.start * LANES..part.end * LANES],
                map: map.first_chunk().unwrap_or(&[0.0; 256]),
                offset: *offset,
                absmax,
                first: group * LANES * self.blocks() + self.panels.blocks(panel).start,
                blocks: self.blocks(),
            },
        }
    }

    /// The values of the codes of nested scales, and what is added to all of them; zeros where scales are plain.
    pub fn nested(&self) -> (&[f32; 256], f32) {
        let LaneScales::Nested { map, offset, .. } = &self.scales else { return (&[0.0; 256], 0.0) };
        (map.first_chunk().unwrap_or(&[0.0; 256]), *offset)
    }

    /// Takes the canonical form in.
    pub fn fill(&mut self, tensor: &str, from: &Quantized) -> Result<(), Fault> {
        let (rows, cols, panels) = (self.rows, self.cols, self.panels);
        // Checks every length, and the block size.
        Codes::check(tensor, from, rows * cols, BLOCK)?;
        self.code = from.code;
        (self.levels, self.factor) = levels(&from.code);
        for panel in 0..panels.count() {
            let (all, columns) = (panels.all(panel), panels.blocks(panel));
            let lines = &mut self.lines[all.start * LINES..all.end * LINES];
            each(lines.chunks_mut((columns.len() * LINES).max(1)).enumerate(), |(group, lines)| {
                for lane in 0..LANES {
                    let row = &from.packed[(group * LANES + lane) * cols / 2..][..cols / 2];
                    let row = &row[columns.start * BLOCK / 2..columns.end * BLOCK / 2];
                    for (line, bytes) in lines.iter_mut().zip(row.as_chunks::<4>().0) {
                        line.0[4 * lane..4 * lane + 4].copy_from_slice(&eight(*bytes));
                    }
                }
            });
        }
        let factor = 1.0 / self.factor;
        match (&mut self.scales, &from.absmax) {
            (LaneScales::Plain(values), Absmax::Plain(source)) => {
                for (number, value) in source.iter().enumerate() {
                    values[held(number, &panels, plain_place)] = value * factor;
                }
            }
            (
                LaneScales::Nested { codes, absmax, map, offset },
                Absmax::Nested { codes: from_codes, absmax: from_absmax, offset: from_offset, code, .. },
            ) => {
                for (number, &code) in from_codes.iter().enumerate() {
                    codes[held(number, &panels, place)] = code;
                }
                copy(tensor, "scales of scales", absmax, from_absmax)?;
                map.iter_mut().zip(code.iter()).for_each(|(value, source)| *value = source * factor);
                *offset = *from_offset * factor;
            }
            _ => return Err(Fault::Source(format!("{tensor} came with another kind of scales"))),
        }
        Ok(())
    }

    /// The values of the codes.
    pub fn codebook(&self) -> [f32; 16] {
        self.code
    }

    /// Codes and scales in the canonical order: what [`fill`](Self::fill) took in, but for the last bit of scales.
    pub fn canonical(&self) -> (Vec<u8>, Absmax) {
        let (cols, panels) = (self.cols, self.panels);
        let mut packed = vec![0; self.rows * cols / 2];
        each(packed.chunks_mut((cols / 2).max(1)).enumerate(), |(row, bytes)| {
            let (group, lane) = (row / LANES, row % LANES);
            let lines = (0..panels.count()).flat_map(|panel| self.lines_of(panel, group).as_flattened());
            for (line, bytes) in lines.zip(bytes.as_chunks_mut::<4>().0) {
                let of = &line.0[4 * lane..4 * lane + 4];
                *bytes = packed_again([of[0], of[1], of[2], of[3]]);
            }
        });
        let count = self.rows * self.blocks();
        let absmax = match &self.scales {
            LaneScales::Plain(values) => Absmax::Plain(
                (0..count).map(|number| values[held(number, &panels, plain_place)] * self.factor).collect(),
            ),
            LaneScales::Nested { codes, absmax, map, offset } => Absmax::Nested {
                codes: (0..count).map(|number| codes[held(number, &panels, place)]).collect(),
                absmax: absmax.clone(),
                offset: offset * self.factor,
                code: map_of(&map.iter().map(|value| value * self.factor).collect::<Vec<_>>()),
                blocksize: NESTED_BLOCKSIZE,
            },
        };
        (packed, absmax)
    }

    /// Weight `index` of the flattened segment.
    pub fn element(&self, index: usize) -> f32 {
        let (row, col) = (index / self.cols, index % self.cols);
        let (group, lane, block) = (row / LANES, row % LANES, col / BLOCK);
        let byte = self.lines[self.panels.at(group, block) * LINES + col % BLOCK / 8].0[4 * lane + col % 4];
        let nibble = if col % 8 < 4 { byte & 15 } else { byte >> 4 };
        let panel = self.panels.of(block);
        let scale = self.scales_of(panel, group).get(block - self.panels.blocks(panel).start, lane);
        self.code[usize::from(nibble)] * scale * self.factor
    }
}

/// Where the scale of canonical block `number` lies among all; `place` says where among those of its panel and group.
fn held(number: usize, panels: &Panels, place: impl Fn(usize, usize, usize) -> usize) -> usize {
    let (row, block) = panels.row_and_block(number);
    let (panel, group) = (panels.of(block), row / LANES);
    let blocks = panels.blocks(panel);
    panels.part(panel, group).start * LANES + place(block - blocks.start, row % LANES, blocks.len())
}

/// Where the plain scale of a block of a row lies among those of its panel and group.
fn plain_place(block: usize, lane: usize, _: usize) -> usize {
    block * LANES + lane
}

/// Where the code of the nested scale of a block of a row lies among those of its panel and group, `blocks` a row: whole
/// fours in their own order, the up to three blocks after them as plain ones.
fn place(block: usize, lane: usize, blocks: usize) -> usize {
    let whole = blocks / FOUR * FOUR;
    if block < whole {
        block / FOUR * FOUR * LANES + place_in_four(block % FOUR, lane)
    } else {
        plain_place(block, lane, blocks)
    }
}

/// The scales of the sixteen rows of a group in one panel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GroupScales<'a> {
    /// `[blocks]`
    Plain(&'a [[f32; LANES]]),
    /// See [`Scales::Nested`](crate::matrix::Scales::Nested).
    Nested {
        /// `[blocks * LANES]`: fours of blocks in the order of [`place_in_four`], then those that are left over.
        codes: &'a [u8],
        /// Values of the codes.
        map: &'a [f32; 256],
        /// Added to all of them.
        offset: f32,
        /// Of the whole segment.
        absmax: &'a [f32],
        /// The canonical number of the first block of the first row.
        first: usize,
        /// Blocks of a row.
        blocks: usize,
    },
}

/// The scales of scales of the blocks of a panel of sixteen rows: fewer than [`NESTED_BLOCKSIZE`] a row, which has two at
/// most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nested {
    /// Of each row, before `change`.
    pub before: [f32; LANES],
    /// From `change` on.
    pub after: [f32; LANES],
    /// The block of the panel from which on `after` holds: a whole number.
    pub change: [f32; LANES],
}

impl GroupScales<'_> {
    /// The scales of the scales; ones for plain scales.
    #[inline(always)]
    pub fn nested(&self) -> Nested {
        let mut nested = Nested { before: [1.0; LANES], after: [1.0; LANES], change: [0.0; LANES] };
        let GroupScales::Nested { absmax, first, blocks, .. } = self else { return nested };
        for lane in 0..LANES {
            let begin = first + lane * blocks;
            let number = begin / NESTED_BLOCKSIZE;
            let before = absmax.get(number).copied().unwrap_or(1.0);
            nested.before[lane] = before;
            nested.after[lane] = absmax.get(number + 1).copied().unwrap_or(before);
            nested.change[lane] = (NESTED_BLOCKSIZE - begin % NESTED_BLOCKSIZE) as f32;
        }
        nested
    }

    /// The scale of `block` of the panel of row `lane`.
    pub fn get(&self, block: usize, lane: usize) -> f32 {
        match self {
            GroupScales::Plain(values) => values[block][lane],
            GroupScales::Nested { codes, map, offset, .. } => {
                let code = codes[place(block, lane, codes.len() / LANES)];
                let nested = self.nested();
                let after = nested.change[lane] <= block as f32;
                let nested = if after { nested.after } else { nested.before };
                map[usize::from(code)] * nested[lane] + offset
            }
        }
    }
}

/// The bytes of one row in a line, from the four packed bytes of its eight columns, whose even columns are the high
/// nibbles.
#[inline(always)]
fn eight([a, b, c, d]: [u8; 4]) -> [u8; 4] {
    [a >> 4 | c & 0xf0, a & 15 | c << 4, b >> 4 | d & 0xf0, b & 15 | d << 4]
}

/// The way back of [`eight`].
#[inline(always)]
fn packed_again([e, f, g, h]: [u8; 4]) -> [u8; 4] {
    [e << 4 | f & 15, g << 4 | h & 15, e & 0xf0 | f >> 4, g & 0xf0 | h >> 4]
}

/// A codebook as bytes, and the factor between them: the one up to 127 whose rounding errs least.
///
/// For NF4 that is 112, and the root mean square of the error 0.0017, where 127 gives 0.0022.
pub(crate) fn levels(code: &[f32; 16]) -> ([i8; 16], f32) {
    let largest = code.iter().fold(f32::MIN_POSITIVE, |max, value| max.max(value.abs()));
    let error = |factor: f32| {
        let square = |&value: &f32| ((value * factor).round() / factor - value).powi(2);
        code.iter().map(square).sum::<f32>()
    };
    let best = (0..=1500).map(|step| (127.0 - 0.02 * step as f32) / largest).fold(
        (127.0 / largest, f32::INFINITY),
        |best, factor| {
            let error = error(factor);
            if error < best.1 { (factor, error) } else { best }
        },
    );
    (code.map(|value| (value * best.0).round() as i8), best.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::random::Stream;
    use halfbyte_quant::{QuantSpec, QuantType, Source, quantize};

    #[test]
    fn weights_are_found_where_they_were() {
        let mut stream = Stream::new(3);
        // 18 blocks a row: scales of scales change within a group, and two blocks are left over. 260: within a row.
        for (rows, cols) in [(16, 64), (48, 1152), (32, 128), (16, 260 * 64)] {
            let values: Vec<f32> = (0..rows * cols).map(|_| stream.normal()).collect();
            for (quant_type, double_quant) in
                [(QuantType::Nf4, true), (QuantType::Nf4, false), (QuantType::Fp4, true)]
            {
                let spec = QuantSpec { quant_type, blocksize: BLOCK, double_quant };
                let segment = Segment {
                    tensor: "w".into(),
                    rows,
                    cols,
                    format: Format::Quant(spec.into()),
                    bias: None,
                    transposed: false,
                };
                assert!(fits(&segment));
                let from = quantize(Source::F32(&values), spec).unwrap();
                let mut held = Interleaved::reserve(&segment, spec.into()).unwrap();
                held.lines().settle();
                held.fill("w", &from).unwrap();
                assert_eq!(
                    held.bytes(),
                    halfbyte_quant::bytes_for(values.len(), spec) + if double_quant { 1024 } else { 0 }
                );
                let wanted = from.dequantize();
                for (index, wanted) in wanted.iter().enumerate() {
                    let found = held.element(index);
                    assert!(
                        (found - wanted).abs() <= 1e-6 * wanted.abs().max(1e-3),
                        "{index}: {found} {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn bytes_are_close_to_the_codebooks() {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            let code = quant_type.codebook();
            let (bytes, factor) = levels(code);
            assert!(bytes.iter().all(|byte| byte.unsigned_abs() <= 127));
            let worst = code
                .iter()
                .zip(bytes)
                .map(|(value, byte)| (f32::from(byte) / factor - value).abs())
                .fold(0.0, f32::max);
            println!("{quant_type}: {factor} {worst}");
            assert!(worst < 0.004, "{quant_type}: {worst}");
        }
    }
}
