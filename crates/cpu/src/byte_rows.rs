//! A dense output head as the fast arithmetic reads it: a byte a weight, sixteen rows side by side.
//!
//! A head is the one matrix that bitsandbytes leaves in 16 bits, and a token reads all of it: beside 4-bit layers, a
//! fifth of what TinyLlama-1.1B reads, and half of what a small model with a vocabulary of 128 thousand does. Here
//! each block of 64 columns of a row has a scale, the largest magnitude over 127, in bf16, whose range is that of all
//! weights: 8.25 bits a weight. The scale is rounded up, and then bytes to its multiples, so that its few bits cost
//! no more than a step that is up to 1 % wider.
//!
//! As in [`Interleaved`](crate::interleaved::Interleaved), a group of sixteen rows is one stream. A block of it is
//! sixteen [`Line`]s: byte `4 r + c` of line `j` holds row `r`'s column `4 j + c`. Before every two blocks lies a line
//! with their scales. Rows that the last group lacks are zeros. Long rows lie in [`Panels`].

use crate::buffer::{Shortage, zeroed};
use crate::lines::{BLOCK, LANES, Line, Lines};
use crate::matrix::element;
use crate::panels::Panels;
use half::bf16;
use halfbyte_backend::{DType, Fault, Format, Segment};

/// Blocks of a panel: as many bytes as one of `Interleaved` has.
const PANEL: usize = 16;

/// Lines of a block.
pub(crate) const LINES: usize = LANES * BLOCK / 64;

/// The weights of one segment, `[rows, cols]`.
#[derive(Debug)]
pub(crate) struct ByteRows {
    /// Output features.
    pub rows: usize,
    /// Input features: a multiple of [`BLOCK`].
    pub cols: usize,
    /// What it is filled from.
    pub dtype: DType,
    panels: Panels,
    /// Blocks and scales as `panels` has them, see [`Run`].
    lines: Lines,
    /// The scales of the last block of rows that have an odd number of them: `[groups]`.
    rest: Vec<Scales>,
}

/// The scales of one block of sixteen rows: little-endian bf16.
pub(crate) type Scales = [u8; 2 * LANES];

/// Blocks whose scales fill a line.
const TWO: usize = 2;

/// A group's blocks in one panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    /// For each two blocks a line of [`Scales`], then their own.
    pub twos: &'a [[Line; 1 + TWO * LINES]],
    /// The block after them, if there is one, and its scales.
    pub last: Option<(&'a [Line; LINES], &'a Scales)>,
}

/// How many lines hold some blocks of a group in a panel with their scales.
fn lines(blocks: usize) -> usize {
    blocks * LINES + blocks / TWO
}

/// Whether a segment can be held so.
pub(crate) fn fits(segment: &Segment) -> bool {
    matches!(segment.format, Format::Dense(_)) && segment.cols.is_multiple_of(BLOCK)
}

/// Bytes of a segment that [`fits`].
pub(crate) fn bytes(segment: &Segment) -> u64 {
    let blocks = (segment.rows.div_ceil(LANES) * (segment.cols / BLOCK)) as u64;
    blocks * (LINES * size_of::<Line>() + size_of::<Scales>()) as u64
}

impl ByteRows {
    /// Allocates the arrays of a segment that [`fits`], to be used once its [`lines`](Self::lines) are settled.
    pub fn reserve(segment: &Segment, dtype: DType) -> Result<Self, Shortage> {
        let (rows, cols) = (segment.rows, segment.cols);
        let panels = Panels::new(rows.div_ceil(LANES), cols / BLOCK, PANEL);
        let rest = zeroed(rows.div_ceil(LANES) * (cols / BLOCK % TWO))?;
        Ok(Self { rows, cols, dtype, panels, lines: Lines::reserve(panels.lines(lines))?, rest })
    }

    /// Its memory, to be settled.
    pub fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// Bytes of its arrays, as allocated.
    pub fn bytes(&self) -> u64 {
        (self.lines.bytes() + size_of_val(self.rest.as_slice())) as u64
    }

    /// How its columns are held.
    pub fn panels(&self) -> &Panels {
        &self.panels
    }

    /// A group's blocks and scales in a panel.
    pub fn run(&self, panel: usize, group: usize) -> Run<'_> {
        let (twos, last) = self.lines[self.panels.run(panel, group, lines)].as_chunks();
        Run { twos, last: last.first_chunk().zip(self.rest.get(group)) }
    }

    /// The lines from the first of `group` on.
    pub fn from(&self, group: usize) -> &[Line] {
        &self.lines[self.panels.run(0, group, lines).start..]
    }

    /// Takes the canonical bytes in, `[rows, cols]`.
    pub fn fill(&mut self, tensor: &str, from: &[u8]) -> Result<(), Fault> {
        let (rows, cols, dtype, panels) = (self.rows, self.cols, self.dtype, self.panels);
        let size = dtype.size() as usize;
        if from.len() != rows * cols * size {
            let wanted = rows * cols * size;
            return Err(Fault::Source(format!("{tensor} has {} bytes, not {wanted}", from.len())));
        }
        let row = |row: usize| &from[row * cols * size..][..cols * size];
        let lanes = |group: usize| (group * LANES..rows.min((group + 1) * LANES)).enumerate();
        panels.fill(&mut self.lines, lines, |panel, group, run| {
            let columns = panels.blocks(panel);
            let (twos, last) = run.as_chunks_mut::<{ 1 + TWO * LINES }>();
            let whole = columns.start + twos.len() * TWO;
            for ([scales, held @ ..], first) in twos.iter_mut().zip(columns.step_by(TWO)) {
                let scales = scales.0.as_chunks_mut::<{ 2 * LANES }>().0.iter_mut();
                for ((held, scales), block) in held.as_chunks_mut().0.iter_mut().zip(scales).zip(first..) {
                    for (lane, at) in lanes(group) {
                        put(dtype, row(at), block, lane, held, scales);
                    }
                }
            }
            for held in last.as_chunks_mut().0 {
                for (lane, at) in lanes(group) {
                    put(dtype, row(at), whole, lane, held, &mut [0; 2 * LANES]);
                }
            }
        });
        for (group, scales) in self.rest.iter_mut().enumerate() {
            for (lane, at) in lanes(group) {
                let mut unused = [Line::default(); LINES];
                put(dtype, row(at), cols / BLOCK - 1, lane, &mut unused, scales);
            }
        }
        Ok(())
    }

    /// Weight `index` of the flattened segment.
    pub fn element(&self, index: usize) -> f32 {
        let (row, col) = (index / self.cols, index % self.cols);
        let (lane, block) = (row % LANES, col / BLOCK);
        let panel = self.panels.of(block);
        let at = block - self.panels.blocks(panel).start;
        let run = self.run(panel, row / LANES);
        let (held, scales) = match (run.twos.get(at / TWO), run.last) {
            (Some([scales, held @ ..]), _) => {
                (&held.as_chunks().0[at % TWO], &scales.0.as_chunks().0[at % TWO])
            }
            (None, Some(last)) => last,
            (None, None) => return f32::NAN,
        };
        let byte = held[col % BLOCK / 4].0[4 * lane + col % 4] as i8;
        f32::from(byte) * bf16::from_le_bytes([scales[2 * lane], scales[2 * lane + 1]]).to_f32()
    }
}

/// Puts `block` of a row of dense weights into lane `lane` of its lines and scales.
fn put(dtype: DType, row: &[u8], block: usize, lane: usize, lines: &mut [Line; LINES], scales: &mut Scales) {
    let mut values = [0.0; BLOCK];
    for (col, value) in values.iter_mut().enumerate() {
        *value = element(dtype, row, block * BLOCK + col);
    }
    let (scale, bytes) = rounded(&values);
    scales[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_le_bytes());
    for (line, four) in lines.iter_mut().zip(bytes.as_chunks::<4>().0) {
        line.0[4 * lane..4 * lane + 4].copy_from_slice(&four.map(|byte| byte as u8));
    }
}

/// A block as bytes within ±127 times a scale. What is not finite makes a scale that is not, and so reaches results.
fn rounded(values: &[f32; BLOCK]) -> (bf16, [i8; BLOCK]) {
    // As bits, magnitudes order like whole numbers, those that are not finite above all others.
    let largest = values.iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff));
    let wanted = f32::from_bits(largest) / 127.0;
    if !wanted.is_finite() {
        return (bf16::NAN, [1; BLOCK]);
    }
    let below = bf16::from_bits((wanted.to_bits() >> 16) as u16);
    let scale = if below.to_f32() < wanted { bf16::from_bits(below.to_bits() + 1) } else { below };
    if largest == 0 {
        return (scale, [0; BLOCK]);
    }
    // Divided, not multiplied with the inverse, which the smallest scales do not have.
    (scale, values.map(|value| (value / scale.to_f32()).round_ties_even().clamp(-127.0, 127.0) as i8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::random::Stream;

    fn held(rows: usize, cols: usize, values: &[f32]) -> ByteRows {
        let format = Format::Dense(DType::F32);
        let segment = Segment { tensor: "w".into(), rows, cols, format, bias: None, transposed: false };
        assert!(fits(&segment));
        let mut held = ByteRows::reserve(&segment, DType::F32).unwrap();
        held.lines().settle();
        let bytes_of: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        held.fill("w", &bytes_of).unwrap();
        assert_eq!(held.bytes(), bytes(&segment));
        assert!(held.fill("w", &bytes_of[4..]).is_err());
        held
    }

    #[test]
    fn every_weight_is_within_half_a_step_of_what_it_was() {
        let mut stream = Stream::new(4);
        // A last group of one row, of fifteen, and of all; sizes from the smallest numbers to the largest.
        for (rows, cols) in [(1, 64), (33, 128), (31, 192), (48, 1152)] {
            for size in [1e-44, 1e-38, 1e-30, 0.02, 1.0, 1e30, 4e37] {
                let values: Vec<f32> = (0..rows * cols).map(|_| stream.normal() * size).collect();
                let held = held(rows, cols, &values);
                for (at, block) in values.chunks_exact(BLOCK).enumerate() {
                    let largest = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
                    // A scale in bf16 is up to 2^-7 larger, or by the smallest there is.
                    let step = f64::from(largest) / 127.0 * (1.0 + 1.0 / 128.0) + 1e-40;
                    for (i, &value) in block.iter().enumerate() {
                        let found = held.element(at * BLOCK + i);
                        let off = (f64::from(found) - f64::from(value)).abs();
                        assert!(off <= 0.5001 * step, "{rows}x{cols} {size:e} {at} {i}: {found:e} {value:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_shows() {
        let mut values = vec![0.0; 128];
        values[3] = 127.0;
        values[4] = -1.0;
        let exact = held(1, 128, &values);
        assert!((0..128).all(|index| exact.element(index) == values[index]));
        for bad in [f32::NAN, f32::INFINITY] {
            values[100] = bad;
            let held = held(1, 128, &values);
            assert!((64..128).all(|index| held.element(index).is_nan()));
            assert_eq!(held.element(3), 127.0);
        }
    }
}
