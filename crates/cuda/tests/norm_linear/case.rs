//! Linear steps with random weights.

use halfbyte_backend::random::Stream;
use halfbyte_backend::{
    Act, Arrangement, Canonical, DType, Format, Fut, Kind, LinearShape, LinearStep, Norm, NormKind,
    NormShape, Pre, Purpose, QuantFormat, Reg, Segment, Step, Stretch, Want, WantId, WeightSource,
};
use halfbyte_quant::{QuantSpec, QuantType, Quantized, Source, quantize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What is added to the result.
#[derive(Clone, Copy, PartialEq)]
pub enum Residual {
    None,
    Own,
    Out,
}

/// A linear step.
#[derive(Clone)]
pub struct Case {
    pub segments: Vec<usize>,
    pub cols: usize,
    pub format: Format,
    pub arrangement: Arrangement,
    pub norm: Option<f32>,
    pub bias: bool,
    pub residual: Residual,
    pub act: Act,
    pub gated: bool,
    pub batch: usize,
    pub at: usize,
    pub outliers: bool,
    pub seed: u64,
}

impl Case {
    /// Segments of these many rows, in NF4 with double quantization.
    pub fn new(segments: &[usize], cols: usize, batch: usize) -> Self {
        Self {
            segments: segments.to_vec(),
            cols,
            format: nf4(64, true),
            arrangement: Arrangement::Stacked,
            norm: None,
            bias: false,
            residual: Residual::None,
            act: Act::Identity,
            gated: false,
            batch,
            at: 0,
            outliers: false,
            seed: (cols * 1000 + batch) as u64,
        }
    }
}

pub fn nf4(blocksize: usize, double_quant: bool) -> Format {
    Format::Quant(QuantFormat { quant_type: QuantType::Nf4, blocksize, double_quant })
}

pub fn fp4(blocksize: usize, double_quant: bool) -> Format {
    Format::Quant(QuantFormat { quant_type: QuantType::Fp4, blocksize, double_quant })
}

/// Tensors by name.
#[derive(Default)]
pub struct Weights {
    pub quantized: BTreeMap<String, Quantized>,
    pub dense: BTreeMap<String, (DType, Vec<u8>)>,
    pub vectors: BTreeMap<String, Vec<f32>>,
}

impl WeightSource for Weights {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            if let Some(tensor) = self.quantized.get(&segment.tensor) {
                return Ok(Canonical::Quantized(Cow::Borrowed(tensor)));
            }
            let (dtype, bytes) = &self.dense[&segment.tensor];
            Ok(Canonical::Dense { dtype: *dtype, bytes: Cow::Borrowed(bytes) })
        })
    }

    fn vector<'a>(&'a self, name: &'a str, _len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move { Ok(self.vectors[name].clone()) })
    }
}

pub fn normal(stream: &mut Stream) -> f32 {
    (0..6).map(|_| stream.uniform() - 0.5).sum::<f32>() * 1.4
}

/// A case's stretch, its weights, and each layer row in f64.
pub struct Built {
    pub stretch: Stretch,
    pub weights: Weights,
    pub rows: Vec<Vec<f64>>,
    pub bias: Vec<f64>,
    pub norm: Vec<f64>,
}

pub fn build(case: &Case) -> Built {
    let mut stream = Stream::new(case.seed);
    let mut weights = Weights::default();
    let mut matrices = Vec::new();
    let mut biases = Vec::new();
    let mut segments = Vec::new();
    for (index, &rows) in case.segments.iter().enumerate() {
        let tensor = format!("w{index}");
        let mut values: Vec<f32> = (0..rows * case.cols).map(|_| normal(&mut stream) * 0.05).collect();
        if case.outliers {
            for _ in 0..values.len().div_ceil(500) {
                let place = stream.below(values.len());
                values[place] *= 1000.0;
            }
        }
        let matrix: Vec<f32> = match case.format {
            Format::Quant(format) => {
                let tensor_4bit = quantize(Source::F32(&values), QuantSpec::from(format)).unwrap();
                let matrix = tensor_4bit.dequantize();
                weights.quantized.insert(tensor.clone(), tensor_4bit);
                matrix
            }
            Format::Dense(dtype) => {
                // Subnormal halves too: they must not be lost.
                values.iter_mut().step_by(7).for_each(|value| *value *= 1e-4);
                let (bytes, matrix): (Vec<u8>, Vec<f32>) = match dtype {
                    DType::F32 => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), values.clone()),
                    DType::F16 => {
                        let halves: Vec<_> = values.iter().map(|&v| half::f16::from_f32(v)).collect();
                        let bytes = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
                        (bytes, halves.iter().map(|v| v.to_f32()).collect())
                    }
                    DType::Bf16 => {
                        let halves: Vec<_> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
                        let bytes = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
                        (bytes, halves.iter().map(|v| v.to_f32()).collect())
                    }
                };
                weights.dense.insert(tensor.clone(), (dtype, bytes));
                matrix
            }
        };
        matrices.push(matrix);
        // A segment in the middle goes without, as some models' key projections do.
        let bias = (case.bias && index != 1).then(|| format!("b{index}"));
        let values: Vec<f32> =
            (0..rows).map(|_| if bias.is_some() { normal(&mut stream) } else { 0.0 }).collect();
        if let Some(name) = &bias {
            weights.vectors.insert(name.clone(), values.clone());
        }
        biases.push(values);
        segments.push(Segment {
            tensor,
            rows,
            cols: case.cols,
            format: case.format,
            bias,
            transposed: false,
        });
    }
    let shape = LinearShape::new(segments, case.arrangement);
    let rows = shape.rows();
    let norm: Vec<f32> = (0..case.cols).map(|_| normal(&mut stream) * 0.3 + 1.0).collect();
    weights.vectors.insert("norm".into(), norm.clone());

    let mut wants =
        vec![Want { name: "w".into(), purpose: Purpose::Weights, kind: Kind::Linear(shape.clone()) }];
    let pre = case.norm.map_or(Pre::default(), |offset| {
        let shape = NormShape { len: case.cols, weight: "norm".into(), bias: None };
        wants.push(Want { name: "norm".into(), purpose: Purpose::Weights, kind: Kind::Norm(shape) });
        Pre::norm(Norm { kind: NormKind::Rms, weight: WantId(1), eps: 1e-5, offset })
    });
    let out = if case.gated { rows / 2 } else { rows };
    let width = case.at + out + 3 * case.at;
    let step = LinearStep {
        input: Reg(0),
        pre,
        weight: WantId(0),
        act: case.act,
        gated: case.gated,
        residual: match case.residual {
            Residual::None => None,
            Residual::Own => Some(Reg(2)),
            Residual::Out => Some(Reg(1)),
        },
        out: Reg(1),
        at: case.at,
    };
    let stretch = Stretch {
        wants,
        steps: vec![Step::Linear(step)],
        widths: vec![case.cols, width, width],
        inputs: vec![Reg(0), Reg(1), Reg(2)],
        outputs: vec![Reg(1)],
    };
    let layer = (0..rows).map(|row| {
        let (segment, row) = shape.source_row(row);
        let row = &matrices[segment][row * case.cols..][..case.cols];
        row.iter().map(|&value| f64::from(value)).collect()
    });
    let layer = layer.collect();
    let bias = (0..rows).map(|row| {
        let (segment, row) = shape.source_row(row);
        f64::from(biases[segment][row])
    });
    let bias = bias.collect();
    let offset = f64::from(case.norm.unwrap_or(0.0));
    let norm = norm.iter().map(|&value| f64::from(value) + offset).collect();
    Built { stretch, weights, rows: layer, bias, norm }
}
