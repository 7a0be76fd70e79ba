//! How a linear layer lies in device memory: three buffers, from shapes alone.

use crate::kernels::GROUP;
use crate::kernels::variant::Elements;
use halfbyte_backend::{Arrangement, DType, Fault, Format, LinearShape};

/// Buffers are multiples of this: what CUDA aligns allocations to.
const ALIGNMENT: u64 = 512;

/// Scales that share an 8-bit block in double quantization.
pub(crate) const NESTED_BLOCK: usize = halfbyte_quant::NESTED_BLOCKSIZE;

/// Rounds a buffer's size up as the allocator does.
pub(crate) fn aligned(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

/// The place of a layer's rows, scales and bias in its buffers.
///
/// - codes `[rows, groups, quads]` of 16 bytes: rows in layer order, columns padded to 32. In each u32 of
///   4-bit codes the low nibbles of bytes 0..4 are elements 0..4, the high nibbles elements 4..8.
/// - scales `[rows]` u32, the first element of each row in the order of absmax, and absmax: canonical, each
///   segment padded to whole 8-bit blocks (256 scales).
/// - state f32: codebook `[16]`; nested: map `[256]` and a pair (absmax, offset) for each 8-bit block; then
///   bias `[rows]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WeightLayout {
    pub rows: usize,
    pub cols: usize,
    pub elements: Elements,
    /// First block of each segment, and behind the last one the number of all blocks.
    pub segment_blocks: Vec<usize>,
    pub blocksize: usize,
    pub nested: bool,
    /// f32s of the state before the bias.
    pub bias_at: usize,
    pub bias: bool,
}

/// Rows of one segment that follow each other with a constant step in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub segment: usize,
    /// First row in the segment.
    pub from: usize,
    pub count: usize,
    /// First row in the layer.
    pub at: usize,
    pub step: usize,
}

impl WeightLayout {
    /// The layout of `shape` on `device`.
    pub(crate) fn of(device: &str, shape: &LinearShape) -> Result<Self, Fault> {
        shape.check()?;
        let (rows, cols) = (shape.rows(), shape.cols());
        let mut segment_blocks = vec![0];
        let (elements, blocksize, nested) = match shape.format() {
            Format::Dense(DType::F32) => (Elements::F32, 1, false),
            Format::Dense(DType::F16) => (Elements::F16, 1, false),
            Format::Dense(DType::Bf16) => (Elements::Bf16, 1, false),
            Format::Quant(format) => {
                if !format.blocksize.is_power_of_two() || format.blocksize < GROUP {
                    return Err(unsupported(device, format!("4-bit blocks of {}", format.blocksize)));
                }
                for segment in &shape.segments {
                    let blocks = (segment.rows * segment.cols).div_ceil(format.blocksize);
                    let last = segment_blocks.last().copied().unwrap_or(0);
                    segment_blocks.push(last + blocks.next_multiple_of(NESTED_BLOCK));
                }
                let elements = Elements::Codes { nested: format.double_quant, aligned: cols % GROUP == 0 };
                (elements, format.blocksize, format.double_quant)
            }
        };
        let blocks = segment_blocks.last().copied().unwrap_or(0);
        let bias_at = match (elements, nested) {
            (Elements::Codes { .. }, true) => 16 + 256 + blocks / NESTED_BLOCK * 2,
            (Elements::Codes { .. }, false) => 16,
            _ => 0,
        };
        let layout =
            Self { rows, cols, elements, segment_blocks, blocksize, nested, bias_at, bias: shape.has_bias() };
        let units = rows as u64 * layout.row_quads() as u64;
        if units.max(blocks as u64 * blocksize as u64) > u64::from(u32::MAX) {
            let name = &shape.segments[0].tensor;
            return Err(unsupported(device, format!("{name}: {rows} x {cols} is beyond 32-bit indices")));
        }
        Ok(layout)
    }

    /// Groups of 32 columns.
    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// 16-byte loads of one row.
    pub(crate) fn row_quads(&self) -> usize {
        self.groups() * self.elements.quads()
    }

    /// Blocks of all segments, padded.
    pub(crate) fn blocks(&self) -> usize {
        self.segment_blocks.last().copied().unwrap_or(0)
    }

    /// Bytes of the codes.
    pub(crate) fn codes_bytes(&self) -> u64 {
        aligned(self.rows as u64 * self.row_quads() as u64 * 16)
    }

    /// Bytes of the scales. A dense layer keeps an empty buffer, since kernels cannot bind none.
    pub(crate) fn scales_bytes(&self) -> u64 {
        let Elements::Codes { .. } = self.elements else { return aligned(0) };
        let absmax = if self.nested { self.blocks() } else { self.blocks() * 4 };
        aligned(self.rows as u64 * 4 + absmax as u64)
    }

    /// Bytes of the state.
    pub(crate) fn state_bytes(&self) -> u64 {
        let bias = if self.bias { self.rows } else { 0 };
        aligned((self.bias_at + bias) as u64 * 4)
    }

    /// Bytes of the three buffers.
    pub(crate) fn bytes(&self) -> u64 {
        self.codes_bytes() + self.scales_bytes() + self.state_bytes()
    }
}

/// The runs of rows of `shape`, segment by segment.
pub(crate) fn runs(shape: &LinearShape) -> Vec<Run> {
    let mut runs = Vec::new();
    match (shape.arrangement, shape.segments.as_slice()) {
        (Arrangement::Interleaved, [one]) => {
            let count = one.rows / 2;
            runs.push(Run { segment: 0, from: 0, count, at: 0, step: 2 });
            runs.push(Run { segment: 0, from: count, count, at: 1, step: 2 });
        }
        (Arrangement::Interleaved, segments) => {
            for (index, segment) in segments.iter().enumerate() {
                runs.push(Run { segment: index, from: 0, count: segment.rows, at: index, step: 2 });
            }
        }
        (Arrangement::Stacked, segments) => {
            let mut at = 0;
            for (index, segment) in segments.iter().enumerate() {
                runs.push(Run { segment: index, from: 0, count: segment.rows, at, step: 1 });
                at += segment.rows;
            }
        }
    }
    runs
}

/// [`Fault::Unsupported`] on `device`.
pub(crate) fn unsupported(device: &str, what: impl Into<String>) -> Fault {
    Fault::Unsupported { device: device.to_owned(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::{QuantFormat, Segment};
    use halfbyte_quant::{QuantSpec, bytes_for};

    fn segment(rows: usize, cols: usize) -> Segment {
        Segment {
            tensor: format!("{rows}x{cols}"),
            rows,
            cols,
            format: Format::Quant(QuantFormat::from(QuantSpec::default())),
            bias: None,
            transposed: false,
        }
    }

    #[test]
    fn runs_agree_with_source_row() {
        let stacked = |segments| LinearShape::new(segments, Arrangement::Stacked);
        let interleaved = |segments| LinearShape::new(segments, Arrangement::Interleaved);
        for shape in [
            stacked(vec![segment(5, 64), segment(3, 64), segment(3, 64)]),
            interleaved(vec![segment(7, 64), segment(7, 64)]),
            interleaved(vec![segment(14, 64)]),
        ] {
            let mut seen = vec![false; shape.rows()];
            for run in runs(&shape) {
                for i in 0..run.count {
                    let row = run.at + i * run.step;
                    assert_eq!(shape.source_row(row), (run.segment, run.from + i));
                    assert!(!std::mem::replace(&mut seen[row], true), "row {row} comes twice");
                }
            }
            assert!(seen.into_iter().all(|seen| seen));
        }
    }

    #[test]
    fn a_large_layer_costs_four_and_an_eighth_bits() {
        let shape = LinearShape::single(segment(4096, 4096));
        let bytes = WeightLayout::of("cuda:0", &shape).unwrap().bytes();
        let canonical = bytes_for(4096 * 4096, QuantSpec::default());
        // Row starts (16 KiB), offsets beside each nested absmax, tables, padding.
        assert!(bytes >= canonical && bytes - canonical < 32 << 10, "{bytes} for {canonical}");
    }

    #[test]
    fn indices_beyond_32_bits_are_refused() {
        let shape = LinearShape::single(segment(1 << 20, 1 << 13));
        assert!(matches!(WeightLayout::of("cuda:0", &shape), Err(Fault::Unsupported { .. })));
    }
}
