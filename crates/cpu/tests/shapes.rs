//! The linear product of every fast path against the reference, where blocks, strips, tiles and groups of
//! rows begin and end.

use half::{bf16, f16};
use halfbyte_backend::random::Stream;
use halfbyte_backend::{
    Act, Answer, Arrangement, Backend, Canonical, Caps, DType, Fault, Format, Fut, Input, Kind, LinearShape,
    LinearStep, Output, Place, Pre, Program, Purpose, Reg, Rows, Segment, Step, Stretch, Want, WantId,
    WeightSource,
};
use halfbyte_cpu::{CpuBackend, CpuOptions, Math, Path};
use halfbyte_quant::{QuantSpec, QuantType, Source, quantize};
use pollster::block_on;
use std::borrow::Cow;

/// Normal weights; segments differ by their names.
struct Normal;

impl WeightSource for Normal {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let mut stream = Stream::new(segment.tensor.len() as u64);
            let values: Vec<f32> = (0..segment.rows * segment.cols).map(|_| stream.normal()).collect();
            let bytes: Vec<u8> = match segment.format {
                Format::Dense(DType::F32) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Format::Dense(DType::F16) => {
                    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
                }
                Format::Dense(DType::Bf16) => {
                    values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
                }
                Format::Quant(format) => {
                    let quantized = quantize(Source::F32(&values), format.into())
                        .map_err(|fault| Fault::Source(fault.to_string()))?;
                    return Ok(Canonical::Quantized(Cow::Owned(quantized)));
                }
            };
            let Format::Dense(dtype) = segment.format else { unreachable!() };
            Ok(Canonical::Dense { dtype, bytes: Cow::Owned(bytes) })
        })
    }

    fn vector<'a>(&'a self, _: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move { Ok((0..len).map(|i| i as f32 * 0.01 - 0.2).collect()) })
    }
}

/// `[batch, rows / 2]`: a gated product of two interleaved segments, the second without a bias.
fn product(backend: &CpuBackend, format: Format, rows: usize, cols: usize, hidden: &[f32]) -> Vec<f32> {
    product_of(&Normal, backend, format, rows, cols, hidden)
}

/// [`product`] with weights from `source`.
fn product_of(
    source: &dyn WeightSource,
    backend: &CpuBackend,
    format: Format,
    rows: usize,
    cols: usize,
    hidden: &[f32],
) -> Vec<f32> {
    with_product(source, backend, format, [rows, cols], hidden, hidden_of)
}

/// What a submission answers.
fn hidden_of(program: &mut dyn Program, rows: &Rows<'_>) -> Vec<f32> {
    let answer = block_on(program.submit(rows).unwrap()).unwrap();
    let Answer::Hidden(values) = answer else { panic!("{answer:?}") };
    values
}

/// What `run` makes of the program of [`product_of`].
fn with_product<T>(
    source: &dyn WeightSource,
    backend: &CpuBackend,
    format: Format,
    [rows, cols]: [usize; 2],
    hidden: &[f32],
    run: impl FnOnce(&mut dyn Program, &Rows<'_>) -> T,
) -> T {
    let segment = |tensor: &str, bias: Option<&str>| Segment {
        tensor: tensor.into(),
        rows: rows / 2,
        cols,
        format,
        bias: bias.map(str::to_owned),
        transposed: false,
    };
    let segments = vec![segment("gate", Some("bias")), segment("up", None)];
    let kind = Kind::Linear(LinearShape::new(segments, Arrangement::Interleaved));
    let want = Want { name: "gate_up".into(), purpose: Purpose::Weights, kind };
    let step = LinearStep {
        input: Reg(0),
        pre: Pre::default(),
        weight: WantId(0),
        act: Act::Silu,
        gated: true,
        residual: None,
        out: Reg(1),
        at: 0,
    };
    let stretch = Stretch {
        wants: vec![want],
        steps: vec![Step::Linear(step)],
        widths: vec![cols, rows / 2],
        inputs: vec![Reg(0)],
        outputs: vec![Reg(1)],
    };
    let batch = hidden.len() / cols;
    let slots = block_on(backend.reserve(&stretch.wants)).unwrap();
    block_on(backend.upload(slots[0], &stretch.wants[0], source)).unwrap();
    let caps = Caps { rows: batch, outputs: 0 };
    let mut program = block_on(backend.compile(&stretch, &slots, caps)).unwrap();
    let places: Vec<Place> =
        (0..batch as u32).map(|position| Place { sequence: 0, position, token_type: 0 }).collect();
    let rows = Rows { input: Input::Hidden(hidden), places: &places, output: Output::Hidden };
    let made = run(&mut *program, &rows);
    drop(program);
    backend.release(&slots);
    made
}

fn quant(quant_type: QuantType, blocksize: usize, double_quant: bool) -> Format {
    Format::Quant(QuantSpec { quant_type, blocksize, double_quant }.into())
}

#[test]
fn products_agree_at_every_boundary() {
    let reference = CpuBackend::scalar();
    let subjects = subjects(Math::Exact);
    let formats = [
        Format::Dense(DType::F32),
        Format::Dense(DType::F16),
        Format::Dense(DType::Bf16),
        quant(QuantType::Nf4, 64, true),
        quant(QuantType::Fp4, 32, false),
        quant(QuantType::Nf4, 256, true),
    ];
    // Columns: fewer than a vector, odd, half a block more than some, more than a strip of 4 rows.
    let shapes = [(6, 7), (38, 33), (18, 96), (70, 160), (2, 1), (34, 1120), (10, 4160)];
    let mut stream = Stream::new(5);
    for format in formats {
        for (rows, cols) in shapes {
            for batch in [1, 2, 3, 4, 5, 8, 9, 67] {
                let hidden: Vec<f32> = (0..batch * cols).map(|_| stream.normal()).collect();
                let right = product(&reference, format, rows, cols, &hidden);
                for subject in &subjects {
                    let found = product(subject, format, rows, cols, &hidden);
                    let difference: f64 =
                        right.iter().zip(&found).map(|(r, f)| f64::from(r - f).powi(2)).sum();
                    let size: f64 = right.iter().map(|&r| f64::from(r).powi(2)).sum();
                    let error = (difference / size).sqrt();
                    let path = subject.path();
                    assert!(error < 2e-6, "{path}: {format:?} {rows}x{cols}, {batch} rows: {error:e}");
                }
            }
        }
    }
}

/// Backends of every fast path that is to be walked.
fn subjects(math: Math) -> Vec<CpuBackend> {
    let options = |path| CpuOptions { path: Some(path), math: Some(math), ..CpuOptions::default() };
    let paths = Path::walk().unwrap().into_iter().filter(|&path| path != Path::Scalar);
    let subjects: Vec<_> = paths.map(|path| CpuBackend::with(options(path)).unwrap()).collect();
    assert!(!subjects.is_empty(), "the scalar path is the reference of these tests");
    subjects
}

fn error(right: &[f32], found: &[f32]) -> f64 {
    let difference: f64 = right.iter().zip(found).map(|(r, f)| f64::from(r - f).powi(2)).sum();
    let size: f64 = right.iter().map(|&r| f64::from(r).powi(2)).sum();
    (difference / size).sqrt()
}

/// Rows for two segments of whole groups, an odd number of groups among them, and columns of whole blocks: scales of
/// scales change within groups.
const WHOLE: [(usize, usize); 6] = [(32, 64), (96, 1152), (64, 4160), (160, 576), (32, 11008), (32, 16640)];

/// [`Normal`], with a codebook of whole 120ths, which bytes hold exactly.
struct Whole;

impl WeightSource for Whole {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let canonical = Normal.segment(segment).await?;
            let Canonical::Quantized(quantized) = canonical else { return Ok(canonical) };
            let mut quantized = quantized.into_owned();
            let levels = [-120, -97, -80, -61, -43, -29, -13, 0, 5, 19, 31, 47, 60, 75, 99, 120];
            quantized.code = levels.map(|level| level as f32 / 120.0);
            Ok(Canonical::Quantized(Cow::Owned(quantized)))
        })
    }

    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        Normal.vector(name, len)
    }
}

#[test]
fn what_bytes_hold_exactly_is_multiplied_exactly() {
    let reference = CpuBackend::scalar();
    let subjects = subjects(Math::Fast);
    let mut stream = Stream::new(8);
    for nested in [true, false] {
        let format = quant(QuantType::Nf4, 64, nested);
        for (rows, cols) in WHOLE {
            for batch in [1, 2, 3, 5, 6, 7, 12, 67] {
                // Whole numbers up to ±127 in every block; in some, whole numbers of another unit.
                let mut hidden: Vec<f32> = (0..batch * cols)
                    .map(|_| (stream.normal() * 40.0).round().clamp(-126.0, 126.0))
                    .collect();
                for (index, block) in hidden.chunks_exact_mut(64).enumerate() {
                    block[index % 64] = if index % 3 == 0 { 127.0 } else { -127.0 };
                    let unit = if index % 7 == 0 { 0.0625 } else { 0.03125 };
                    block.iter_mut().for_each(|x| *x *= unit);
                }
                let right = product_of(&Whole, &reference, format, rows, cols, &hidden);
                for subject in &subjects {
                    let found = product_of(&Whole, subject, format, rows, cols, &hidden);
                    let (path, error) = (subject.path(), error(&right, &found));
                    // Values of codes of scales may be rounded to eleven bits, 2^-12 of each at most.
                    assert!(
                        error < if nested { 1e-4 } else { 2e-6 },
                        "{path}: {format:?} {rows}x{cols}, {batch} rows: {error:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn fast_products_are_close_and_do_not_depend_on_the_batch() {
    let reference = CpuBackend::scalar();
    let subjects = subjects(Math::Fast);
    let mut stream = Stream::new(6);
    for (rows, cols) in WHOLE {
        for format in [quant(QuantType::Nf4, 64, true), quant(QuantType::Fp4, 64, false)] {
            let batch = 7;
            let mut hidden: Vec<f32> = (0..batch * cols).map(|_| stream.normal()).collect();
            // Outliers in some channels of every row.
            for row in hidden.chunks_exact_mut(cols) {
                row[5] *= 1000.0;
                row[cols / 2] *= 300.0;
            }
            let right = product(&reference, format, rows, cols, &hidden);
            for subject in &subjects {
                let path = subject.path();
                let found = product(subject, format, rows, cols, &hidden);
                let error = error(&right, &found);
                assert!(error < 2e-2, "{path}: {format:?} {rows}x{cols}: {error:e}");
                let one: Vec<f32> = hidden
                    .chunks_exact(cols)
                    .flat_map(|hidden| product(subject, format, rows, cols, hidden))
                    .collect();
                assert!(one == found, "{path}: {format:?} {rows}x{cols}: one row at a time differs");
            }
        }
    }
}

#[test]
fn a_profile_tells_what_a_step_reads_and_changes_nothing() {
    let backend = CpuBackend::new().unwrap();
    let format = quant(QuantType::Nf4, 64, true);
    let hidden = vec![0.5; 64];
    with_product(&Normal, &backend, format, [96, 64], &hidden, |program, rows| {
        let before = hidden_of(program, rows);
        let costs = block_on(program.profile(rows)).unwrap();
        assert_eq!(program.counts(), (1, 1));
        assert_eq!(hidden_of(program, rows), before);
        let [cost] = costs.as_slice() else { panic!("{costs:?}") };
        assert_eq!((cost.class.as_str(), cost.dispatches), ("norm_gate_up", 1));
        assert!(cost.seconds > 0.0 && cost.seconds < 10.0, "{cost:?}");
        // Two matrices of half the rows, each with a map of its codes of scales; a bias for each row.
        let matrix = halfbyte_quant::bytes_for(48 * 64, QuantSpec::default()) + 1024;
        assert_eq!(cost.bytes, 2 * matrix + 96 * 4);
    });
}
