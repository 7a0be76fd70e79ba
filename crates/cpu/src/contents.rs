//! What a slot holds, in the bytes that it was filled from: another device is filled from here.

use crate::interleaved::Interleaved;
use crate::matrix::{Codes, Matrix, Scales, Tensor};
use crate::slots::{NormParams, Shared, Stored};
use halfbyte_backend::{
    Canonical, Fault, Format, Fut, Kind, Mapped, MappedBytes, MappedQuantized, MappedScales, QuantFormat,
    Segment, Want, WeightSource,
};
use halfbyte_quant::{Absmax, NESTED_BLOCKSIZE, Quantized};
use std::borrow::Cow;
use std::future::ready;
use std::sync::Arc;

/// The weights of one slot.
pub(crate) enum Contents<'w> {
    Matrix(Shared<Matrix>),
    Norm { params: Shared<NormParams>, weight: &'w str, bias: Option<&'w str> },
}

impl<'w> Contents<'w> {
    /// The contents of the slot of `want`.
    ///
    /// # Errors
    /// [`Fault::Internal`] if that is nothing that an upload fills.
    pub fn new(stored: Stored, want: &'w Want) -> Result<Self, Fault> {
        match (stored, &want.kind) {
            (Stored::Linear(matrix), Kind::Linear(_)) => Ok(Self::Matrix(matrix)),
            (Stored::Norm(params), Kind::Norm(shape)) => {
                Ok(Self::Norm { params, weight: &shape.weight, bias: shape.bias.as_deref() })
            }
            _ => Err(Fault::Internal(format!("{} holds no weights", want.name))),
        }
    }

    fn matrix(&self) -> Option<&Shared<Matrix>> {
        match self {
            Self::Matrix(matrix) => Some(matrix),
            Self::Norm { .. } => None,
        }
    }

    fn find(&self, segment: &Segment) -> Result<Canonical<'static>, Fault> {
        let matrix = self.matrix().ok_or_else(|| missing(&segment.tensor))?.read();
        let index = index_of(&matrix, segment)?;
        Ok(match &matrix.tensors[index] {
            Tensor::Dense { dtype, bytes } => {
                Canonical::Dense { dtype: *dtype, bytes: Cow::Owned(bytes.to_vec()) }
            }
            Tensor::Quant(codes) => Canonical::Quantized(Cow::Owned(quantized(codes, format(segment)?))),
            Tensor::Interleaved(held) => {
                Canonical::Quantized(Cow::Owned(held.quantized(format(segment)?.quant_type)))
            }
            Tensor::Bytes(_) => {
                let tensor = &segment.tensor;
                return Err(Fault::Source(format!(
                    "{tensor} is held in bytes here, which are not its own values: read it from its checkpoint"
                )));
            }
        })
    }

    /// What need not be copied: all but rows side by side.
    fn share(&self, segment: &Segment) -> Result<Option<Mapped>, Fault> {
        let matrix = self.matrix().ok_or_else(|| missing(&segment.tensor))?.read();
        let index = index_of(&matrix, segment)?;
        Ok(match &matrix.tensors[index] {
            Tensor::Dense { dtype, bytes } => Some(Mapped::Dense { dtype: *dtype, bytes: bytes.share() }),
            Tensor::Quant(codes) => Some(Mapped::Quantized(codes.share())),
            Tensor::Interleaved(_) | Tensor::Bytes(_) => None,
        })
    }

    fn values(&self, name: &str) -> Option<Vec<f32>> {
        match self {
            Self::Norm { params, weight, bias } => {
                let params = params.read();
                match name {
                    name if name == *weight => Some(params.weight.clone()),
                    name if Some(name) == *bias => Some(params.bias.clone()),
                    _ => None,
                }
            }
            Self::Matrix(matrix) => {
                let matrix = matrix.read();
                let is = |segment: &Segment| segment.bias.as_deref() == Some(name);
                let wanted = matrix.shape.segments.iter().position(is)?;
                let mut values = vec![0.0; matrix.shape.segments[wanted].rows];
                for row in 0..matrix.rows {
                    let (segment, at) = matrix.shape.source_row(row);
                    if segment == wanted {
                        values[at] = matrix.bias(row);
                    }
                }
                Some(values)
            }
        }
    }
}

impl WeightSource for Contents<'_> {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(ready(self.find(segment)))
    }

    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        let found = self.values(name).filter(|values| values.len() == len);
        Box::pin(ready(found.ok_or_else(|| missing(name))))
    }

    fn mapped<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Option<Mapped>> {
        Box::pin(ready(self.share(segment)))
    }
}

fn missing(name: &str) -> Fault {
    Fault::Internal(format!("{name} is asked of a slot that does not hold it"))
}

fn index_of(matrix: &Matrix, segment: &Segment) -> Result<usize, Fault> {
    let index = matrix.shape.segments.iter().position(|held| held == segment);
    index.ok_or_else(|| missing(&segment.tensor))
}

fn format(segment: &Segment) -> Result<QuantFormat, Fault> {
    match segment.format {
        Format::Quant(format) => Ok(format),
        Format::Dense(_) => Err(missing(&segment.tensor)),
    }
}

impl Codes {
    /// Codes and scales for somebody else to read, too. What is small is copied.
    fn share(&self) -> MappedQuantized {
        let scales = match &self.scales {
            Scales::Plain(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                MappedScales::Plain(Arc::new(bytes) as Arc<dyn MappedBytes>)
            }
            Scales::Mapped(store) => MappedScales::Plain(store.share()),
            Scales::Nested { codes, absmax, map, offset } => MappedScales::Nested {
                codes: codes.share(),
                absmax: absmax.clone(),
                map: map_of(map),
                offset: *offset,
                blocksize: NESTED_BLOCKSIZE,
            },
        };
        MappedQuantized { blocksize: self.blocksize, code: self.code, packed: self.packed.share(), scales }
    }
}

/// The values of 8-bit codes, of which there are 256.
pub(crate) fn map_of(values: &[f32]) -> Box<[f32; 256]> {
    let mut map = Box::new([0.0; 256]);
    map.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
    map
}

fn quantized(codes: &Codes, format: QuantFormat) -> Quantized {
    let blocks = codes.len.div_ceil(codes.blocksize);
    let absmax = match &codes.scales {
        Scales::Plain(_) | Scales::Mapped(_) => Absmax::Plain((0..blocks).map(|i| codes.scale(i)).collect()),
        Scales::Nested { codes, absmax, map, offset } => Absmax::Nested {
            codes: codes.to_vec(),
            absmax: absmax.clone(),
            offset: *offset,
            code: map_of(map),
            blocksize: NESTED_BLOCKSIZE,
        },
    };
    Quantized {
        len: codes.len,
        blocksize: codes.blocksize,
        quant_type: format.quant_type,
        code: codes.code,
        packed: codes.packed.to_vec(),
        absmax,
    }
}

impl Interleaved {
    /// The canonical form again. Scales went through a factor and may differ from what came in by their last bit.
    fn quantized(&self, quant_type: halfbyte_quant::QuantType) -> Quantized {
        let (packed, absmax) = self.canonical();
        let (len, code) = (self.rows * self.cols, self.codebook());
        Quantized { len, blocksize: crate::lines::BLOCK, quant_type, code, packed, absmax }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuBackend;
    use crate::backend::CpuOptions;
    use crate::math::Math;
    use halfbyte_backend::random::Stream;
    use halfbyte_backend::{Arrangement, Backend, DType, LinearShape, NormShape, Purpose};
    use halfbyte_quant::{QuantSpec, Source, quantize};
    use std::collections::HashMap;

    /// Tensors by name.
    struct Given(HashMap<String, Canonical<'static>>, HashMap<String, Vec<f32>>);

    impl WeightSource for Given {
        fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
            Box::pin(ready(Ok(self.0[&segment.tensor].clone())))
        }

        fn vector<'a>(&'a self, name: &'a str, _len: usize) -> Fut<'a, Vec<f32>> {
            Box::pin(ready(Ok(self.1[name].clone())))
        }
    }

    /// The bytes of a segment, by whichever way a device would take.
    fn bytes(source: &dyn WeightSource, segment: &Segment, shared: bool) -> Vec<Vec<u8>> {
        let floats = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        if shared && let Some(mapped) = pollster::block_on(source.mapped(segment)).unwrap() {
            return match mapped {
                Mapped::Dense { bytes, .. } => vec![bytes.bytes().to_vec()],
                Mapped::Quantized(MappedQuantized { packed, scales, code, .. }) => {
                    let mut all = vec![packed.bytes().to_vec(), floats(&code)];
                    match scales {
                        MappedScales::Plain(scales) => all.push(scales.bytes().to_vec()),
                        MappedScales::Nested { codes, absmax, map, offset, .. } => {
                            all.extend([codes.bytes().to_vec(), floats(&absmax), floats(&*map)]);
                            all.push(floats(&[offset]));
                        }
                    }
                    all
                }
            };
        }
        match pollster::block_on(source.segment(segment)).unwrap() {
            Canonical::Dense { bytes, .. } => vec![bytes.into_owned()],
            Canonical::Quantized(data) => {
                let mut all = vec![data.packed.clone(), floats(&data.code)];
                match &data.absmax {
                    Absmax::Plain(scales) => all.push(floats(scales)),
                    Absmax::Nested { codes, absmax, offset, code, .. } => {
                        all.extend([codes.clone(), floats(absmax), floats(&**code), floats(&[*offset])]);
                    }
                }
                all
            }
        }
    }

    /// Whether all floats are equal but for their last bits, and everything else is equal.
    fn close(found: &[Vec<u8>], wanted: &[Vec<u8>]) -> bool {
        let near = |a: &[u8], b: &[u8]| {
            let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            (value(a) - value(b)).abs() <= 4e-7 * value(b).abs()
        };
        found.len() == wanted.len()
            && found.iter().zip(wanted).all(|(a, b)| {
                a == b
                    || (a.len() == b.len()
                        && a.chunks_exact(4).zip(b.chunks_exact(4)).all(|(a, b)| near(a, b)))
            })
    }

    #[test]
    fn what_went_in_comes_out() {
        let mut stream = Stream::new(5);
        let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| stream.normal()).collect() };
        for math in [Math::Exact, Math::Fast] {
            for (format, rows, cols) in [
                (Format::Quant(QuantSpec::default().into()), 32, 128),
                (Format::Quant(QuantSpec { double_quant: false, ..QuantSpec::default() }.into()), 16, 192),
                (Format::Quant(QuantSpec::default().into()), 7, 45),
                (Format::Dense(DType::F32), 5, 9),
            ] {
                let mut given = Given(HashMap::new(), HashMap::new());
                let segments: Vec<Segment> = ["a", "b"]
                    .into_iter()
                    .map(|tensor| {
                        let values = random(rows * cols);
                        let canonical = match format {
                            Format::Dense(dtype) => Canonical::Dense {
                                dtype,
                                bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                            },
                            Format::Quant(format) => {
                                let data = quantize(Source::F32(&values), format.into()).unwrap();
                                Canonical::Quantized(Cow::Owned(data))
                            }
                        };
                        given.0.insert(tensor.into(), canonical);
                        given.1.insert(format!("{tensor} bias"), random(rows));
                        let bias = Some(format!("{tensor} bias"));
                        Segment { tensor: tensor.into(), rows, cols, format, bias, transposed: false }
                    })
                    .collect();
                let shape = LinearShape::new(segments, Arrangement::Interleaved);
                let linear = Want {
                    name: "linear".into(),
                    purpose: Purpose::Weights,
                    kind: Kind::Linear(shape.clone()),
                };
                let norm = NormShape { len: rows, weight: "a bias".into(), bias: Some("b bias".into()) };
                let norm = Want { name: "norm".into(), purpose: Purpose::Weights, kind: Kind::Norm(norm) };

                let cpu = CpuBackend::with(CpuOptions { math: Some(math), ..Default::default() }).unwrap();
                let wants = [linear, norm];
                let slots = pollster::block_on(cpu.reserve(&wants)).unwrap();
                for (slot, want) in slots.iter().zip(&wants) {
                    pollster::block_on(cpu.upload(*slot, want, &given)).unwrap();
                    let contents = cpu.contents(*slot, want).unwrap();
                    for name in ["a bias", "b bias"] {
                        let found = pollster::block_on(contents.vector(name, rows)).unwrap();
                        assert_eq!(found, given.1[name], "{math} {format:?} {name}");
                    }
                    assert!(pollster::block_on(contents.vector("c", rows)).is_err());
                }
                let contents = cpu.contents(slots[0], &wants[0]).unwrap();
                for segment in &shape.segments {
                    let wanted = bytes(&given, segment, false);
                    for shared in [false, true] {
                        let found = bytes(&*contents, segment, shared);
                        let same = if math == Math::Exact { found == wanted } else { close(&found, &wanted) };
                        assert!(same, "{math} {format:?} {} shared {shared}", segment.tensor);
                    }
                }
                assert!(cpu.contents(slots[0], &wants[1]).is_err(), "a slot of something else");
            }
        }
    }
}
