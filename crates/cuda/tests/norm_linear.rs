//! The linear step on the wgpu runtime, software adapter included, against a reference in f64.

use halfbyte_backend::random::Stream;
use halfbyte_backend::{
    Act, Answer, Arrangement, Backend, Canonical, Caps, DType, Fault, Format, Fut, Input, Kind, LinearShape,
    LinearStep, Norm, NormKind, NormShape, Output, Place, Pre, Purpose, QuantFormat, Reg, Rows, Segment,
    Step, Stretch, Want, WantId, WeightSource,
};
use halfbyte_cuda::{CubeBackend, WgpuRuntime};
use halfbyte_quant::{QuantSpec, QuantType, Quantized, Source, quantize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What is added to the result.
#[derive(Clone, Copy, PartialEq)]
enum Residual {
    None,
    Own,
    Out,
}

#[derive(Clone)]
struct Case {
    segments: Vec<usize>,
    cols: usize,
    format: Format,
    arrangement: Arrangement,
    norm: Option<f32>,
    bias: bool,
    residual: Residual,
    act: Act,
    gated: bool,
    batch: usize,
    at: usize,
    outliers: bool,
    seed: u64,
}

impl Case {
    fn new(segments: &[usize], cols: usize, batch: usize) -> Self {
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

fn nf4(blocksize: usize, double_quant: bool) -> Format {
    Format::Quant(QuantFormat { quant_type: QuantType::Nf4, blocksize, double_quant })
}

fn fp4(blocksize: usize, double_quant: bool) -> Format {
    Format::Quant(QuantFormat { quant_type: QuantType::Fp4, blocksize, double_quant })
}

/// Tensors by name.
#[derive(Default)]
struct Weights {
    quantized: BTreeMap<String, Quantized>,
    dense: BTreeMap<String, (DType, Vec<u8>)>,
    vectors: BTreeMap<String, Vec<f32>>,
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

fn normal(stream: &mut Stream) -> f32 {
    (0..6).map(|_| stream.uniform() - 0.5).sum::<f32>() * 1.4
}

/// A case's stretch, its weights, and each layer row in f64.
struct Built {
    stretch: Stretch,
    weights: Weights,
    rows: Vec<Vec<f64>>,
    bias: Vec<f64>,
    norm: Vec<f64>,
}

fn build(case: &Case) -> Built {
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
    let shape = LinearShape { segments, arrangement: case.arrangement };
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

fn activate(act: Act, x: f64) -> f64 {
    match act {
        Act::Identity => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Relu => x.max(0.0),
        Act::Tanh => x.tanh(),
        Act::GeluTanh => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh()),
        Act::Gelu => x * standard_normal_below(x),
    }
}

/// The normal distribution function by its integral from 0: Simpson's rule, good to 1e-12 here.
fn standard_normal_below(x: f64) -> f64 {
    if x.abs() > 12.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let steps = 2000;
    let h = x / f64::from(steps);
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let sum: f64 = (1..steps).map(|i| density(h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    0.5 + (density(0.0) + sum + density(x)) * h / 3.0
}

/// The first output register, `[batch, width]`.
fn reference(case: &Case, built: &Built, inputs: &[Vec<f32>]) -> Vec<f64> {
    let width = built.stretch.widths[1];
    let mut out: Vec<f64> = inputs[1].iter().map(|&value| f64::from(value)).collect();
    for b in 0..case.batch {
        let x: Vec<f64> =
            inputs[0][b * case.cols..][..case.cols].iter().map(|&value| f64::from(value)).collect();
        let h: Vec<f64> = if case.norm.is_some() {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / case.cols as f64;
            let inverse = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
            x.iter().zip(&built.norm).map(|(x, w)| x * inverse * w).collect()
        } else {
            x
        };
        let y: Vec<f64> = built
            .rows
            .iter()
            .zip(&built.bias)
            .map(|(row, bias)| row.iter().zip(&h).map(|(w, h)| w * h).sum::<f64>() + bias)
            .collect();
        let y: Vec<f64> = if case.gated {
            y.chunks(2).map(|pair| activate(case.act, pair[0]) * pair[1]).collect()
        } else {
            y.into_iter().map(|y| activate(case.act, y)).collect()
        };
        for (j, y) in y.into_iter().enumerate() {
            let place = b * width + case.at + j;
            out[place] = y + match case.residual {
                Residual::None => 0.0,
                Residual::Own => f64::from(inputs[2][place]),
                Residual::Out => f64::from(inputs[1][place]),
            };
        }
    }
    out
}

fn places(rows: usize) -> Vec<Place> {
    (0..rows).map(|row| Place { sequence: 0, position: row as u32, token_type: 0 }).collect()
}

/// Runs a case; the relative error of its output register. Panics with a fault's message.
fn run(backend: &CubeBackend<WgpuRuntime>, case: &Case) -> f64 {
    let built = build(case);
    let layout = backend.layout();
    let planned: u64 = built.stretch.wants.iter().map(|want| layout.want(&want.kind).unwrap()).sum();
    let caps = Caps { rows: case.batch, outputs: 1 };
    let before = backend.ledger().footprint();

    let slots = pollster::block_on(backend.reserve(&built.stretch.wants)).unwrap();
    assert_eq!(backend.ledger().footprint().total() - before.total(), planned);
    for (slot, want) in slots.iter().zip(&built.stretch.wants) {
        pollster::block_on(backend.upload(*slot, want, &built.weights)).unwrap();
    }
    let mut program = pollster::block_on(backend.compile(&built.stretch, &slots, caps)).unwrap();
    let planned_program = layout.program(&built.stretch, &caps).unwrap();
    assert_eq!(backend.ledger().footprint().total() - before.total(), planned + planned_program.total());

    let mut stream = Stream::new(case.seed + 1);
    let mut inputs = Vec::new();
    for &width in &built.stretch.widths {
        inputs.push((0..case.batch * width).map(|_| normal(&mut stream)).collect::<Vec<f32>>());
    }
    if case.outliers {
        // Whole features a thousand times larger, as in trained transformers.
        for feature in [0, case.cols / 2, case.cols - 1] {
            inputs[0].iter_mut().skip(feature).step_by(case.cols).for_each(|value| *value *= 1000.0);
        }
    }
    let hidden = inputs.concat();
    let rows = Rows { input: Input::Hidden(&hidden), places: &places(case.batch), output: Output::Hidden };
    let ticket = program.submit(&rows).unwrap();
    let Answer::Hidden(out) = pollster::block_on(ticket).unwrap() else { panic!("no hidden states") };
    assert_eq!(program.counts(), (1, 1));
    pollster::block_on(program.drain()).unwrap();
    drop(program);
    backend.release(&slots);
    assert_eq!(backend.ledger().footprint(), before);

    let expected = reference(case, &built, &inputs);
    assert_eq!(out.len(), expected.len());
    let difference: f64 = out.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (difference / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Opens the device and says which: these tests mean nothing where none is.
fn open() -> CubeBackend<WgpuRuntime> {
    let backend =
        CubeBackend::<WgpuRuntime>::open().expect("these tests need a wgpu adapter; Mesa's lavapipe will do");
    println!("{:?}", backend.info());
    backend
}

fn check(cases: &[(&str, Case)]) {
    let backend = open();
    for (name, case) in cases {
        let error = run(&backend, case);
        println!("{name}: {error:.2e}");
        assert!(error < 2e-6, "{name}: relative error {error:e}");
    }
}

#[test]
fn quantized_linears_of_awkward_shapes() {
    let with = |case: Case, format| Case { format, ..case };
    check(&[
        ("one row", Case::new(&[96], 256, 1)),
        ("seven rows, three segments", Case::new(&[33, 17, 17], 320, 7)),
        ("nine rows, columns of no group", Case::new(&[31], 100, 9)),
        ("blocks across rows", Case::new(&[50], 77, 3)),
        ("257 rows", Case::new(&[19], 96, 257)),
        ("more blocks than one nested block", Case::new(&[130, 70], 192, 2)),
        ("plain absmax", with(Case::new(&[40, 24], 128, 5), nf4(64, false))),
        ("blocks of 32 across rows", with(Case::new(&[40, 24], 75, 5), nf4(32, true))),
        ("blocks of 4096", with(Case::new(&[40], 200, 1), nf4(4096, true))),
        ("FP4", with(Case::new(&[64], 160, 4), fp4(64, true))),
        ("FP4, plain, odd", with(Case::new(&[21], 45, 1), fp4(128, false))),
        ("a single element", Case::new(&[1], 1, 1)),
    ]);
}

#[test]
fn norms_biases_residuals_and_activations() {
    let norm = |case: Case, offset| Case { norm: Some(offset), ..case };
    let mut cases = vec![
        ("norm", norm(Case::new(&[64, 32, 32], 256, 1), 0.0)),
        ("norm of Gemma, ragged", norm(Case::new(&[45], 72, 7), 1.0)),
        ("bias", Case { bias: true, ..Case::new(&[20, 12, 9], 96, 3) }),
        ("residual", Case { residual: Residual::Own, ..Case::new(&[47], 128, 1) }),
        ("accumulates", Case { residual: Residual::Out, ..Case::new(&[47], 128, 6) }),
        ("into columns of a wider register", Case { at: 5, bias: true, ..Case::new(&[30], 64, 2) }),
        (
            "all of it",
            Case {
                bias: true,
                residual: Residual::Out,
                act: Act::Silu,
                at: 3,
                ..norm(Case::new(&[37, 9], 99, 9), 0.5)
            },
        ),
    ];
    for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Tanh] {
        cases.push(("activation", Case { act, bias: true, ..Case::new(&[67], 96, 3) }));
    }
    check(&cases);
}

#[test]
fn gate_and_up() {
    let gated =
        |case: Case| Case { gated: true, act: Act::Silu, arrangement: Arrangement::Interleaved, ..case };
    check(&[
        ("two segments", Case { norm: Some(0.0), ..gated(Case::new(&[43, 43], 160, 1)) }),
        ("two segments, prompt", Case { norm: Some(0.0), ..gated(Case::new(&[43, 43], 160, 11)) }),
        ("one segment of two halves", Case { bias: true, ..gated(Case::new(&[38], 64, 5)) }),
        (
            "ragged columns",
            Case {
                act: Act::GeluTanh,
                bias: true,
                residual: Residual::Own,
                ..gated(Case::new(&[9, 9], 51, 9))
            },
        ),
    ]);
}

#[test]
fn dense_linears() {
    let dense = |dtype, case: Case| Case { format: Format::Dense(dtype), ..case };
    check(&[
        ("f32", dense(DType::F32, Case::new(&[23, 10], 64, 1))),
        ("f32, ragged", dense(DType::F32, Case { bias: true, ..Case::new(&[23], 37, 6) })),
        ("f16", dense(DType::F16, Case { norm: Some(0.0), ..Case::new(&[23, 10], 70, 5) })),
        ("bf16", dense(DType::Bf16, Case::new(&[23, 10], 96, 1))),
    ]);
}

#[test]
fn outliers_of_a_thousand() {
    let outliers = |case: Case| Case { outliers: true, ..case };
    check(&[
        ("one row", outliers(Case::new(&[96], 512, 1))),
        ("normed", outliers(Case { norm: Some(0.0), ..Case::new(&[96, 32], 512, 9) })),
        ("257 rows, ragged", outliers(Case::new(&[40], 203, 257))),
        (
            "gated",
            outliers(Case {
                gated: true,
                act: Act::Silu,
                arrangement: Arrangement::Interleaved,
                norm: Some(0.0),
                ..Case::new(&[40, 40], 256, 3)
            }),
        ),
    ]);
}

#[test]
fn a_layer_of_a_small_model() {
    check(&[
        ("decode", Case { norm: Some(0.0), ..Case::new(&[768, 256, 256], 768, 1) }),
        ("prompt", Case { norm: Some(0.0), ..Case::new(&[768, 256, 256], 768, 13) }),
    ]);
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let backend = open();
    let built = build(&Case::new(&[8], 64, 1));
    let refuse = |stretch: &Stretch, word: &str| {
        let caps = Caps { rows: 1, outputs: 1 };
        match backend.layout().program(stretch, &caps) {
            Err(Fault::Unsupported { what, .. }) => assert!(what.contains(word), "{what}"),
            other => panic!("{word}: {other:?}"),
        }
    };
    let with_pre = |pre: Pre| {
        let mut stretch = built.stretch.clone();
        let Step::Linear(step) = &mut stretch.steps[0] else { unreachable!() };
        step.pre = pre;
        stretch
    };
    let layer_norm = Norm { kind: NormKind::Layer, weight: WantId(1), eps: 1e-5, offset: 0.0 };
    refuse(&with_pre(Pre::norm(layer_norm)), "LayerNorm");
    refuse(&with_pre(Pre { residual: Some(Reg(2)), ..Pre::default() }), "residual");
    let head = halfbyte_backend::Head {
        input: Reg(0),
        pre: Pre::default(),
        weight: WantId(0),
        scale: 1.0,
        softcap: None,
    };
    refuse(&Stretch { steps: vec![Step::Head(head)], ..built.stretch.clone() }, "head");
}
