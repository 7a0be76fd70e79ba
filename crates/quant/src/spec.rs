//! How a tensor is to be quantized, and how many bytes that makes.

use crate::{QuantError, QuantType};

/// Entries of an 8-bit block in double quantization. bitsandbytes knows no other.
pub const NESTED_BLOCKSIZE: usize = 256;

/// How a tensor is quantized. The default is NF4 in blocks of 64 with double quantization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantSpec {
    /// The codebook.
    pub quant_type: QuantType,
    /// Elements that share a scale: a power of two from 32 to 4096.
    pub blocksize: usize,
    /// Whether the scales are themselves quantized to 8 bits.
    pub double_quant: bool,
}

impl Default for QuantSpec {
    fn default() -> Self {
        QuantSpec { quant_type: QuantType::Nf4, blocksize: 64, double_quant: true }
    }
}

impl QuantSpec {
    /// Checks the block size.
    ///
    /// # Errors
    /// [`QuantError::Blocksize`] unless it is a power of two from 32 to 4096.
    pub fn validate(&self) -> Result<(), QuantError> {
        if self.blocksize.is_power_of_two() && (32..=4096).contains(&self.blocksize) {
            Ok(())
        } else {
            Err(QuantError::Blocksize(self.blocksize))
        }
    }
}

/// Bytes of a tensor of `len` elements quantized by `spec`: the codes and their scales, that is,
/// everything that grows with the tensor. The codebooks (64 bytes, and 1 KiB with double
/// quantization) and the offset are the same for every tensor or fit in a kernel's parameters and
/// are not counted. Equals [`Quantized::bytes`](crate::Quantized::bytes) of the result.
///
/// ```
/// use halfbyte_quant::{QuantSpec, bytes_for};
/// // 4.127 bits a weight with double quantization, 4.5 without.
/// let spec = QuantSpec::default();
/// assert_eq!(bytes_for(4096 * 4096, spec), 8_388_608 + 262_144 + 4 * 1024);
/// let plain = QuantSpec { double_quant: false, ..spec };
/// assert_eq!(bytes_for(4096 * 4096, plain), 8_388_608 + 4 * 262_144);
/// ```
pub fn bytes_for(len: usize, spec: QuantSpec) -> u64 {
    let len = len as u64;
    let blocks = len.div_ceil(spec.blocksize.max(1) as u64);
    let scales =
        if spec.double_quant { blocks + 4 * blocks.div_ceil(NESTED_BLOCKSIZE as u64) } else { 4 * blocks };
    len.div_ceil(2) + scales
}
