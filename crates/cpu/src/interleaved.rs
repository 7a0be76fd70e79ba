//! 4-bit weights as the fast arithmetic reads them: sixteen rows side by side.
//!
//! A group of sixteen rows is one stream: for each block of 64 columns eight [`Line`]s. Byte `4 r + c` of line `j`
//! holds row `r`'s column `8 j + c` in its low nibble and column `8 j + 4 + c` in the high one. So a line meets eight
//! activations, each product sums four of them for all rows at once, and nothing is summed across lanes. A block's
//! sixteen scales are in the stream, too, a line before what they scale: those of one block, or the codes of nested scales
//! of four, in the order that [`place_in_four`] says: so a thread reads one stream, in large pages. That was worth 3 % at
//! most (`benches/README.md`). Long rows lie in [`Panels`]. It takes exactly the bytes of the canonical form.

use crate::buffer::{Shortage, zeroed};
use crate::contents::map_of;
use crate::lines::{BLOCK, LANES, Line, Lines};
use crate::matrix::{Codes, copy};
use crate::nested::Nested;
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
    /// Blocks and scales as `panels` has them, see [`Run`].
    lines: Lines,
    scales: LaneScales,
}

/// The scales of blocks, over [`Interleaved::levels`]' factor, but for what lies among the lines.
#[derive(Debug)]
enum LaneScales {
    /// All are there.
    Plain,
    /// As [`Scales::Nested`](crate::matrix::Scales::Nested), but for the codes.
    Nested {
        /// Codes of the up to three last blocks of rows, which are no four: `[groups, blocks, LANES]`.
        rest: Vec<u8>,
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
        let panels = Panels::new(rows / LANES, cols / BLOCK, PANEL);
        let scales = if format.double_quant {
            LaneScales::Nested {
                rest: zeroed(rows * (cols / BLOCK % FOUR))?,
                absmax: zeroed(blocks.div_ceil(NESTED_BLOCKSIZE))?,
                map: zeroed(256)?,
                offset: 0.0,
            }
        } else {
            LaneScales::Plain
        };
        let code = *format.quant_type.codebook();
        let (levels, factor) = levels(&code);
        let lines = Lines::reserve(panels.lines(scales.lines()))?;
        Ok(Self { rows, cols, levels, factor, code, panels, lines, scales })
    }

    /// Its memory, to be settled.
    pub fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// Bytes of its arrays, as allocated.
    pub fn bytes(&self) -> u64 {
        let scales = match &self.scales {
            LaneScales::Plain => 0,
            LaneScales::Nested { rest, absmax, map, .. } => {
                rest.len() + size_of_val(absmax.as_slice()) + size_of_val(map.as_slice())
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

    /// A group's blocks and scales in a panel.
    pub fn run(&self, panel: usize, group: usize) -> Run<'_> {
        match &self.scales {
            LaneScales::Plain => {
                Run::Plain(self.lines[self.panels.run(panel, group, plain_lines)].as_chunks().0)
            }
            LaneScales::Nested { rest, .. } => {
                let lines = &self.lines[self.panels.run(panel, group, nested_lines)];
                let (fours, last) = lines.as_chunks();
                let last = last.as_chunks().0;
                let codes = rest.as_chunks().0;
                let codes = if last.is_empty() { &[] } else { &codes[group * last.len()..][..last.len()] };
                Run::Nested { fours, last, codes }
            }
        }
    }

    /// The scales of a group's scales in a panel; ones if they are plain.
    #[inline(always)]
    pub fn scales_of_scales(&self, panel: usize, group: usize) -> Nested<'_> {
        let absmax = if let LaneScales::Nested { absmax, .. } = &self.scales { absmax } else { &[][..] };
        let first = group * LANES * self.blocks() + self.panels.blocks(panel).start;
        Nested { absmax, first, blocks: self.blocks() }
    }

    /// The lines from the first of `group` on.
    pub fn from(&self, group: usize) -> &[Line] {
        &self.lines[self.panels.run(0, group, self.scales.lines()).start..]
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
        let factor = 1.0 / self.factor;
        let blocks = cols / BLOCK;
        match (&mut self.scales, &from.absmax) {
            (LaneScales::Plain, Absmax::Plain(values)) => {
                panels.fill(&mut self.lines, plain_lines, |panel, group, run| {
                    let columns = panels.blocks(panel);
                    let (run, _) = run.as_chunks_mut::<{ 1 + LINES }>();
                    for ([scales, lines @ ..], block) in run.iter_mut().zip(columns) {
                        for lane in 0..LANES {
                            let row = group * LANES + lane;
                            put_row(lines, lane, &from.packed[(row * blocks + block) * BLOCK / 2..]);
                            let scale = values[row * blocks + block] * factor;
                            scales.0[4 * lane..4 * lane + 4].copy_from_slice(&scale.to_le_bytes());
                        }
                    }
                });
            }
            (
                LaneScales::Nested { rest, absmax, map, offset },
                Absmax::Nested { codes, absmax: from_absmax, offset: from_offset, code, .. },
            ) => {
                panels.fill(&mut self.lines, nested_lines, |panel, group, run| {
                    let columns = panels.blocks(panel);
                    let rows = group * LANES..(group + 1) * LANES;
                    let (fours, last) = run.as_chunks_mut::<{ 1 + FOUR * LINES }>();
                    let whole = columns.start + fours.len() * FOUR;
                    for ([scales, lines @ ..], first) in fours.iter_mut().zip(columns.clone().step_by(FOUR)) {
                        for (block, lines) in lines.as_chunks_mut().0.iter_mut().enumerate() {
                            for (lane, row) in rows.clone().enumerate() {
                                let at = row * blocks + first + block;
                                put_row(lines, lane, &from.packed[at * BLOCK / 2..]);
                                scales.0[place_in_four(block, lane)] = codes[at];
                            }
                        }
                    }
                    for (lines, block) in last.as_chunks_mut().0.iter_mut().zip(whole..) {
                        for (lane, row) in rows.clone().enumerate() {
                            put_row(lines, lane, &from.packed[(row * blocks + block) * BLOCK / 2..]);
                        }
                    }
                });
                let (last, whole) = (blocks % FOUR, blocks / FOUR * FOUR);
                for (at, to) in rest.iter_mut().enumerate() {
                    let (group, block, lane) = (at / LANES / last, at / LANES % last, at % LANES);
                    *to = codes[(group * LANES + lane) * blocks + whole + block];
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
        let (cols, blocks) = (self.cols, self.blocks());
        let mut packed = vec![0; self.rows * cols / 2];
        each(packed.chunks_mut((cols / 2).max(1)).enumerate(), |(row, bytes)| {
            for (block, bytes) in bytes.chunks_exact_mut(BLOCK / 2).enumerate() {
                let lines = self.block(row, block).0;
                for (line, bytes) in lines.iter().zip(bytes.as_chunks_mut::<4>().0) {
                    let of = &line.0[4 * (row % LANES)..][..4];
                    *bytes = packed_again([of[0], of[1], of[2], of[3]]);
                }
            }
        });
        let each_scale = (0..self.rows * blocks).map(|number| self.block(number / blocks, number % blocks).1);
        let absmax = match &self.scales {
            LaneScales::Plain => Absmax::Plain(each_scale.map(|held| held.plain() * self.factor).collect()),
            LaneScales::Nested { absmax, map, offset, .. } => Absmax::Nested {
                codes: each_scale.map(HeldScale::code).collect(),
                absmax: absmax.clone(),
                offset: offset * self.factor,
                code: map_of(&map.iter().map(|value| value * self.factor).collect::<Vec<_>>()),
                blocksize: NESTED_BLOCKSIZE,
            },
        };
        (packed, absmax)
    }

    /// The lines of `block` of `row`, and what is held of its scale.
    fn block(&self, row: usize, block: usize) -> (&[Line; LINES], HeldScale) {
        let (group, lane, panel) = (row / LANES, row % LANES, self.panels.of(block));
        let at = block - self.panels.blocks(panel).start;
        match self.run(panel, group) {
            Run::Plain(run) => {
                let [scales, lines @ ..] = &run[at];
                let scale = &scales.0[4 * lane..][..4];
                (lines, HeldScale::Plain(f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]])))
            }
            Run::Nested { fours, last, codes } => {
                let (lines, code) = match fours.get(at / FOUR) {
                    Some([codes, lines @ ..]) => {
                        (&lines.as_chunks().0[at % FOUR], codes.0[place_in_four(at % FOUR, lane)])
                    }
                    None => (&last[at % FOUR], codes[at % FOUR][lane]),
                };
                (lines, HeldScale::Nested { code, of: self.scales_of_scales(panel, group).at(at, lane) })
            }
        }
    }

    /// Weight `index` of the flattened segment.
    pub fn element(&self, index: usize) -> f32 {
        let (row, col) = (index / self.cols, index % self.cols);
        let (lines, held) = self.block(row, col / BLOCK);
        let byte = lines[col % BLOCK / 8].0[4 * (row % LANES) + col % 4];
        let nibble = if col % 8 < 4 { byte & 15 } else { byte >> 4 };
        let scale = match (held, &self.scales) {
            (HeldScale::Nested { code, of }, LaneScales::Nested { map, offset, .. }) => {
                map[usize::from(code)] * of + offset
            }
            (held, _) => held.plain(),
        };
        self.code[usize::from(nibble)] * scale * self.factor
    }
}

impl LaneScales {
    /// How many lines hold some blocks of a group in a panel with their scales.
    fn lines(&self) -> fn(usize) -> usize {
        match self {
            LaneScales::Plain => plain_lines,
            LaneScales::Nested { .. } => nested_lines,
        }
    }
}

/// [`LaneScales::lines`] of plain scales.
#[inline(always)]
fn plain_lines(blocks: usize) -> usize {
    blocks * (1 + LINES)
}

/// [`LaneScales::lines`] of nested scales.
#[inline(always)]
fn nested_lines(blocks: usize) -> usize {
    blocks * LINES + blocks / FOUR
}

/// Puts the packed bytes of one block of one row into its lines.
#[inline(always)]
fn put_row(lines: &mut [Line; LINES], lane: usize, packed: &[u8]) {
    for (line, bytes) in lines.iter_mut().zip(packed.as_chunks::<4>().0) {
        line.0[4 * lane..4 * lane + 4].copy_from_slice(&eight(*bytes));
    }
}

/// What is held of one scale.
#[derive(Debug, Clone, Copy)]
enum HeldScale {
    Plain(f32),
    Nested {
        code: u8,
        /// The scale of the scale.
        of: f32,
    },
}

impl HeldScale {
    /// The plain one; zero for others.
    fn plain(self) -> f32 {
        if let Self::Plain(scale) = self { scale } else { 0.0 }
    }

    /// The code of a nested one; zero for others.
    fn code(self) -> u8 {
        if let Self::Nested { code, .. } = self { code } else { 0 }
    }
}

/// A group's blocks in one panel, each behind its scales.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Run<'a> {
    /// For each block a line of f32, then its own.
    Plain(&'a [[Line; 1 + LINES]]),
    /// See [`Scales::Nested`](crate::matrix::Scales::Nested).
    Nested {
        /// For each four blocks a line of codes in the order of [`place_in_four`], then their own.
        fours: &'a [[Line; 1 + FOUR * LINES]],
        /// The up to three blocks after them.
        last: &'a [[Line; LINES]],
        /// Their codes.
        codes: &'a [[u8; LANES]],
    },
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
