//! A quantized tensor and its way back.

use crate::dequantize;
use crate::{Absmax, Element, QuantError, QuantSpec, QuantType};
use half::{bf16, f16};

/// A flat tensor of `len` elements in 4 bits each.
///
/// The fields are public because checkpoints fill them and backends upload them. A value that
/// came from a file should pass [`Quantized::check`] before anything else is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Number of elements.
    pub len: usize,
    /// Elements that share a scale. Blocks run over the flat tensor and may cross its rows.
    pub blocksize: usize,
    /// The type, by name.
    pub quant_type: QuantType,
    /// The value of each code. Checkpoints store it, and what they store is used.
    pub code: [f32; 16],
    /// Two codes a byte, `[len.div_ceil(2)]`: element `2i` in the high nibble of byte `i`,
    /// element `2i + 1` in the low one.
    pub packed: Vec<u8>,
    /// The scales, `[len.div_ceil(blocksize)]`.
    pub absmax: Absmax,
}

impl Quantized {
    /// The specification that this tensor follows.
    pub fn spec(&self) -> QuantSpec {
        QuantSpec {
            quant_type: self.quant_type,
            blocksize: self.blocksize,
            double_quant: matches!(self.absmax, Absmax::Nested { .. }),
        }
    }

    /// Bytes of codes and scales, as [`bytes_for`](crate::bytes_for) counts them.
    pub fn bytes(&self) -> u64 {
        self.packed.len() as u64 + self.absmax.bytes()
    }

    /// Checks that the block size is valid and that every array has the length that the element
    /// count demands. What passes can be dequantized without a panic.
    ///
    /// # Errors
    /// [`QuantError::Blocksize`], [`QuantError::NestedBlocksize`] or [`QuantError::Length`].
    pub fn check(&self) -> Result<(), QuantError> {
        self.spec().validate()?;
        let length = |array, found, expected| {
            if found == expected {
                return Ok(());
            }
            Err(QuantError::Length { array, quant_type: self.quant_type, len: self.len, found, expected })
        };
        length("packed", self.packed.len(), self.len.div_ceil(2))?;
        let blocks = self.len.div_ceil(self.blocksize);
        match &self.absmax {
            Absmax::Plain(values) => length("absmax", values.len(), blocks),
            Absmax::Nested { codes, absmax, blocksize, .. } => {
                if *blocksize == 0 {
                    return Err(QuantError::NestedBlocksize);
                }
                length("absmax codes", codes.len(), blocks)?;
                length("nested absmax", absmax.len(), blocks.div_ceil(*blocksize))
            }
        }
    }

    /// One element: its code's value times its block's scale, in single precision.
    ///
    /// # Panics
    /// If `i` is not below `len`.
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        assert!(i < self.len, "element {i} of a tensor of {}", self.len);
        let nibble = self.packed[i / 2] >> (4 * (1 - i % 2)) & 15;
        self.code[usize::from(nibble)] * self.absmax.get(i / self.blocksize)
    }

    /// The whole tensor in single precision, `[len]`.
    pub fn dequantize(&self) -> Vec<f32> {
        self.dequantize_to()
    }

    /// The whole tensor in half precision, `[len]`: the single-precision product, rounded once.
    pub fn dequantize_f16(&self) -> Vec<f16> {
        self.dequantize_to()
    }

    /// The whole tensor in bfloat16, `[len]`: the single-precision product, rounded once.
    pub fn dequantize_bf16(&self) -> Vec<bf16> {
        self.dequantize_to()
    }

    /// The whole tensor in the element type of choice, `[len]`.
    pub fn dequantize_to<T: Element>(&self) -> Vec<T> {
        // Zeroed pages from the allocator are first touched by the threads that fill them.
        let mut out = bytemuck::zeroed_vec(self.len);
        dequantize::dequantize(self, &mut out);
        out
    }

    /// Elements `start .. start + out.len()` in single precision. Runs on the calling thread.
    ///
    /// # Panics
    /// If the range ends beyond `len`.
    pub fn dequantize_range(&self, start: usize, out: &mut [f32]) {
        self.dequantize_range_to(start, out);
    }

    /// Elements `start .. start + out.len()`, rounded once to the element type of `out`. Runs on
    /// the calling thread.
    ///
    /// # Panics
    /// If the range ends beyond `len`.
    pub fn dequantize_range_to<T: Element>(&self, start: usize, out: &mut [T]) {
        assert!(
            start <= self.len && out.len() <= self.len - start,
            "elements {start}..{start}+{} of a tensor of {}",
            out.len(),
            self.len
        );
        dequantize::dequantize_range(self, start, out);
    }
}
