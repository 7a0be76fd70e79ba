//! From canonical bytes to the device's layout.
//!
//! What a source has lying somewhere is read there; only the rest is copied before it is laid out.

use crate::canonical::{Bytes, Data, Scales};
use crate::gpu::Gpu;
use crate::held::LinearHeld;
use crate::layout::stride;
use crate::linear_plan::{LinearPlan, NESTED, ROW_AT, ScalePlan};
use crate::staging::Writer;
use halfbyte_backend::{Arrangement, Fault, Format, LinearShape, NormShape, Segment, WeightSource};
use halfbyte_quant::DYNAMIC_MAP;

/// The layer row that row `row` of segment `segment` becomes: the inverse of
/// [`LinearShape::source_row`].
fn layer_row(shape: &LinearShape, segment: usize, row: usize) -> usize {
    match (shape.arrangement, shape.segments.len()) {
        (Arrangement::Interleaved, 1) => {
            let half = shape.segments[0].rows / 2;
            if row < half { 2 * row } else { 2 * (row - half) + 1 }
        }
        (Arrangement::Interleaved, _) => 2 * row + segment,
        (Arrangement::Stacked, _) => {
            shape.segments[..segment].iter().map(|segment| segment.rows).sum::<usize>() + row
        }
    }
}

/// Fills `held` with the tensors of `shape`, one segment at a time.
pub(crate) async fn linear(
    gpu: &Gpu,
    shape: &LinearShape,
    held: &LinearHeld,
    source: &dyn WeightSource,
) -> Result<(), Fault> {
    let plan = &held.plan;
    let mut writer = Writer::new(gpu);
    let mut tables = Tables::new(plan);
    let mut row_bytes = vec![0; plan.row_bytes as usize];
    for (index, segment) in shape.segments.iter().enumerate() {
        let data = match source.mapped(segment).await? {
            Some(mapped) => Data::Lying(mapped),
            None => Data::Given(source.segment(segment).await?),
        };
        let bytes = data.bytes();
        check(gpu, segment, &bytes)?;
        for row in 0..segment.rows {
            match &bytes {
                Bytes::Dense { dtype, bytes } => {
                    let len = segment.cols * dtype.size() as usize;
                    row_bytes[..len].copy_from_slice(&bytes[row * len..(row + 1) * len]);
                }
                Bytes::Quantized { packed, .. } => pack_row(packed, row, segment.cols, &mut row_bytes),
            }
            let (shard, within) = held.shard_of(layer_row(shape, index, row));
            writer.write(&shard.buffer, within as u64 * plan.row_bytes, &row_bytes).await?;
        }
        if let (Bytes::Quantized { code, scales: from, .. }, Some(scales), Some(plane)) =
            (&bytes, &plan.scales, &held.scales)
        {
            tables.add(gpu, shape, scales, index, code, from)?;
            let at = scales.segment_blocks[index];
            match from {
                Scales::Nested { codes, .. } => {
                    let mut codes = codes.to_vec();
                    codes.resize(codes.len().next_multiple_of(4), 0);
                    writer.write(&plane.buffer, at as u64, &codes).await?;
                }
                Scales::Plain(values) => writer.write(&plane.buffer, at as u64 * 4, values).await?,
            }
        }
        if let Some(name) = &segment.bias {
            let bias = source.vector(name, segment.rows).await?;
            if bias.len() != segment.rows {
                return Err(length(name, bias.len(), segment.rows));
            }
            for (row, value) in bias.iter().enumerate() {
                tables.words[plan.bias_at + layer_row(shape, index, row)] = value.to_bits();
            }
        }
    }
    if let Some(buffer) = &held.tables {
        writer.write(&buffer.buffer, 0, bytemuck::cast_slice(&tables.words)).await?;
    }
    writer.flush().await
}

/// Fills a norm's buffer: the weight, then the bias, each padded with zeros.
pub(crate) async fn norm(
    gpu: &Gpu,
    shape: &NormShape,
    to: &wgpu::Buffer,
    source: &dyn WeightSource,
) -> Result<(), Fault> {
    let padded = stride(shape.len);
    let mut values = vec![0.0f32; 2 * padded];
    for (name, at) in [(Some(&shape.weight), 0), (shape.bias.as_ref(), padded)] {
        let Some(name) = name else { continue };
        let vector = source.vector(name, shape.len).await?;
        if vector.len() != shape.len {
            return Err(length(name, vector.len(), shape.len));
        }
        values[at..at + shape.len].copy_from_slice(&vector);
    }
    let mut writer = Writer::new(gpu);
    writer.write(to, 0, bytemuck::cast_slice(&values)).await?;
    writer.flush().await
}

/// Whether a source gave what the segment asked for.
fn check(gpu: &Gpu, segment: &Segment, found: &Bytes<'_>) -> Result<(), Fault> {
    let wrong = |what: String| Fault::Source(format!("{}: {what}", segment.tensor));
    let len = segment.rows * segment.cols;
    match (found, segment.format) {
        (Bytes::Dense { dtype, bytes }, Format::Dense(wanted)) => {
            if *dtype != wanted {
                return Err(wrong(format!("is {dtype:?}, not {wanted:?}")));
            }
            let expected = len * dtype.size() as usize;
            if bytes.len() != expected {
                return Err(length(&segment.tensor, bytes.len(), expected));
            }
            Ok(())
        }
        (Bytes::Quantized { blocksize, packed, scales, .. }, Format::Quant(wanted)) => {
            if *blocksize != wanted.blocksize {
                return Err(wrong(format!("has blocks of {blocksize}, not {}", wanted.blocksize)));
            }
            if packed.len() != len.div_ceil(2) {
                return Err(length(&segment.tensor, packed.len(), len.div_ceil(2)));
            }
            let blocks = len.div_ceil(*blocksize);
            let count = |what: &str, found: usize, expected: usize| {
                let what = format!("{what} of {}", segment.tensor);
                if found == expected { Ok(()) } else { Err(length(&what, found, expected)) }
            };
            match scales {
                Scales::Nested { .. } if !wanted.double_quant => {
                    Err(wrong("is double-quantized, against its plan".into()))
                }
                Scales::Plain(_) if wanted.double_quant => {
                    Err(wrong("is not double-quantized, against its plan".into()))
                }
                Scales::Nested { blocksize, .. } if *blocksize != NESTED => {
                    Err(gpu.info.unsupported(format!(
                        "{} has nested blocks of {blocksize}, not {NESTED}; quantize it anew from its 16-bit \
                     weights",
                        segment.tensor
                    )))
                }
                Scales::Nested { codes, absmax, .. } => {
                    count("the scales", codes.len(), blocks)?;
                    count("the scales of scales", absmax.len(), blocks.div_ceil(NESTED))
                }
                Scales::Plain(values) => count("the bytes of scales", values.len(), blocks * 4),
            }
        }
        (_, wanted) => Err(wrong(format!("is not {wanted:?}"))),
    }
}

fn length(name: &str, found: usize, expected: usize) -> Fault {
    Fault::Source(format!("{name} has {found} elements, not {expected}"))
}

/// Packs row `row` of codes over a flattened `[_, cols]` into words of eight, element `i < 4` of each eight in
/// the low nibble of byte `i`, element `i + 4` in its high nibble. Padding codes are 0.
fn pack_row(packed: &[u8], row: usize, cols: usize, out: &mut [u8]) {
    let start = row * cols;
    let whole = if start.is_multiple_of(2) { cols / 8 } else { 0 };
    let words = out.as_chunks_mut::<4>().0;
    for (word, bytes) in words.iter_mut().zip(packed[start / 2..].as_chunks::<4>().0).take(whole) {
        *word = permuted(u32::from_le_bytes(*bytes)).to_le_bytes();
    }
    out[whole * 4..].fill(0);
    for col in whole * 8..cols {
        let element = start + col;
        let code = packed[element / 2] >> (4 * (1 - element % 2)) & 15;
        let (word, within) = (col / 8, col % 8);
        out[word * 4 + within % 4] |= code << (within / 4 * 4);
    }
}

/// Eight codes of four canonical bytes, which hold element `2i` in the high nibble of byte `i`, in the device's
/// order. On whole words, so that the compiler permutes many at once.
#[inline(always)]
fn permuted(bytes: u32) -> u32 {
    let even = bytes >> 4 & 0x0f0f_0f0f;
    let odd = bytes & 0x0f0f_0f0f;
    // Elements 0 to 3 are the low half of both, 4 to 7 the high half.
    let low = even & 0xff | (odd & 0xff) << 8 | (even & 0xff00) << 8 | (odd & 0xff00) << 16;
    let high = even >> 16 & 0xff | (odd >> 16 & 0xff) << 8 | even >> 8 & 0x00ff_0000 | odd & 0xff00_0000;
    low | high << 4
}

/// The tables of a layer: codebook, 8-bit map, row starts, biases, nested scales.
struct Tables {
    words: Vec<u32>,
}

impl Tables {
    fn new(plan: &LinearPlan) -> Self {
        Self { words: vec![0; plan.table_words] }
    }

    /// Enters a segment's codebook, map, row starts and nested scales.
    fn add(
        &mut self,
        gpu: &Gpu,
        shape: &LinearShape,
        scales: &ScalePlan,
        index: usize,
        code: &[f32; 16],
        from: &Scales<'_>,
    ) -> Result<(), Fault> {
        let segment = &shape.segments[index];
        let first_block = scales.segment_blocks[index];
        let mut header: Vec<u32> = code.iter().map(|value| value.to_bits()).collect();
        match from {
            Scales::Nested { map, absmax, offset, .. } => {
                header.extend(map.iter().map(|value| value.to_bits()));
                for (i, value) in absmax.iter().enumerate() {
                    let at = scales.nested_at + (first_block / NESTED + i) * 2;
                    self.words[at] = value.to_bits();
                    self.words[at + 1] = offset.to_bits();
                }
            }
            Scales::Plain(_) => header.extend(DYNAMIC_MAP.iter().map(|value| value.to_bits())),
        }
        if index == 0 {
            self.words[..ROW_AT].copy_from_slice(&header);
        } else if self.words[..ROW_AT] != header {
            return Err(gpu.info.unsupported(format!(
                "{} and {} have different codebooks and are one layer here; quantize them anew alike",
                shape.segments[0].tensor, segment.tensor
            )));
        }
        for row in 0..segment.rows {
            let start = (first_block << scales.block_shift) + row * segment.cols;
            self.words[ROW_AT + layer_row(shape, index, row)] = start as u32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::{DType, Segment};
    use halfbyte_quant::{QuantSpec, Source, quantize};

    fn shape(rows: &[usize], arrangement: Arrangement) -> LinearShape {
        let segment = |&rows: &usize| Segment {
            tensor: "t".into(),
            rows,
            cols: 8,
            format: Format::Dense(DType::F32),
            bias: None,
            transposed: false,
        };
        LinearShape::new(rows.iter().map(segment).collect(), arrangement)
    }

    #[test]
    fn layer_rows_invert_source_rows() {
        for shape in [
            shape(&[3, 5, 2], Arrangement::Stacked),
            shape(&[4, 4], Arrangement::Interleaved),
            shape(&[10], Arrangement::Interleaved),
        ] {
            for row in 0..shape.rows() {
                let (segment, within) = shape.source_row(row);
                assert_eq!(layer_row(&shape, segment, within), row);
            }
        }
    }

    #[test]
    fn packed_rows_hold_every_code() {
        for cols in [32, 45, 7, 40] {
            let values: Vec<f32> = (0..3 * cols).map(|i| ((i * 29 % 61) as f32 - 30.0) / 7.0).collect();
            let quantized = quantize(Source::F32(&values), QuantSpec::default()).unwrap();
            let mut out = vec![0xff; stride(cols) / 2];
            for row in 0..3 {
                pack_row(&quantized.packed, row, cols, &mut out);
                for col in 0..stride(cols) {
                    let byte = out[col / 8 * 4 + col % 4];
                    let code = if col % 8 < 4 { byte & 15 } else { byte >> 4 };
                    let element = row * cols + col;
                    let wanted =
                        quantized.packed.get(element / 2).map_or(0, |b| b >> (4 * (1 - element % 2)) & 15);
                    assert_eq!(
                        code,
                        if col < cols { wanted } else { 0 },
                        "row {row}, column {col} of {cols}"
                    );
                }
            }
        }
    }
}
