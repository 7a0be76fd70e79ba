//! Matrices as they are held: the canonical bytes of each segment, untouched.

use crate::buffer::{Shortage, zeroed};
use crate::byte_rows::{self, ByteRows};
use crate::interleaved::{self, Interleaved};
use crate::lines::Lines;
use crate::store::{Store, float};
use half::{bf16, f16};
use halfbyte_backend::{Canonical, DType, Fault, Format, LinearShape, QuantFormat, Segment};
use halfbyte_quant::{Absmax, NESTED_BLOCKSIZE, Quantized, bytes_for};

/// A linear layer, an embedding table or an output head, `[rows, cols]`.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Which row of which tensor each row is.
    pub shape: LinearShape,
    /// The bytes of each of the shape's segments.
    pub tensors: Vec<Tensor>,
    /// `[rows]` in the layer's order; empty if no segment has a bias.
    pub bias: Vec<f32>,
}

/// The bytes of one segment, `[rows, cols]`.
#[derive(Debug)]
pub(crate) enum Tensor {
    /// Elements in row-major order, little-endian.
    Dense {
        /// Element type.
        dtype: DType,
        /// `[rows * cols * dtype.size()]`
        bytes: Store,
    },
    /// bitsandbytes' codes and scales.
    Quant(Codes),
    /// The same, sixteen rows side by side.
    Interleaved(Interleaved),
    /// A dense head's elements as bytes, sixteen rows side by side.
    Bytes(ByteRows),
}

/// 4-bit codes with their scales over the flattened `[rows, cols]`.
#[derive(Debug)]
pub(crate) struct Codes {
    /// Weights.
    pub len: usize,
    /// Weights that share a scale; blocks may cross rows.
    pub blocksize: usize,
    /// The value of each code.
    pub code: [f32; 16],
    /// Two codes a byte, the even element in the high nibble: `[len.div_ceil(2)]`.
    pub packed: Store,
    /// A scale for each block.
    pub scales: Scales,
}

/// The scale of each block of weights.
#[derive(Debug)]
pub(crate) enum Scales {
    /// `[blocks]`
    Plain(Vec<f32>),
    /// `[blocks]` little-endian f32 in a file.
    Mapped(Store),
    /// `map[codes[i]] * absmax[i / 256] + offset`, product and sum rounded separately.
    Nested {
        /// `[blocks]`
        codes: Store,
        /// `[blocks.div_ceil(256)]`
        absmax: Vec<f32>,
        /// Values of the 8-bit codes, `[256]`.
        map: Vec<f32>,
        /// The mean of the scales.
        offset: f32,
    },
}

/// How a matrix in memory is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In its canonical bytes.
    Canonical,
    /// 4-bit weights sixteen rows side by side.
    Interleaved,
    /// A dense head in bytes, sixteen rows side by side.
    Bytes,
}

impl Form {
    /// The form of a matrix of this shape, for kernels that multiply in bytes or do not.
    pub fn of(shape: &LinearShape, in_bytes: bool) -> Self {
        let all = |fits: fn(&Segment) -> bool| in_bytes && shape.segments.iter().all(fits);
        if all(interleaved::fits) {
            Form::Interleaved
        } else if shape.head && all(byte_rows::fits) {
            Form::Bytes
        } else {
            Form::Canonical
        }
    }
}

/// Bytes of the arrays of a [`Matrix`] of this shape, in its [`Form::of`].
pub(crate) fn bytes(shape: &LinearShape, in_bytes: bool) -> u64 {
    let of: fn(&Segment) -> u64 = match Form::of(shape, in_bytes) {
        Form::Bytes => byte_rows::bytes,
        // Rows side by side take as much.
        Form::Canonical | Form::Interleaved => tensor_bytes,
    };
    let tensors: u64 = shape.segments.iter().map(of).sum();
    tensors + if shape.has_bias() { shape.rows() as u64 * 4 } else { 0 }
}

/// Bytes of one segment's arrays. With double quantization the 8-bit map is held beside the codes,
/// since a checkpoint may store its own.
fn tensor_bytes(segment: &Segment) -> u64 {
    let len = segment.rows * segment.cols;
    match segment.format {
        Format::Dense(dtype) => len as u64 * dtype.size(),
        Format::Quant(format) => bytes_for(len, format.into()) + if format.double_quant { 1024 } else { 0 },
    }
}

impl Matrix {
    /// Allocates the arrays of a matrix, filled with zeros, in the form for kernels that multiply in bytes or do not.
    pub fn reserve(shape: &LinearShape, in_bytes: bool) -> Result<Self, Shortage> {
        let form = Form::of(shape, in_bytes);
        let tensor = |segment| Tensor::reserve(segment, form);
        let tensors = shape.segments.iter().map(tensor).collect::<Result<_, _>>()?;
        let bias = zeroed(if shape.has_bias() { shape.rows() } else { 0 })?;
        Ok(Self { rows: shape.rows(), cols: shape.cols(), shape: shape.clone(), tensors, bias })
    }

    /// What is left to do after [`reserve`](Self::reserve), once the matrices that will be read after it have been
    /// reserved, too: first for all of them `Lines::ask_for_large_pages`, then `Lines::settle`.
    pub fn lines(&mut self) -> impl Iterator<Item = &mut Lines> {
        self.tensors.iter_mut().filter_map(|tensor| match tensor {
            Tensor::Interleaved(held) => Some(held.lines()),
            Tensor::Bytes(held) => Some(held.lines()),
            Tensor::Dense { .. } | Tensor::Quant(_) => None,
        })
    }

    /// Bytes of its arrays, as allocated.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum::<u64>() + size_of_val(self.bias.as_slice()) as u64
    }

    /// Bytes that a product with it reads, in memory or in files.
    pub fn read_bytes(&self) -> u64 {
        self.bytes() + self.files().map(|file| file.bytes().len() as u64).sum::<u64>()
    }

    /// Copies the canonical bytes of segment `index` in.
    pub fn fill(&mut self, index: usize, from: Canonical<'_>) -> Result<(), Fault> {
        let segment = &self.shape.segments[index];
        self.tensors[index].fill(segment, from)
    }

    /// Copies the bias of segment `index`, `[segment.rows]`, to the rows of the layer that it belongs to.
    pub fn fill_bias(&mut self, index: usize, values: &[f32]) -> Result<(), Fault> {
        for row in 0..self.rows {
            let (segment, at) = self.shape.source_row(row);
            if segment == index {
                self.bias[row] = *values.get(at).ok_or_else(|| {
                    let tensor = &self.shape.segments[index].tensor;
                    Fault::Source(format!("the bias of {tensor} has {} values", values.len()))
                })?;
            }
        }
        Ok(())
    }

    /// The tensor that holds `row` of the layer, and the row's number in it.
    pub fn source(&self, row: usize) -> (&Tensor, usize) {
        let (segment, at) = self.shape.source_row(row);
        (&self.tensors[segment], at)
    }

    /// The bias of `row`.
    pub fn bias(&self, row: usize) -> f32 {
        self.bias.get(row).copied().unwrap_or(0.0)
    }

    /// The weight at `[row, col]`.
    pub fn weight(&self, row: usize, col: usize) -> f32 {
        let (tensor, at) = self.source(row);
        tensor.element(at * self.cols + col)
    }
}

impl Tensor {
    pub(crate) fn reserve(segment: &Segment, form: Form) -> Result<Self, Shortage> {
        let len = segment.rows * segment.cols;
        Ok(match segment.format {
            Format::Dense(dtype) if form == Form::Bytes => Tensor::Bytes(ByteRows::reserve(segment, dtype)?),
            Format::Dense(dtype) => {
                Tensor::Dense { dtype, bytes: Store::zeroed(len * dtype.size() as usize)? }
            }
            Format::Quant(format) if form == Form::Interleaved => {
                Tensor::Interleaved(Interleaved::reserve(segment, format)?)
            }
            Format::Quant(format) => Tensor::Quant(Codes::reserve(len, format)?),
        })
    }

    fn bytes(&self) -> u64 {
        match self {
            Tensor::Dense { bytes, .. } => bytes.held(),
            Tensor::Quant(codes) => codes.bytes(),
            Tensor::Interleaved(held) => held.bytes(),
            Tensor::Bytes(held) => held.bytes(),
        }
    }

    fn fill(&mut self, segment: &Segment, from: Canonical<'_>) -> Result<(), Fault> {
        match (self, from) {
            (Tensor::Dense { dtype, bytes }, Canonical::Dense { dtype: found, bytes: source })
                if *dtype == found =>
            {
                let bytes = bytes.own().ok_or_else(|| in_a_file(&segment.tensor))?;
                copy(&segment.tensor, "bytes", bytes, &source)
            }
            (Tensor::Bytes(held), Canonical::Dense { dtype: found, bytes: source })
                if held.dtype == found =>
            {
                held.fill(&segment.tensor, &source)
            }
            (Tensor::Quant(codes), Canonical::Quantized(source)) => codes.fill(&segment.tensor, &source),
            (Tensor::Interleaved(held), Canonical::Quantized(source)) => held.fill(&segment.tensor, &source),
            (_, Canonical::Dense { dtype, .. }) => Err(Fault::Source(format!(
                "{} is wanted as {:?} and came as {dtype:?}",
                segment.tensor, segment.format
            ))),
            (_, Canonical::Quantized(source)) => Err(Fault::Source(format!(
                "{} is wanted as {:?} and came as {}",
                segment.tensor, segment.format, source.quant_type
            ))),
        }
    }

    /// Element `index` of the flattened tensor.
    pub fn element(&self, index: usize) -> f32 {
        match self {
            Tensor::Dense { dtype, bytes } => element(*dtype, bytes, index),
            Tensor::Quant(codes) => codes.element(index),
            Tensor::Interleaved(held) => held.element(index),
            Tensor::Bytes(held) => held.element(index),
        }
    }
}

/// Element `index` of little-endian `bytes`.
pub(crate) fn element(dtype: DType, bytes: &[u8], index: usize) -> f32 {
    match dtype {
        DType::F32 => {
            let at = &bytes[index * 4..index * 4 + 4];
            f32::from_le_bytes([at[0], at[1], at[2], at[3]])
        }
        DType::F16 => f16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
        DType::Bf16 => bf16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
    }
}

impl Codes {
    fn reserve(len: usize, format: QuantFormat) -> Result<Self, Shortage> {
        let blocks = len.div_ceil(format.blocksize);
        let scales = if format.double_quant {
            Scales::Nested {
                codes: Store::zeroed(blocks)?,
                absmax: zeroed(blocks.div_ceil(NESTED_BLOCKSIZE))?,
                map: zeroed(256)?,
                offset: 0.0,
            }
        } else {
            Scales::Plain(zeroed(blocks)?)
        };
        Ok(Self {
            len,
            blocksize: format.blocksize,
            code: *format.quant_type.codebook(),
            packed: Store::zeroed(len.div_ceil(2))?,
            scales,
        })
    }

    fn bytes(&self) -> u64 {
        let scales = match &self.scales {
            Scales::Plain(values) => size_of_val(values.as_slice()) as u64,
            Scales::Mapped(values) => values.held(),
            Scales::Nested { codes, absmax, map, .. } => {
                codes.held() + (size_of_val(absmax.as_slice()) + size_of_val(map.as_slice())) as u64
            }
        };
        self.packed.held() + scales
    }

    /// Refuses what is not `len` weights in blocks of `blocksize`.
    pub fn check(tensor: &str, from: &Quantized, len: usize, blocksize: usize) -> Result<(), Fault> {
        if from.blocksize != blocksize {
            return Err(Fault::Source(format!(
                "{tensor} is wanted in blocks of {blocksize} and came in blocks of {}",
                from.blocksize
            )));
        }
        if from.len != len {
            return Err(Fault::Source(format!("{tensor} has {} weights, not {len}", from.len)));
        }
        if let Absmax::Nested { blocksize, .. } = from.absmax
            && blocksize != NESTED_BLOCKSIZE
        {
            return Err(Fault::Source(format!(
                "{tensor}: scales come in blocks of {blocksize}, not {NESTED_BLOCKSIZE}"
            )));
        }
        from.check().map_err(|fault| Fault::Source(format!("{tensor}: {fault}")))
    }

    fn fill(&mut self, tensor: &str, from: &Quantized) -> Result<(), Fault> {
        Self::check(tensor, from, self.len, self.blocksize)?;
        let packed = self.packed.own().ok_or_else(|| in_a_file(tensor))?;
        copy(tensor, "packed bytes", packed, &from.packed)?;
        self.code = from.code;
        match (&mut self.scales, &from.absmax) {
            (Scales::Plain(values), Absmax::Plain(source)) => copy(tensor, "scales", values, source),
            (
                Scales::Nested { codes, absmax, map, offset },
                Absmax::Nested { codes: from_codes, absmax: from_absmax, offset: from_offset, code, .. },
            ) => {
                copy(tensor, "codes of scales", codes.own().ok_or_else(|| in_a_file(tensor))?, from_codes)?;
                copy(tensor, "scales of scales", absmax, from_absmax)?;
                copy(tensor, "values of 8-bit codes", map, code.as_slice())?;
                *offset = *from_offset;
                Ok(())
            }
            (Scales::Plain(_), _) => Err(Fault::Source(format!("{tensor} came with nested scales"))),
            (Scales::Mapped(_), _) => Err(in_a_file(tensor)),
            (Scales::Nested { .. }, Absmax::Plain(_)) => {
                Err(Fault::Source(format!("{tensor} came without nested scales")))
            }
        }
    }

    /// Weight `index` of the flattened tensor: its code's value times its block's scale, in f32.
    pub fn element(&self, index: usize) -> f32 {
        let nibble = self.packed[index / 2] >> (4 * (1 - index % 2)) & 15;
        self.code[usize::from(nibble)] * self.scale(index / self.blocksize)
    }

    /// The scale of one block.
    #[inline(always)]
    pub fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Plain(values) => values[block],
            Scales::Mapped(values) => float(values, block),
            Scales::Nested { codes, absmax, map, offset } => {
                map[usize::from(codes[block])] * absmax[block / NESTED_BLOCKSIZE] + offset
            }
        }
    }
}

/// The fault of a copy into what is not ours, or not ours alone.
fn in_a_file(tensor: &str) -> Fault {
    Fault::Internal(format!("{tensor} is to be copied into what others read"))
}

/// Elements that one thread copies at a time.
const PIECE: usize = 1 << 20;

pub(crate) fn copy<T: Copy + Send + Sync>(
    tensor: &str,
    what: &str,
    to: &mut [T],
    from: &[T],
) -> Result<(), Fault> {
    if to.len() != from.len() {
        return Err(Fault::Source(format!("{tensor} has {} {what}, not {}", from.len(), to.len())));
    }
    let pieces = to.chunks_mut(PIECE).zip(from.chunks(PIECE));
    halfbyte_quant::threads::each(pieces, |(to, from)| to.copy_from_slice(from));
    Ok(())
}
