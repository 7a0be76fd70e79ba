//! What can be wrong with a tensor or a specification.

use crate::QuantType;

/// Why a tensor cannot be quantized, or why quantized storage cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The block size is not one that bitsandbytes has.
    #[error("blocksize {0} is not supported: use a power of two from 32 to 4096 (usually 64)")]
    Blocksize(usize),
    /// The name of a quantization type is not known.
    #[error("unknown quantization type {0:?}: use \"nf4\" or \"fp4\"")]
    UnknownType(String),
    /// A byte buffer does not hold a whole number of elements.
    #[error(
        "{bytes} bytes are not a whole number of {width}-byte elements: the buffer is cut short or its dtype is wrong"
    )]
    PartialElement {
        /// Bytes in the buffer.
        bytes: usize,
        /// Bytes of one element.
        width: usize,
    },
    /// An array of a quantized tensor has not the length that its element count demands.
    #[error(
        "{array} of an {quant_type} tensor of {len} elements has {found} entries where {expected} are needed: the checkpoint is damaged or its shape is wrong"
    )]
    Length {
        /// The array: `packed`, `absmax`, `absmax codes` or `nested absmax`.
        array: &'static str,
        /// The type of the tensor.
        quant_type: QuantType,
        /// Elements of the tensor.
        len: usize,
        /// Entries that are there.
        found: usize,
        /// Entries that should be there.
        expected: usize,
    },
    /// The block size of the double-quantized scales is zero.
    #[error("the nested blocksize is 0: it must be positive (bitsandbytes always writes 256)")]
    NestedBlocksize,
}
