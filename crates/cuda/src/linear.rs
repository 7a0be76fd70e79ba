//! A linear layer on buffers of the caller's own: for burn's tensors, whose memory is CubeCL's too.

use crate::hardware::Hardware;
use crate::held::WeightBuffers;
use crate::launch::Counts;
use crate::pack::codes_row;
use crate::product::Product;
use crate::sequence::Columns;
use crate::upload::{Tables, check};
use crate::weight::WeightLayout;
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{Arrangement, Fault, Format, LinearShape, QuantFormat, Segment};
use halfbyte_quant::{Absmax, Quantized};

/// What faults name.
const DEVICE: &str = "CubeCL";

/// A linear layer's shape and the kernels for it. The weight is three buffers, [`PackedLinear`]'s.
#[derive(Debug, Clone, PartialEq)]
pub struct CubeLinear {
    layout: WeightLayout,
}

/// A 4-bit weight packed for the device: what its three buffers hold, in words.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedLinear {
    /// The layer's shape.
    pub linear: CubeLinear,
    /// `[out_features, ceil(in_features / 32), 4]` words of eight codes.
    pub codes: Vec<u32>,
    /// Where each row's scales start, then absmax.
    pub scales: Vec<u32>,
    /// Codebook, nested scales and bias.
    pub state: Vec<f32>,
}

impl PackedLinear {
    /// Packs `tensor`, a weight `[out_features, in_features]`, and its bias `[out_features]`.
    ///
    /// # Errors
    /// [`Fault::Source`] if they are not of this shape; [`Fault::Unsupported`] if the kernels lack such blocks.
    pub fn new(
        tensor: &Quantized,
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self, Fault> {
        if let Some(bias) = bias.filter(|bias| bias.len() != out_features) {
            return Err(Fault::Source(format!("a bias of {} for {out_features} features", bias.len())));
        }
        let double_quant = matches!(tensor.absmax, Absmax::Nested { .. });
        let (quant_type, blocksize) = (tensor.quant_type, tensor.blocksize);
        let format = Format::Quant(QuantFormat { quant_type, blocksize, double_quant });
        let segment = Segment {
            tensor: "weight".to_owned(),
            rows: out_features,
            cols: in_features,
            format,
            bias: bias.map(|_| "bias".to_owned()),
            transposed: false,
        };
        let shape = LinearShape::new(vec![segment], Arrangement::Stacked);
        let layout = WeightLayout::of(DEVICE, &shape)?;
        check(tensor, "weight", out_features * in_features, &layout)?;
        let mut codes = Vec::with_capacity(out_features * layout.row_quads() * 16);
        (0..out_features).for_each(|row| codes_row(tensor, row, in_features, &mut codes));
        let mut tables = Tables::new(&layout, &shape);
        tables.add(DEVICE, "weight", 0, tensor)?;
        tables.bias.extend(bias.unwrap_or_default());
        let (scales, state) = tables.finish(&[0]);
        let words =
            |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let floats: Vec<u32> = words(&state);
        let state = floats.into_iter().map(f32::from_bits).collect();
        let (codes, scales) = (words(&codes), words(&scales));
        Ok(Self { linear: CubeLinear { layout }, codes, scales, state })
    }
}

impl CubeLinear {
    /// Output features.
    pub fn out_features(&self) -> usize {
        self.layout.rows
    }

    /// Input features.
    pub fn in_features(&self) -> usize {
        self.layout.cols
    }

    /// Columns that rows of the input must be padded to with zeros: whole groups of 32.
    pub fn padded_features(&self) -> usize {
        crate::program_plan::stride(self.layout.cols)
    }

    /// `out = W input + b` for `rows` rows, in one launch on the client's stream: `input` is
    /// `[rows, padded_features]` and `out` `[rows, out_features]`, both f32 and contiguous; `weight` holds codes,
    /// scales and state.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if a buffer is too small; [`Fault::Lost`] if CubeCL's server is gone.
    pub fn launch<R: Runtime>(
        &self,
        client: &ComputeClient<R>,
        [codes, scales, state]: [Handle; 3],
        input: Handle,
        out: Handle,
        rows: usize,
    ) -> Result<(), Fault> {
        self.launch_on(&Hardware::of(DEVICE, client), client, [codes, scales, state], input, out, rows)
    }

    /// The same as `hardware` has it.
    pub(crate) fn launch_on<R: Runtime>(
        &self,
        hardware: &Hardware,
        client: &ComputeClient<R>,
        [codes, scales, state]: [Handle; 3],
        input: Handle,
        out: Handle,
        rows: usize,
    ) -> Result<(), Fault> {
        let layout = &self.layout;
        let needed = [
            ("codes", &codes, layout.rows * layout.row_quads() * 16),
            ("input", &input, rows * self.padded_features() * 4),
            ("output", &out, rows * layout.rows * 4),
        ];
        for (name, handle, bytes) in needed {
            if handle.size_in_used() < bytes as u64 {
                let found = handle.size_in_used();
                return Err(Fault::Invalid(format!("{found} bytes of {name}, of at least {bytes}")));
            }
        }
        if rows == 0 {
            return Ok(());
        }
        let weight = WeightBuffers { codes, scales, state };
        let places = weight.scales.clone(); // not read: every row is asked for
        let product = Product::new((layout, &weight), input, out, layout.rows);
        let launch = product.launch(hardware, Columns::for_rows(rows));
        launch.submit(DEVICE, client, &places, Counts { rows: rows as u32, outputs: 0, tiles: 0 })
    }
}
