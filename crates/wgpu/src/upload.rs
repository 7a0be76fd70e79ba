//! From canonical bytes to the device's layout.

use crate::gpu::Gpu;
use crate::held::LinearHeld;
use crate::layout::stride;
use crate::linear_plan::{LinearPlan, NESTED, ROW_AT, ScalePlan};
use crate::staging::Writer;
use halfbyte_backend::{
    Arrangement, Canonical, Fault, Format, LinearShape, NormShape, Segment, WeightSource,
};
use halfbyte_quant::{Absmax, DYNAMIC_MAP, Quantized};

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
        let canonical = source.segment(segment).await?;
        check(gpu, segment, &canonical)?;
        for row in 0..segment.rows {
            match &canonical {
                Canonical::Dense { dtype, bytes } => {
                    let len = segment.cols * dtype.size() as usize;
                    row_bytes[..len].copy_from_slice(&bytes[row * len..(row + 1) * len]);
                }
                Canonical::Quantized(quantized) => pack_row(quantized, row, segment.cols, &mut row_bytes),
            }
            let (shard, within) = held.shard_of(layer_row(shape, index, row));
            writer.write(&shard.buffer, within as u64 * plan.row_bytes, &row_bytes).await?;
        }
        if let (Canonical::Quantized(quantized), Some(scales), Some(plane)) =
            (&canonical, &plan.scales, &held.scales)
        {
            tables.add(gpu, shape, scales, index, quantized)?;
            let at = scales.segment_blocks[index];
            match &quantized.absmax {
                Absmax::Nested { codes, .. } => {
                    let mut codes = codes.clone();
                    codes.resize(codes.len().next_multiple_of(4), 0);
                    writer.write(&plane.buffer, at as u64, &codes).await?;
                }
                Absmax::Plain(values) => {
                    writer.write(&plane.buffer, at as u64 * 4, bytemuck::cast_slice(values)).await?;
                }
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
fn check(gpu: &Gpu, segment: &Segment, canonical: &Canonical<'_>) -> Result<(), Fault> {
    let wrong = |what: String| Fault::Source(format!("{}: {what}", segment.tensor));
    match (canonical, segment.format) {
        (Canonical::Dense { dtype, bytes }, Format::Dense(wanted)) => {
            if *dtype != wanted {
                return Err(wrong(format!("is {dtype:?}, not {wanted:?}")));
            }
            let expected = segment.rows as u64 * segment.cols as u64 * dtype.size();
            if bytes.len() as u64 != expected {
                return Err(length(&segment.tensor, bytes.len(), expected as usize));
            }
            Ok(())
        }
        (Canonical::Quantized(quantized), Format::Quant(wanted)) => {
            quantized.check().map_err(|error| wrong(error.to_string()))?;
            if quantized.len != segment.rows * segment.cols {
                return Err(length(&segment.tensor, quantized.len, segment.rows * segment.cols));
            }
            if quantized.blocksize != wanted.blocksize {
                return Err(wrong(format!(
                    "has blocks of {}, not {}",
                    quantized.blocksize, wanted.blocksize
                )));
            }
            match &quantized.absmax {
                Absmax::Nested { .. } if !wanted.double_quant => {
                    Err(wrong("is double-quantized, against its plan".into()))
                }
                Absmax::Plain(_) if wanted.double_quant => {
                    Err(wrong("is not double-quantized, against its plan".into()))
                }
                Absmax::Nested { blocksize, .. } if *blocksize != NESTED => {
                    Err(gpu.info.unsupported(format!(
                        "{} has nested blocks of {blocksize}, not {NESTED}; quantize it anew from its 16-bit \
                     weights",
                        segment.tensor
                    )))
                }
                _ => Ok(()),
            }
        }
        (_, wanted) => Err(wrong(format!("is not {wanted:?}"))),
    }
}

fn length(name: &str, found: usize, expected: usize) -> Fault {
    Fault::Source(format!("{name} has {found} elements, not {expected}"))
}

/// Packs row `row` of a quantized `[_, cols]` into words of eight codes, element `i < 4` of each eight in
/// the low nibble of byte `i`, element `i + 4` in its high nibble. Padding codes are 0.
fn pack_row(quantized: &Quantized, row: usize, cols: usize, out: &mut [u8]) {
    let start = row * cols;
    let whole = if start.is_multiple_of(2) { cols / 8 } else { 0 };
    let packed = &quantized.packed[start / 2..];
    for (word, bytes) in out.chunks_exact_mut(4).zip(packed.chunks_exact(4)).take(whole) {
        // Canonical bytes hold element 2i in the high nibble of byte i.
        word[0] = bytes[0] >> 4 | bytes[2] & 0xf0;
        word[1] = bytes[0] & 15 | bytes[2] << 4;
        word[2] = bytes[1] >> 4 | bytes[3] & 0xf0;
        word[3] = bytes[1] & 15 | bytes[3] << 4;
    }
    out[whole * 4..].fill(0);
    for col in whole * 8..cols {
        let element = start + col;
        let code = quantized.packed[element / 2] >> (4 * (1 - element % 2)) & 15;
        let (word, within) = (col / 8, col % 8);
        out[word * 4 + within % 4] |= code << (within / 4 * 4);
    }
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
        quantized: &Quantized,
    ) -> Result<(), Fault> {
        let segment = &shape.segments[index];
        let first_block = scales.segment_blocks[index];
        let mut header: Vec<u32> = quantized.code.iter().map(|value| value.to_bits()).collect();
        match &quantized.absmax {
            Absmax::Nested { code, absmax, offset, .. } => {
                header.extend(code.iter().map(|value| value.to_bits()));
                for (i, value) in absmax.iter().enumerate() {
                    let at = scales.nested_at + (first_block / NESTED + i) * 2;
                    self.words[at] = value.to_bits();
                    self.words[at + 1] = offset.to_bits();
                }
            }
            Absmax::Plain(_) => header.extend(DYNAMIC_MAP.iter().map(|value| value.to_bits())),
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
        LinearShape { segments: rows.iter().map(segment).collect(), arrangement }
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
                pack_row(&quantized, row, cols, &mut out);
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
