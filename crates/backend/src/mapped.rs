//! Weights that are read where they lie: in their file, or in memory that is shared.

use crate::DType;
use std::fmt::Debug;
use std::sync::Arc;

/// Bytes of a mapped file, or of memory, there for as long as anyone holds them.
///
/// [`will_need`](Self::will_need) and [`done_with`](Self::done_with) are advice: nothing depends on it but
/// speed, and a system that cannot take it ignores it.
pub trait MappedBytes: Debug + Send + Sync {
    /// The bytes. Touching them may wait for the disk.
    fn bytes(&self) -> &[u8];

    /// They are read soon: starts reading them from the disk. May take as long as the system takes to queue that.
    fn will_need(&self) {}

    /// They are not read soon: their pages may be given to whoever needs memory.
    fn done_with(&self) {}
}

impl MappedBytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A [`Segment`](crate::Segment) where it lies.
#[derive(Debug, Clone)]
pub enum Mapped {
    /// `[rows, cols]`, row-major, little-endian, not necessarily aligned.
    Dense {
        /// Element type.
        dtype: DType,
        /// `rows * cols * dtype.size()` bytes.
        bytes: Arc<dyn MappedBytes>,
    },
    /// bitsandbytes' packed codes and quant state over the flattened `[rows, cols]`.
    Quantized(MappedQuantized),
}

/// A 4-bit segment where it lies.
#[derive(Debug, Clone)]
pub struct MappedQuantized {
    /// Weights that share a scale.
    pub blocksize: usize,
    /// The value of each code.
    pub code: [f32; 16],
    /// Two codes a byte, the even element in the high nibble.
    pub packed: Arc<dyn MappedBytes>,
    /// The scale of each block.
    pub scales: MappedScales,
}

/// Scales where they lie, as far as they are large.
#[derive(Debug, Clone)]
pub enum MappedScales {
    /// `[blocks]` f32, little-endian, not necessarily aligned.
    Plain(Arc<dyn MappedBytes>),
    /// `map[codes[i]] * absmax[i / blocksize] + offset`: only the codes are large.
    Nested {
        /// `[blocks]`
        codes: Arc<dyn MappedBytes>,
        /// `[blocks.div_ceil(blocksize)]`
        absmax: Vec<f32>,
        /// Values of the 8-bit codes.
        map: Box<[f32; 256]>,
        /// The mean of the scales.
        offset: f32,
        /// Scales that share a second scale.
        blocksize: usize,
    },
}
