//! Tensors to quantize, borrowed as they lie in memory.

use half::{bf16, f16};

use crate::QuantError;

/// The element type of a tensor to quantize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl SourceType {
    /// Bytes of one element.
    pub fn width(self) -> usize {
        match self {
            SourceType::F32 => 4,
            SourceType::F16 | SourceType::Bf16 => 2,
        }
    }
}

/// A flat, row-major tensor to quantize. Blocks run over the flat order and may cross rows.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Single precision, `[len]`.
    F32(&'a [f32]),
    /// Half precision, `[len]`.
    F16(&'a [f16]),
    /// bfloat16, `[len]`.
    Bf16(&'a [bf16]),
    /// Little-endian bytes of any alignment, `[len * dtype.width()]`; a trailing part of an
    /// element is ignored. [`Source::from_le_bytes`] checks for one and prefers the typed
    /// variants.
    Bytes {
        /// What the bytes hold.
        dtype: SourceType,
        /// The elements, little-endian.
        bytes: &'a [u8],
    },
}

impl<'a> Source<'a> {
    /// Borrows little-endian bytes, as they lie in a safetensors file. They need not be aligned;
    /// aligned ones are read in place.
    ///
    /// # Errors
    /// [`QuantError::PartialElement`] if the bytes are not a whole number of elements.
    pub fn from_le_bytes(dtype: SourceType, bytes: &'a [u8]) -> Result<Self, QuantError> {
        if !bytes.len().is_multiple_of(dtype.width()) {
            return Err(QuantError::PartialElement { bytes: bytes.len(), width: dtype.width() });
        }
        let unaligned = Source::Bytes { dtype, bytes };
        if cfg!(target_endian = "big") {
            return Ok(unaligned);
        }
        let typed = match dtype {
            SourceType::F32 => bytemuck::try_cast_slice(bytes).map(Source::F32),
            SourceType::F16 => bytemuck::try_cast_slice(bytes).map(Source::F16),
            SourceType::Bf16 => bytemuck::try_cast_slice(bytes).map(Source::Bf16),
        };
        Ok(typed.unwrap_or(unaligned))
    }

    /// The element type.
    pub fn dtype(&self) -> SourceType {
        match self {
            Source::F32(_) => SourceType::F32,
            Source::F16(_) => SourceType::F16,
            Source::Bf16(_) => SourceType::Bf16,
            Source::Bytes { dtype, .. } => *dtype,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Source::F32(values) => values.len(),
            Source::F16(values) => values.len(),
            Source::Bf16(values) => values.len(),
            Source::Bytes { dtype, bytes } => bytes.len() / dtype.width(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [f32]> for Source<'a> {
    fn from(values: &'a [f32]) -> Self {
        Source::F32(values)
    }
}

impl<'a> From<&'a [f16]> for Source<'a> {
    fn from(values: &'a [f16]) -> Self {
        Source::F16(values)
    }
}

impl<'a> From<&'a [bf16]> for Source<'a> {
    fn from(values: &'a [bf16]) -> Self {
        Source::Bf16(values)
    }
}
