//! The scales of a quantized tensor, plain or double-quantized.

/// The largest magnitude of each block, which its codes are multiples of.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// One `f32` a block, `[blocks]`.
    Plain(Vec<f32>),
    /// Double quantization: each scale is `code[codes[i]] * absmax[i / blocksize] + offset`, a
    /// product and a sum rounded separately in single precision.
    Nested {
        /// 8-bit codes, `[blocks]`.
        codes: Vec<u8>,
        /// Largest distance from the offset in each 8-bit block, `[blocks.div_ceil(blocksize)]`.
        absmax: Vec<f32>,
        /// The mean of the scales, subtracted before they were quantized.
        offset: f32,
        /// Values of the 8-bit codes, usually [`DYNAMIC_MAP`](crate::DYNAMIC_MAP).
        code: Box<[f32; 256]>,
        /// Scales of one 8-bit block, usually [`NESTED_BLOCKSIZE`](crate::NESTED_BLOCKSIZE).
        blocksize: usize,
    },
}

impl Absmax {
    /// Number of scales, that is, of blocks.
    pub fn len(&self) -> usize {
        match self {
            Absmax::Plain(values) => values.len(),
            Absmax::Nested { codes, .. } => codes.len(),
        }
    }

    /// Whether there are no scales.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale of one block.
    ///
    /// # Panics
    /// If `block` is out of range, or the arrays disagree where
    /// [`Quantized::check`](crate::Quantized::check) would have said so.
    #[inline]
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Absmax::Plain(values) => values[block],
            Absmax::Nested { codes, absmax, offset, code, blocksize } => {
                code[usize::from(codes[block])] * absmax[block / blocksize] + offset
            }
        }
    }

    /// All scales in single precision, `[blocks]`.
    pub fn expand(&self) -> Vec<f32> {
        match self {
            Absmax::Plain(values) => values.clone(),
            Absmax::Nested { codes, .. } => (0..codes.len()).map(|i| self.get(i)).collect(),
        }
    }

    /// Bytes of the arrays that grow with the tensor.
    pub fn bytes(&self) -> u64 {
        match self {
            Absmax::Plain(values) => size_of_val(values.as_slice()) as u64,
            Absmax::Nested { codes, absmax, .. } => (codes.len() + size_of_val(absmax.as_slice())) as u64,
        }
    }
}
