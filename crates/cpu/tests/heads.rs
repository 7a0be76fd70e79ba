//! Output heads in bytes: what the fast arithmetic makes of dense matrices that are a model's head, against the reference.

use half::{bf16, f16};
use halfbyte_backend::random::Stream;
use halfbyte_backend::{
    Answer, Backend, Canonical, Caps, DType, Embed, Fault, Footprint, Format, Fut, Head, Input, Kind,
    LinearShape, Output, Place, Pre, Program, Purpose, Reg, Rows, Segment, Step, Stretch, Want, WantId,
    WeightSource,
};
use halfbyte_cpu::{CpuBackend, CpuOptions, Math, Path};
use pollster::block_on;
use std::borrow::Cow;

/// The values of one matrix.
struct Given(Vec<f32>);

impl WeightSource for Given {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let Format::Dense(dtype) = segment.format else {
                return Err(Fault::Source("a head that is not dense".into()));
            };
            let values = self.0.iter();
            let bytes: Vec<u8> = match dtype {
                DType::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
                DType::F16 => values.flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
                DType::Bf16 => values.flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            };
            Ok(Canonical::Dense { dtype, bytes: Cow::Owned(bytes) })
        })
    }

    fn vector<'a>(&'a self, name: &'a str, _: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move { Err(Fault::Source(format!("no {name}"))) })
    }
}

/// Shape of a head.
#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    dtype: DType,
}

/// The want of a head, or of a dense matrix that is none.
fn want(Shape { rows, cols, dtype }: Shape, head: bool) -> Want {
    let format = Format::Dense(dtype);
    let segment = Segment { tensor: "lm_head".into(), rows, cols, format, bias: None, transposed: false };
    let shape = LinearShape { head, ..LinearShape::single(segment) };
    Want { name: "lm_head".into(), purpose: Purpose::Embeddings, kind: Kind::Linear(shape) }
}

/// A head alone, whose inputs are given.
fn program(backend: &CpuBackend, want: &Want, weights: &Given, batch: usize) -> Box<dyn Program> {
    let Kind::Linear(shape) = &want.kind else { unreachable!() };
    let head = Head { input: Reg(0), pre: Pre::default(), weight: WantId(0), scale: 1.0, softcap: None };
    let stretch = Stretch {
        wants: vec![want.clone()],
        steps: vec![Step::Head(head)],
        widths: vec![shape.cols()],
        inputs: vec![Reg(0)],
        outputs: vec![],
    };
    let slots = block_on(backend.reserve(&stretch.wants)).unwrap();
    block_on(backend.upload(slots[0], want, weights)).unwrap();
    block_on(backend.compile(&stretch, &slots, Caps { rows: batch, outputs: batch })).unwrap()
}

/// `[batch, rows]` of `hidden`, `[batch, cols]`, after a submission that leaves NaN wherever it writes.
fn logits(program: &mut dyn Program, hidden: &[f32], batch: usize) -> Vec<f32> {
    let places: Vec<Place> =
        (0..batch as u32).map(|position| Place { sequence: 0, position, token_type: 0 }).collect();
    let wanted: Vec<u32> = (0..batch as u32).collect();
    let mut submit = |hidden: &[f32]| {
        let rows = Rows { input: Input::Hidden(hidden), places: &places, output: Output::Logits(&wanted) };
        let answer = block_on(program.submit(&rows).unwrap()).unwrap();
        let Answer::Logits(values) = answer else { panic!("{answer:?}") };
        values
    };
    let poison = submit(&vec![f32::NAN; hidden.len()]);
    assert!(poison.iter().all(|value| value.is_nan()));
    submit(hidden)
}

/// Backends of every fast path that is to be walked.
fn subjects() -> Vec<CpuBackend> {
    let options = |path| CpuOptions {
        path: Some(path),
        math: Some(Math::Fast),
        threads: Some(3),
        ..Default::default()
    };
    let paths = Path::walk().unwrap().into_iter().filter(|&path| path != Path::Scalar);
    paths.map(|path| CpuBackend::with(options(path)).unwrap()).collect()
}

fn error(right: &[f32], found: &[f32]) -> f64 {
    let difference: f64 = right.iter().zip(found).map(|(r, f)| f64::from(r - f).powi(2)).sum();
    let size: f64 = right.iter().map(|&r| f64::from(r).powi(2)).sum();
    (difference / size).sqrt()
}

/// Whole groups and ragged ones, an odd number of them among both; one block and many.
const SHAPES: [(usize, usize, DType); 5] = [
    (32, 64, DType::F16),
    (7, 128, DType::F32),
    (50, 1152, DType::Bf16),
    (257, 576, DType::F16),
    (48, 4160, DType::F16),
];

#[test]
fn what_bytes_hold_exactly_is_multiplied_exactly() {
    let mut stream = Stream::new(11);
    for (rows, cols, dtype) in SHAPES {
        let shape = Shape { rows, cols, dtype };
        // Whole numbers up to ±127 in every block, times a power of two.
        let mut whole = |count: usize| -> Vec<f32> {
            let mut values: Vec<f32> =
                (0..count).map(|_| (stream.normal() * 40.0).round().clamp(-126.0, 126.0)).collect();
            for (index, block) in values.chunks_exact_mut(64).enumerate() {
                block[index % 64] = if index % 3 == 0 { 127.0 } else { -127.0 };
                let unit = if index % 7 == 0 { 0.0625 } else { 0.03125 };
                block.iter_mut().for_each(|x| *x *= unit);
            }
            values
        };
        let weights = Given(whole(rows * cols));
        for batch in [1, 2, 7, 67] {
            let hidden = whole(batch * cols);
            let right = logits(
                &mut *program(&CpuBackend::scalar(), &want(shape, true), &weights, batch),
                &hidden,
                batch,
            );
            for subject in subjects() {
                let mut program = program(&subject, &want(shape, true), &weights, batch);
                let error = error(&right, &logits(&mut *program, &hidden, batch));
                assert!(error < 2e-6, "{}: {shape:?}, {batch} rows: {error:e}", subject.path());
            }
        }
    }
}

#[test]
fn fast_logits_are_close_and_do_not_depend_on_the_batch() {
    let mut stream = Stream::new(12);
    for (rows, cols, dtype) in SHAPES {
        let (shape, batch) = (Shape { rows, cols, dtype }, 7);
        let weights = Given((0..rows * cols).map(|_| stream.normal() * 0.02).collect());
        let mut hidden: Vec<f32> = (0..batch * cols).map(|_| stream.normal()).collect();
        hidden.chunks_exact_mut(cols).for_each(|row| row[5] *= 100.0);
        let right =
            logits(&mut *program(&CpuBackend::scalar(), &want(shape, true), &weights, batch), &hidden, batch);
        for subject in subjects() {
            let path = subject.path();
            let mut all = program(&subject, &want(shape, true), &weights, batch);
            let found = logits(&mut *all, &hidden, batch);
            let error = error(&right, &found);
            assert!((1e-4..2e-2).contains(&error), "{path}: {shape:?}: {error:e}");
            let mut one = program(&subject, &want(shape, true), &weights, 1);
            let single: Vec<f32> =
                hidden.chunks_exact(cols).flat_map(|hidden| logits(&mut *one, hidden, 1)).collect();
            assert!(single == found, "{path}: {shape:?}: one row at a time differs");
        }
    }
}

#[test]
fn only_heads_of_fast_arithmetic_are_held_in_bytes() {
    let exact = CpuBackend::with(CpuOptions { math: Some(Math::Exact), ..Default::default() }).unwrap();
    let bytes = |backend: &CpuBackend, shape, head| {
        let want = want(shape, head);
        let planned = backend.layout().want(&want.kind).unwrap();
        let slots = block_on(backend.reserve(std::slice::from_ref(&want))).unwrap();
        assert_eq!(backend.ledger().footprint(), Footprint::of(Purpose::Embeddings, planned), "{want:?}");
        backend.release(&slots);
        planned
    };
    for (rows, cols, dtype) in SHAPES.into_iter().chain([(50, 100, DType::F16)]) {
        let shape = Shape { rows, cols, dtype };
        let stored = (rows * cols) as u64 * dtype.size();
        assert_eq!(bytes(&exact, shape, true), stored);
        for subject in subjects() {
            assert_eq!(bytes(&subject, shape, false), stored);
            // A byte a weight and bf16 for 64 of them, in whole groups of rows.
            let held = (rows.next_multiple_of(16) * cols) as u64 * 66 / 64;
            assert_eq!(bytes(&subject, shape, true), if cols % 64 == 0 { held } else { stored });
        }
    }
}

#[test]
fn a_head_in_bytes_does_not_pass_for_the_checkpoints() {
    let shape = Shape { rows: 32, cols: 64, dtype: DType::F16 };
    let (want, weights) = (want(shape, true), Given(vec![0.5; 32 * 64]));
    let Kind::Linear(linear) = &want.kind else { unreachable!() };
    for subject in subjects() {
        let slots = block_on(subject.reserve(std::slice::from_ref(&want))).unwrap();
        block_on(subject.upload(slots[0], &want, &weights)).unwrap();
        let contents = subject.contents(slots[0], &want).unwrap();
        assert!(block_on(contents.mapped(&linear.segments[0])).unwrap().is_none());
        let fault = block_on(contents.segment(&linear.segments[0])).unwrap_err();
        assert!(fault.to_string().contains("lm_head is held in bytes"), "{fault}");
    }
}

#[test]
fn a_tied_table_is_looked_up_in_bytes() {
    let shape = Shape { rows: 40, cols: 128, dtype: DType::F16 };
    let want = want(shape, true);
    let mut stream = Stream::new(13);
    let weights = Given((0..40 * 128).map(|_| stream.normal()).collect());
    let embed = Embed { table: WantId(0), scale: 2.0, positions: None, types: None, norm: None, out: Reg(0) };
    let stretch = Stretch {
        wants: vec![want.clone()],
        steps: vec![Step::Embed(embed)],
        widths: vec![128],
        inputs: vec![],
        outputs: vec![Reg(0)],
    };
    for subject in subjects() {
        let slots = block_on(subject.reserve(&stretch.wants)).unwrap();
        block_on(subject.upload(slots[0], &want, &weights)).unwrap();
        let mut program = block_on(subject.compile(&stretch, &slots, Caps { rows: 40, outputs: 0 })).unwrap();
        let tokens: Vec<u32> = (0..40).rev().collect();
        let places: Vec<Place> =
            (0..40).map(|position| Place { sequence: 0, position, token_type: 0 }).collect();
        let rows = Rows { input: Input::Tokens(&tokens), places: &places, output: Output::Hidden };
        let Answer::Hidden(found) = block_on(program.submit(&rows).unwrap()).unwrap() else { panic!() };
        let right: Vec<f32> = (0..40)
            .rev()
            .flat_map(|row| weights.0[row * 128..][..128].iter().map(|value| 2.0 * value))
            .collect();
        let error = error(&right, &found);
        assert!((1e-4..8e-3).contains(&error), "{}: {error:e}", subject.path());
    }
}
