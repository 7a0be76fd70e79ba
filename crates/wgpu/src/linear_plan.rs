//! How a linear layer's bytes lie on the device.

use crate::layout::{Bounds, stride};
use halfbyte_backend::{DType, Fault, Format, LinearShape};

/// A linear layer on the device: rows in layer order, columns padded to whole groups of 32, cut by rows
/// into shards that can be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinearPlan {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Groups of 32 columns in a row.
    pub(crate) groups: usize,
    /// Bytes of a row of a shard.
    pub(crate) row_bytes: u64,
    /// First row and rows of each shard; shards begin at multiples of 4.
    pub(crate) shards: Vec<(usize, usize)>,
    /// Scales of 4-bit layers.
    pub(crate) scales: Option<ScalePlan>,
    pub(crate) has_bias: bool,
    /// Where the biases start in the tables, in words.
    pub(crate) bias_at: usize,
    /// Words of the tables; 0: none.
    pub(crate) table_words: usize,
}

/// The scales of a 4-bit layer in the segments' canonical order. Each segment starts at a multiple of
/// 256 blocks, so that a block's nested scale is at `block >> 8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScalePlan {
    pub(crate) nested: bool,
    pub(crate) block_shift: u32,
    /// Whether blocks may begin within a group of 32 columns.
    pub(crate) ragged: bool,
    /// The block at which each segment starts.
    pub(crate) segment_blocks: Vec<usize>,
    /// Words of the plane of scales.
    pub(crate) words: usize,
    /// Where pairs (nested absmax, offset) start in the tables, in words.
    pub(crate) nested_at: usize,
}

/// Where row starts begin in the tables of 4-bit layers: after the codebook and the 8-bit map.
pub(crate) const ROW_AT: usize = 16 + 256;
/// Blocks that share a nested scale.
pub(crate) const NESTED: usize = 256;

impl LinearPlan {
    /// The plan for `shape`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if a few rows or all scales exceed what can be bound.
    pub(crate) fn new(shape: &LinearShape, bounds: &Bounds) -> Result<Self, Fault> {
        shape.check()?;
        let (rows, cols, format) = (shape.rows(), shape.cols(), shape.format());
        let padded = stride(cols);
        let row_bytes = match format {
            Format::Dense(dtype) => padded as u64 * dtype.size(),
            Format::Quant(_) => padded as u64 / 2,
        };
        let name = || shape.segments.first().map_or("", |segment| segment.tensor.as_str()).to_owned();
        let fit = bounds.shard / row_bytes;
        let per_shard = if fit >= 64 { fit / 64 * 64 } else { fit / 4 * 4 } as usize;
        if per_shard == 0 {
            return Err(bounds.unsupported(
                &format!("four rows of {} in one binding", name()),
                4 * row_bytes,
                bounds.shard,
            ));
        }
        let shards = (0..rows).step_by(per_shard).map(|row| (row, per_shard.min(rows - row))).collect();

        let mut plan = Self {
            format,
            rows,
            cols,
            groups: padded / 32,
            row_bytes,
            shards,
            scales: None,
            has_bias: shape.has_bias(),
            bias_at: 0,
            table_words: if shape.has_bias() { rows } else { 0 },
        };
        if let Format::Quant(quant) = format {
            if !quant.blocksize.is_power_of_two() || quant.blocksize < 32 {
                return Err(Fault::Unsupported {
                    device: bounds.device.clone(),
                    what: format!(
                        "{} has blocks of {}; quantize it in blocks of 64",
                        name(),
                        quant.blocksize
                    ),
                });
            }
            let mut blocks = 0;
            let mut segment_blocks = Vec::new();
            for segment in &shape.segments {
                segment_blocks.push(blocks);
                blocks += (segment.rows * segment.cols).div_ceil(quant.blocksize).next_multiple_of(NESTED);
            }
            if blocks as u64 * quant.blocksize as u64 > u64::from(u32::MAX) {
                return Err(Fault::Unsupported {
                    device: bounds.device.clone(),
                    what: format!("{} has more than 2^32 weights; give its tensors to several steps", name()),
                });
            }
            let words = if quant.double_quant { blocks / 4 } else { blocks };
            bounds.bindable(&format!("the scales of {}", name()), words as u64 * 4)?;
            plan.bias_at = ROW_AT + rows;
            // Pairs from an even word on, and nothing but pairs: they are loaded as such.
            let nested_at = (plan.bias_at + if plan.has_bias { rows } else { 0 }).next_multiple_of(2);
            plan.table_words = nested_at + if quant.double_quant { blocks / NESTED * 2 } else { 0 };
            plan.scales = Some(ScalePlan {
                nested: quant.double_quant,
                block_shift: quant.blocksize.trailing_zeros(),
                ragged: cols % 32 != 0,
                segment_blocks,
                words,
                nested_at,
            });
        }
        bounds.bindable(&format!("the tables of {}", name()), plan.table_words as u64 * 4)?;
        Ok(plan)
    }

    /// Bytes of every buffer: shards, then scales, then tables, as far as there are any.
    pub(crate) fn buffers(&self) -> Vec<(String, u64)> {
        let mut buffers: Vec<_> = self
            .shards
            .iter()
            .map(|&(first, rows)| match self.shards.len() {
                1 => (String::new(), rows as u64 * self.row_bytes),
                _ => (format!(" rows {first}.."), rows as u64 * self.row_bytes),
            })
            .collect();
        if let Some(scales) = &self.scales {
            buffers.push((" scales".into(), scales.words as u64 * 4));
        }
        if self.table_words > 0 {
            buffers.push((" tables".into(), self.table_words as u64 * 4));
        }
        buffers
    }

    /// A dense layer's element type as the shaders number it.
    pub(crate) fn dtype_code(&self) -> f64 {
        match self.format {
            Format::Dense(DType::F16) => 1.0,
            Format::Dense(DType::Bf16) => 2.0,
            Format::Dense(DType::F32) | Format::Quant(_) => 0.0,
        }
    }
}
