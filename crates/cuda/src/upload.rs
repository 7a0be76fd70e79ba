//! Weights from their source to their buffers.

use crate::held::WeightBuffers;
use crate::kernels::GROUP;
use crate::kernels::variant::Elements;
use crate::pack::{codes_row, dense_row};
use crate::staging::Uploader;
use crate::weight::{NESTED_BLOCK, Run, WeightLayout, runs, unsupported};
use cubecl::prelude::Runtime;
use cubecl::server::Handle;
use halfbyte_backend::{Canonical, DType, Fault, Format, LinearShape, NormShape, WeightSource};
use halfbyte_quant::{Absmax, Quantized};

impl<R: Runtime> Uploader<'_, R> {
    /// Fills the buffers of a linear layer, one segment at a time.
    pub(crate) async fn linear(
        &self,
        layout: &WeightLayout,
        buffers: &WeightBuffers,
        shape: &LinearShape,
        source: &dyn WeightSource,
    ) -> Result<(), Fault> {
        let mut tables = Tables::new(layout, shape);
        let mut bias_at = vec![0; shape.segments.len()];
        let runs = runs(shape);
        for (index, segment) in shape.segments.iter().enumerate() {
            let own = runs.iter().filter(|run| run.segment == index);
            match (source.segment(segment).await?, segment.format) {
                (Canonical::Quantized(tensor), Format::Quant(_)) => {
                    check(&tensor, &segment.tensor, segment.rows * segment.cols, layout)?;
                    tables.add(self.device, &segment.tensor, index, &tensor)?;
                    for run in own {
                        self.rows(buffers, layout, run, |row, out| {
                            codes_row(&tensor, row, layout.cols, out)
                        })?;
                    }
                }
                (Canonical::Dense { dtype, bytes }, Format::Dense(wanted)) if dtype == wanted => {
                    let size = DType::size(dtype) as usize;
                    if bytes.len() != segment.rows * segment.cols * size {
                        return Err(Fault::Source(format!(
                            "{}: {} bytes for {} x {} of {dtype:?}",
                            segment.tensor,
                            bytes.len(),
                            segment.rows,
                            segment.cols
                        )));
                    }
                    for run in own {
                        self.rows(buffers, layout, run, |row, out| {
                            dense_row(&bytes, size, row, layout.cols, out);
                        })?;
                    }
                }
                _ => {
                    return Err(Fault::Source(format!(
                        "{} did not come as {:?}",
                        segment.tensor, segment.format
                    )));
                }
            }
            bias_at[index] = tables.bias.len();
            if layout.bias {
                match &segment.bias {
                    Some(name) => tables.bias.extend(source.vector(name, segment.rows).await?),
                    None => tables.bias.resize(tables.bias.len() + segment.rows, 0.0),
                }
            }
        }
        let (scales, state) = tables.finish(&bias_at);
        self.write(&buffers.scales, &scales)?;
        self.write(&buffers.state, &state)?;
        Ok(())
    }

    /// Fills the weight of a norm, and its bias.
    pub(crate) async fn norm(
        &self,
        handle: &Handle,
        shape: &NormShape,
        source: &dyn WeightSource,
    ) -> Result<(), Fault> {
        let mut values = Vec::new();
        for name in std::iter::once(&shape.weight).chain(&shape.bias) {
            let vector = source.vector(name, shape.len).await?;
            if vector.len() != shape.len {
                return Err(Fault::Source(format!("{name}: {} values, not {}", vector.len(), shape.len)));
            }
            values.extend(vector);
            values.resize(values.len().next_multiple_of(GROUP), 0.0);
        }
        self.write(handle, bytemuck::cast_slice(&values))?;
        Ok(())
    }

    /// Packs and writes one run of rows, as many at a time as fit the staging buffer.
    fn rows(
        &self,
        buffers: &WeightBuffers,
        layout: &WeightLayout,
        run: &Run,
        mut pack: impl FnMut(usize, &mut Vec<u8>),
    ) -> Result<(), Fault> {
        let quads = layout.row_quads();
        let chunk_rows = Self::chunk_rows(quads).min(run.count.max(1));
        let mut packed = Vec::with_capacity(chunk_rows * quads * 16);
        let mut done = 0;
        while done < run.count {
            let count = chunk_rows.min(run.count - done);
            packed.clear();
            for row in done..done + count {
                pack(run.from + row, &mut packed);
            }
            self.write_rows(&buffers.codes, &packed, quads, run.at + done * run.step, run.step)?;
            done += count;
        }
        Ok(())
    }
}

/// The small arrays of a layer, gathered over its segments.
pub(crate) struct Tables<'a> {
    layout: &'a WeightLayout,
    shape: &'a LinearShape,
    codebook: Option<[f32; 16]>,
    map: Option<Box<[f32; 256]>>,
    /// `[blocks / 256, 2]`
    pairs: Vec<f32>,
    /// Nested: one byte a block. Plain: the four bytes of an f32.
    absmax: Vec<u8>,
    /// Segment by segment.
    pub(crate) bias: Vec<f32>,
}

impl<'a> Tables<'a> {
    pub(crate) fn new(layout: &'a WeightLayout, shape: &'a LinearShape) -> Self {
        Self {
            layout,
            shape,
            codebook: None,
            map: None,
            pairs: Vec::new(),
            absmax: Vec::new(),
            bias: Vec::new(),
        }
    }

    /// Adds the scales of segment `index`.
    pub(crate) fn add(
        &mut self,
        device: &str,
        name: &str,
        index: usize,
        tensor: &Quantized,
    ) -> Result<(), Fault> {
        if self.codebook.get_or_insert(tensor.code).map(f32::to_bits) != tensor.code.map(f32::to_bits) {
            return Err(unsupported(
                device,
                format!("{name}: a codebook other than that of its stacked neighbours"),
            ));
        }
        let blocks = self.layout.segment_blocks[index + 1];
        match &tensor.absmax {
            Absmax::Plain(values) => {
                self.absmax.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                self.absmax.resize(blocks * 4, 0);
            }
            Absmax::Nested { codes, absmax, offset, code, blocksize } => {
                if *blocksize != NESTED_BLOCK {
                    return Err(unsupported(
                        device,
                        format!("{name}: nested blocks of {blocksize}, not {NESTED_BLOCK}"),
                    ));
                }
                if self.map.get_or_insert_with(|| code.clone()) != code {
                    return Err(unsupported(
                        device,
                        format!("{name}: an 8-bit map other than its stacked neighbours'"),
                    ));
                }
                self.absmax.extend_from_slice(codes);
                self.absmax.resize(blocks, 0);
                self.pairs.extend(absmax.iter().flat_map(|&absmax| [absmax, *offset]));
            }
        }
        Ok(())
    }

    /// The bytes of the scales and the state. `bias_at` is where each segment's bias begins.
    pub(crate) fn finish(self, bias_at: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let mut scales = Vec::new();
        if let Elements::Codes { .. } = self.layout.elements {
            for row in 0..self.layout.rows {
                let (segment, row) = self.shape.source_row(row);
                let first =
                    self.layout.segment_blocks[segment] * self.layout.blocksize + row * self.layout.cols;
                scales.extend_from_slice(&(first as u32).to_le_bytes());
            }
            scales.extend_from_slice(&self.absmax);
        }
        let mut state: Vec<f32> = self.codebook.into_iter().flatten().collect();
        if let Some(map) = &self.map {
            state.extend_from_slice(map.as_slice());
        }
        state.extend_from_slice(&self.pairs);
        state.resize(self.layout.bias_at, 0.0);
        if self.layout.bias {
            state.extend((0..self.layout.rows).map(|row| {
                let (segment, row) = self.shape.source_row(row);
                self.bias[bias_at[segment] + row]
            }));
        }
        (scales, state.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// Checks that a tensor is what its segment said.
pub(crate) fn check(tensor: &Quantized, name: &str, len: usize, layout: &WeightLayout) -> Result<(), Fault> {
    tensor.check().map_err(|error| Fault::Source(format!("{name}: {error}")))?;
    let nested = matches!(tensor.absmax, Absmax::Nested { .. });
    if tensor.len != len || tensor.blocksize != layout.blocksize || nested != layout.nested {
        return Err(Fault::Source(format!(
            "{name}: {} elements in blocks of {} (double quantization: {nested}), not {len} in blocks of {} ({})",
            tensor.len, tensor.blocksize, layout.blocksize, layout.nested
        )));
    }
    Ok(())
}
