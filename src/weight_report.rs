//! Which module is held in what format.

use halfbyte_backend::{DType, Format, Kind, Want};

/// A matrix of the model and how it will be held.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WeightReport {
    /// The module, as transformers names it: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `nf4`, `fp4`, `float16`, `bfloat16` or `float32`.
    pub format: String,
    /// For 4-bit formats: weights that share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocksize: Option<usize>,
    /// For 4-bit formats: whether the scales are quantized, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub double_quant: Option<bool>,
}

/// The matrices among what a block wants.
pub(crate) fn weights(wants: &[Want]) -> Vec<WeightReport> {
    let shapes = wants.iter().filter_map(|want| match &want.kind {
        Kind::Linear(shape) => Some(shape),
        _ => None,
    });
    let segments = shapes.flat_map(|shape| &shape.segments);
    segments
        .map(|segment| {
            let name = segment.tensor.strip_suffix(".weight").unwrap_or(&segment.tensor).to_owned();
            let dense = |format: &str| (format.to_owned(), None);
            let (format, quant) = match segment.format {
                Format::Dense(DType::F32) => dense("float32"),
                Format::Dense(DType::F16) => dense("float16"),
                Format::Dense(DType::Bf16) => dense("bfloat16"),
                Format::Quant(format) => (format.quant_type.to_string(), Some(format)),
            };
            WeightReport {
                name,
                format,
                blocksize: quant.map(|quant| quant.blocksize),
                double_quant: quant.map(|quant| quant.double_quant),
            }
        })
        .collect()
}
