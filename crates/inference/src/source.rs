//! A checkpoint's tensors in the bytes that backends hold.

use half::{bf16, f16};
use halfbyte_backend::{Canonical, DType, Fault, Format, Fut, Mapped, QuantFormat, Segment, WeightSource};
use halfbyte_checkpoint::QuantizedWeight;
use halfbyte_checkpoint::{Checkpoint, TensorDtype, quant_state};
use halfbyte_quant::{Absmax, Quantized, Source, SourceType, quantize};
use std::borrow::Cow;

use crate::ModelError;
use crate::located::locate;
use crate::tensors::{Tensors, check_shape};

/// Reads the weights of a [`Checkpoint`]: 4-bit states as they are, floats converted or quantized as they
/// are read. Host memory beyond the checkpoint's own (a memory map, mostly): one tensor.
#[derive(Debug)]
pub struct CheckpointSource<'c> {
    checkpoint: &'c Checkpoint,
}

impl<'c> CheckpointSource<'c> {
    /// The weights of `checkpoint`.
    pub fn new(checkpoint: &'c Checkpoint) -> Self {
        Self { checkpoint }
    }

    fn read(&self, segment: &Segment) -> Result<Canonical<'_>, ModelError> {
        match segment.format {
            Format::Dense(dtype) => {
                let stored = self.matrix(segment)?;
                if !finite(&stored.bytes, stored.dtype) {
                    return Err(self.not_finite(&segment.tensor));
                }
                let bytes = convert(stored.bytes, stored.dtype, dtype);
                Ok(Canonical::Dense { dtype, bytes })
            }
            Format::Quant(format) => {
                let data = match quant_state::read_quantized(self.checkpoint, &segment.tensor)? {
                    Some(stored) => self.stored(stored, segment, format)?,
                    None => self.quantize(segment, format)?,
                };
                Ok(Canonical::Quantized(Cow::Owned(data)))
            }
        }
    }

    /// A weight that is stored in 4 bits; it must be what the blueprint took it for.
    fn stored(
        &self,
        stored: QuantizedWeight,
        segment: &Segment,
        format: QuantFormat,
    ) -> Result<Quantized, ModelError> {
        let mut data = stored.data;
        // Of a single block the headers do not tell the size, and nothing depends on it.
        if data.len <= data.blocksize && data.len <= format.blocksize {
            data.blocksize = format.blocksize;
        }
        check_stored(self.checkpoint, segment, &stored.shape, data.spec().into())?;
        Ok(data)
    }

    fn quantize(&self, segment: &Segment, format: QuantFormat) -> Result<Quantized, ModelError> {
        let stored = self.matrix(segment)?;
        let (dtype, bytes) = match stored.dtype {
            TensorDtype::F16 => (SourceType::F16, stored.bytes),
            TensorDtype::BF16 => (SourceType::Bf16, stored.bytes),
            TensorDtype::F32 => (SourceType::F32, stored.bytes),
            other => (SourceType::F32, convert(stored.bytes, other, DType::F32)),
        };
        let failed = |error: halfbyte_quant::QuantError| {
            Fault::Source(format!("{}: quantizing {}: {error}", self.checkpoint.name, segment.tensor))
        };
        let source = Source::from_le_bytes(dtype, &bytes).map_err(failed)?;
        let data = quantize(source, format.into()).map_err(failed)?;
        // One such value spoils its block; with double quantization, through the mean, the whole tensor.
        let scales_are_finite = match &data.absmax {
            Absmax::Plain(scales) => scales.iter().all(|scale| scale.is_finite()),
            Absmax::Nested { absmax, offset, .. } => {
                offset.is_finite() && absmax.iter().all(|scale| scale.is_finite())
            }
        };
        if scales_are_finite { Ok(data) } else { Err(self.not_finite(&segment.tensor)) }
    }

    fn not_finite(&self, tensor: &str) -> ModelError {
        Fault::not_finite(&self.checkpoint.name, tensor).into()
    }

    /// A float matrix, `[rows, cols]` after transposition.
    fn matrix(&self, segment: &Segment) -> Result<Bytes<'_>, ModelError> {
        let (rows, cols) = (segment.rows, segment.cols);
        let shape = if segment.transposed { [cols, rows] } else { [rows, cols] };
        let mut stored = self.floats(&segment.tensor, &shape)?;
        if segment.transposed {
            let size = stored.dtype.size().unwrap_or(1);
            stored.bytes = Cow::Owned(transpose(&stored.bytes, [cols, rows], size));
        }
        Ok(stored)
    }

    /// A tensor of floats of the given shape.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Bytes<'_>, ModelError> {
        let index = &self.checkpoint.index;
        let stored = Tensors::get(index, name)?;
        let dtype = stored.dtype;
        if !dtype.is_float() {
            return Err(ModelError::Dtype {
                tensor: name.into(),
                file: stored.file,
                dtype: dtype.to_string(),
                instead: "floats of at least 16 bits are needed".into(),
            });
        }
        check_shape(name, stored, shape)?;
        Ok(Bytes { dtype, bytes: Cow::Borrowed(self.checkpoint.tensor_bytes(name)?) })
    }
}

/// Refuses a weight that is stored in 4 bits, but not as what the blueprint took it for by the headers.
pub(crate) fn check_stored(
    checkpoint: &Checkpoint,
    segment: &Segment,
    shape: &[usize],
    found: QuantFormat,
) -> Result<(), ModelError> {
    let wanted = [segment.rows, segment.cols];
    if shape != wanted {
        let (tensor, file) = (segment.tensor.clone(), checkpoint.name.clone());
        return Err(ModelError::Shape { tensor, file, found: shape.to_vec(), wanted: wanted.to_vec() });
    }
    if segment.format != Format::Quant(found) {
        let (name, tensor, format) = (&checkpoint.name, &segment.tensor, segment.format);
        let problem =
            format!("{name}: the quant state of {tensor} says {found:?}, but its headers {format:?}");
        return Err(Fault::Source(problem).into());
    }
    Ok(())
}

/// A source with a new head: the tensors that a checkpoint lacks are drawn at random, all others come from
/// the source within.
///
/// Weights are normal with the model's `initializer_range` (Box and Muller 1958), biases zero, as
/// transformers makes them; each depends on the tensor's name only, so it comes again the same.
pub struct Initialized<'a> {
    inner: &'a dyn WeightSource,
    names: &'a [String],
    deviation: f32,
}

impl<'a> Initialized<'a> {
    /// `inner`, and the tensors called `names` drawn with a standard deviation of `deviation`.
    pub fn new(inner: &'a dyn WeightSource, names: &'a [String], deviation: f32) -> Self {
        Self { inner, names, deviation }
    }

    fn draws(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

impl WeightSource for Initialized<'_> {
    fn segment<'b>(&'b self, segment: &'b Segment) -> Fut<'b, Canonical<'b>> {
        if !self.draws(&segment.tensor) {
            return self.inner.segment(segment);
        }
        let values = normal(&segment.tensor, segment.rows * segment.cols, self.deviation);
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Box::pin(async move {
            match segment.format {
                Format::Dense(dtype) => Ok(Canonical::Dense {
                    dtype,
                    bytes: Cow::Owned(convert(Cow::Owned(bytes), TensorDtype::F32, dtype).into_owned()),
                }),
                Format::Quant(_) => Err(Fault::Internal(format!("{} is new, yet 4-bit", segment.tensor))),
            }
        })
    }

    fn vector<'b>(&'b self, name: &'b str, len: usize) -> Fut<'b, Vec<f32>> {
        if !self.draws(name) {
            return self.inner.vector(name, len);
        }
        Box::pin(async move { Ok(vec![0.0; len]) })
    }

    fn mapped<'b>(&'b self, segment: &'b Segment) -> Fut<'b, Option<Mapped>> {
        if self.draws(&segment.tensor) { Box::pin(async { Ok(None) }) } else { self.inner.mapped(segment) }
    }
}

/// `len` normal numbers for the tensor `name`.
fn normal(name: &str, len: usize, deviation: f32) -> Vec<f32> {
    // FNV-1a
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut stream = halfbyte_backend::random::Stream::new(seed);
    (0..len).map(|_| stream.normal() * deviation).collect()
}

/// Elements as they lie in the file.
struct Bytes<'a> {
    dtype: TensorDtype,
    bytes: Cow<'a, [u8]>,
}

impl WeightSource for CheckpointSource<'_> {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move { self.read(segment).map_err(fault) })
    }

    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move {
            let stored = self.floats(name, &[len]).map_err(fault)?;
            let values: Vec<f32> = floats(&stored.bytes, stored.dtype).collect();
            match values.iter().all(|value| value.is_finite()) {
                true => Ok(values),
                false => Err(fault(self.not_finite(name))),
            }
        })
    }

    fn mapped<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Option<Mapped>> {
        Box::pin(async move { locate(self.checkpoint, segment).map_err(fault) })
    }
}

fn fault(error: ModelError) -> Fault {
    match error {
        ModelError::Fault(fault) => fault,
        other => Fault::Source(other.to_string()),
    }
}

/// Little-endian floats of any type, in f32.
fn floats(bytes: &[u8], dtype: TensorDtype) -> Box<dyn Iterator<Item = f32> + '_> {
    match dtype {
        TensorDtype::F16 => Box::new(words::<2>(bytes).map(|word| f16::from_le_bytes(word).to_f32())),
        TensorDtype::BF16 => Box::new(words::<2>(bytes).map(|word| bf16::from_le_bytes(word).to_f32())),
        TensorDtype::F64 => Box::new(words::<8>(bytes).map(|word| f64::from_le_bytes(word) as f32)),
        _ => Box::new(words::<4>(bytes).map(f32::from_le_bytes)),
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// Whether little-endian floats are neither NaN nor infinite, in 32 bits.
pub(crate) fn finite(bytes: &[u8], dtype: TensorDtype) -> bool {
    match dtype {
        TensorDtype::F16 => DType::F16.all_finite(bytes),
        TensorDtype::BF16 => DType::Bf16.all_finite(bytes),
        TensorDtype::F64 => words::<8>(bytes).all(|word| (f64::from_le_bytes(word) as f32).is_finite()),
        _ => DType::F32.all_finite(bytes),
    }
}

/// Little-endian floats of one type as another; borrowed where it is the same.
fn convert(bytes: Cow<'_, [u8]>, from: TensorDtype, to: DType) -> Cow<'_, [u8]> {
    match (from, to) {
        (TensorDtype::F32, DType::F32)
        | (TensorDtype::F16, DType::F16)
        | (TensorDtype::BF16, DType::Bf16) => bytes,
        (_, DType::F32) => floats(&bytes, from).flat_map(f32::to_le_bytes).collect(),
        (_, DType::F16) => {
            floats(&bytes, from).flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()
        }
        (_, DType::Bf16) => {
            floats(&bytes, from).flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()
        }
    }
}

/// `[rows, cols]` elements of `size` bytes as `[cols, rows]`.
fn transpose(bytes: &[u8], [rows, cols]: [usize; 2], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_gives_the_same() {
        let bytes: Vec<u8> = (0..3 * 5 * 2).collect();
        let turned = transpose(&bytes, [3, 5], 2);
        assert_eq!(turned[..6], [0, 1, 10, 11, 20, 21]);
        assert_eq!(transpose(&turned, [5, 3], 2), bytes);
    }

    #[test]
    fn what_is_not_finite_is_found_at_any_place() {
        let normal = [0.0f32, -0.0, 1.0, -65504.0, 1e-8];
        let specials = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for dtype in [TensorDtype::F16, TensorDtype::BF16, TensorDtype::F32, TensorDtype::F64] {
            let width = dtype.size().unwrap();
            let bytes = |value: f32| match dtype {
                TensorDtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                TensorDtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                TensorDtype::F64 => f64::from(value).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            };
            let mut all: Vec<u8> = (0..9001).flat_map(|at| bytes(normal[at % normal.len()])).collect();
            assert!(finite(&all, dtype), "{dtype}");
            for at in [0, 4095, 4096, 9000] {
                for special in specials {
                    let place = at * width..(at + 1) * width;
                    let before = all[place.clone()].to_vec();
                    all[place.clone()].copy_from_slice(&bytes(special));
                    assert!(!finite(&all, dtype), "{dtype}: {special} at {at}");
                    all[place].copy_from_slice(&before);
                }
            }
        }
        // Beyond single precision, in which it is computed.
        assert!(!finite(&1e300f64.to_le_bytes(), TensorDtype::F64));
    }

    #[test]
    fn conversion_rounds_once() {
        let values = [1.0f32, -2.5, 65504.0, 1e-8];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let halves = convert(Cow::Borrowed(&bytes), TensorDtype::F32, DType::F16);
        let wanted: Vec<f32> = values.iter().map(|&value| f16::from_f32(value).to_f32()).collect();
        assert_eq!(floats(&halves, TensorDtype::F16).collect::<Vec<_>>(), wanted);
        let same = convert(Cow::Borrowed(&bytes), TensorDtype::F32, DType::F32);
        assert!(matches!(same, Cow::Borrowed(_)));
    }
}
