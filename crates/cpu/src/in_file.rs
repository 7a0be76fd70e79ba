//! Matrices that stay in their file: what little of them is memory, and where the rest lies.

use crate::buffer::{Shortage, zeroed};
use crate::matrix::{Codes, Form, Matrix, Scales, Tensor};
use crate::store::Store;
use halfbyte_backend::{
    Fault, Footprint, Format, LinearShape, Mapped, MappedBytes, MappedQuantized, MappedScales, Purpose,
    Segment,
};
use halfbyte_quant::NESTED_BLOCKSIZE;
use std::sync::Arc;

/// Bytes of a matrix of this shape, whose memory is for `purpose`: of memory the biases, the few scales of
/// scales, and what lies transposed in its file; all else in the file.
pub(crate) fn footprint(shape: &LinearShape, purpose: Purpose) -> Footprint {
    let mut footprint = Footprint::new();
    for segment in &shape.segments {
        let (held, mapped) = segment_bytes(segment);
        footprint.add(purpose, held);
        footprint.add(Purpose::Mapped, mapped);
    }
    footprint.add(purpose, if shape.has_bias() { shape.rows() as u64 * 4 } else { 0 });
    footprint
}

/// Bytes of a segment in memory and in its file.
fn segment_bytes(segment: &Segment) -> (u64, u64) {
    let len = segment.rows * segment.cols;
    match segment.format {
        Format::Dense(dtype) if segment.transposed => (len as u64 * dtype.size(), 0),
        Format::Dense(dtype) => (0, len as u64 * dtype.size()),
        Format::Quant(format) => {
            let blocks = len.div_ceil(format.blocksize) as u64;
            let packed = len.div_ceil(2) as u64;
            if format.double_quant {
                (blocks.div_ceil(NESTED_BLOCKSIZE as u64) * 4 + 1024, packed + blocks)
            } else {
                (0, packed + 4 * blocks)
            }
        }
    }
}

impl Matrix {
    /// A matrix of this shape that is to lie in a file: allocates what is memory of it.
    pub fn reserve_in_file(shape: &LinearShape) -> Result<Self, Shortage> {
        let tensor = |segment: &Segment| {
            Ok(match segment.format {
                Format::Dense(_) if segment.transposed => Tensor::reserve(segment, Form::Canonical)?,
                Format::Dense(dtype) => Tensor::Dense { dtype, bytes: Store::empty() },
                Format::Quant(format) => {
                    let blocks = (segment.rows * segment.cols).div_ceil(format.blocksize);
                    let scales = if format.double_quant {
                        Scales::Nested {
                            codes: Store::empty(),
                            absmax: zeroed(blocks.div_ceil(NESTED_BLOCKSIZE))?,
                            map: zeroed(256)?,
                            offset: 0.0,
                        }
                    } else {
                        Scales::Mapped(Store::empty())
                    };
                    let code = *format.quant_type.codebook();
                    let len = segment.rows * segment.cols;
                    Tensor::Quant(Codes {
                        len,
                        blocksize: format.blocksize,
                        code,
                        packed: Store::empty(),
                        scales,
                    })
                }
            })
        };
        let tensors = shape.segments.iter().map(tensor).collect::<Result<_, _>>()?;
        let bias = zeroed(if shape.has_bias() { shape.rows() } else { 0 })?;
        Ok(Self { rows: shape.rows(), cols: shape.cols(), shape: shape.clone(), tensors, bias })
    }

    /// Takes note of where segment `index` lies.
    ///
    /// # Errors
    /// [`Fault::Source`] if that is not what the matrix was reserved for.
    pub fn map(&mut self, index: usize, from: Mapped) -> Result<(), Fault> {
        let segment = &self.shape.segments[index];
        let (_, expected) = segment_bytes(segment);
        let found = bytes(&from);
        let wrong = || {
            let (tensor, format) = (&segment.tensor, segment.format);
            Fault::Source(format!("{tensor} is wanted as {format:?} of {expected} bytes; it lies otherwise"))
        };
        if found != expected {
            return Err(wrong());
        }
        match (&mut self.tensors[index], from) {
            (Tensor::Dense { dtype, bytes }, Mapped::Dense { dtype: found, bytes: file })
                if *dtype == found =>
            {
                *bytes = Store::Mapped(file);
                Ok(())
            }
            (Tensor::Quant(codes), Mapped::Quantized(file)) if codes.blocksize == file.blocksize => {
                codes.map(file).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }

    /// What of it lies in files.
    pub fn files(&self) -> impl Iterator<Item = &Arc<dyn MappedBytes>> {
        self.tensors
            .iter()
            .flat_map(|tensor| match tensor {
                Tensor::Dense { bytes, .. } => [bytes.file(), None],
                Tensor::Interleaved(_) | Tensor::Bytes(_) => [None, None],
                Tensor::Quant(codes) => {
                    let scales = match &codes.scales {
                        Scales::Mapped(store) | Scales::Nested { codes: store, .. } => store.file(),
                        Scales::Plain(_) => None,
                    };
                    [codes.packed.file(), scales]
                }
            })
            .flatten()
    }
}

impl Codes {
    /// `None` if the scales are of another kind.
    fn map(&mut self, from: MappedQuantized) -> Option<()> {
        match (&mut self.scales, from.scales) {
            (Scales::Mapped(store), MappedScales::Plain(file)) => *store = Store::Mapped(file),
            (
                Scales::Nested { codes, absmax, map, offset },
                MappedScales::Nested { codes: file, absmax: values, map: known, offset: mean, blocksize },
            ) if blocksize == NESTED_BLOCKSIZE && values.len() == absmax.len() => {
                *codes = Store::Mapped(file);
                absmax.copy_from_slice(&values);
                map.copy_from_slice(known.as_slice());
                *offset = mean;
            }
            _ => return None,
        }
        self.packed = Store::Mapped(from.packed);
        self.code = from.code;
        Some(())
    }
}

/// Bytes that lie in files.
fn bytes(mapped: &Mapped) -> u64 {
    let len = |bytes: &Arc<dyn MappedBytes>| bytes.bytes().len() as u64;
    match mapped {
        Mapped::Dense { bytes, .. } => len(bytes),
        Mapped::Quantized(MappedQuantized { packed, scales, .. }) => {
            let (MappedScales::Plain(scales) | MappedScales::Nested { codes: scales, .. }) = scales;
            len(packed) + len(scales)
        }
    }
}
