//! The linear product, as decoding (one row) and prompts (128 rows) call it.
//!
//! Each decode line says how many bytes of weights a second it reads. The control is `read`: all threads
//! summing a buffer as large as the weights that do not fit in the caches, which is what memory gives.
//! `HALFBYTE_CPU` chooses the kernels.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use halfbyte_backend::{
    Act, Answer, Backend, Canonical, Caps, Fault, Format, Fut, Input, Kind, LinearShape, LinearStep, Output,
    Place, Pre, Program, Purpose, Reg, Rows, Segment, Step, Stretch, Want, WantId, WeightSource,
    random::Stream,
};
use halfbyte_cpu::CpuBackend;
use halfbyte_quant::{QuantSpec, Source, quantize};
use pollster::block_on;
use rayon::prelude::*;
use std::borrow::Cow;
use std::hint::black_box;

/// Weights made on the fly, the same for every segment.
struct Made;

impl WeightSource for Made {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let mut stream = Stream::new(1);
            let few: Vec<f32> = (0..65_537).map(|_| stream.normal() * 0.02).collect();
            let values: Vec<f32> = few.iter().cycle().take(segment.rows * segment.cols).copied().collect();
            let quantized = quantize(Source::F32(&values), QuantSpec::default())
                .map_err(|fault| Fault::Source(fault.to_string()))?;
            Ok(Canonical::Quantized(Cow::Owned(quantized)))
        })
    }

    fn vector<'a>(&'a self, _: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move { Ok(vec![1.0; len]) })
    }
}

/// A program of `copies` products of `[rows, cols]`, each with weights of its own so that no cache holds
/// them all, and the bytes that it reads.
fn program(
    backend: &CpuBackend,
    rows: usize,
    cols: usize,
    copies: u32,
    caps: Caps,
) -> (Box<dyn Program>, u64) {
    let segment = Segment {
        tensor: "weight".into(),
        rows,
        cols,
        format: Format::Quant(QuantSpec::default().into()),
        bias: None,
        transposed: false,
    };
    let kind = Kind::Linear(LinearShape::single(segment));
    let bytes = backend.layout().want(&kind).expect("a plain matrix");
    let wants: Vec<Want> = (0..copies)
        .map(|copy| Want { name: format!("weight {copy}"), purpose: Purpose::Weights, kind: kind.clone() })
        .collect();
    let step = |copy| {
        Step::Linear(LinearStep {
            input: Reg(0),
            pre: Pre::default(),
            weight: WantId(copy),
            act: Act::Identity,
            gated: false,
            residual: None,
            out: Reg(1),
            at: 0,
        })
    };
    let stretch = Stretch {
        wants,
        steps: (0..copies).map(step).collect(),
        widths: vec![cols, rows],
        inputs: vec![Reg(0)],
        outputs: vec![Reg(1)],
    };
    let slots = block_on(backend.reserve(&stretch.wants)).expect("memory");
    for (slot, want) in slots.iter().zip(&stretch.wants) {
        block_on(backend.upload(*slot, want, &Made)).expect("weights");
    }
    (block_on(backend.compile(&stretch, &slots, caps)).expect("a program"), bytes * u64::from(copies))
}

fn submit(program: &mut dyn Program, hidden: &[f32], places: &[Place]) -> Answer {
    let rows = Rows { input: Input::Hidden(hidden), places, output: Output::Nothing };
    block_on(program.submit(&rows).expect("a valid request")).expect("an answer")
}

fn places(rows: usize) -> Vec<Place> {
    (0..rows as u32).map(|position| Place { sequence: 0, position, token_type: 0 }).collect()
}

fn linear(criterion: &mut Criterion) {
    let backend = CpuBackend::new().expect("a CPU");
    println!("kernels: {}", backend.path());
    let mut stream = Stream::new(2);

    let mut group = criterion.benchmark_group("decode");
    let memory = vec![1u64; 256 << 17];
    group.throughput(Throughput::Bytes(8 * memory.len() as u64));
    group.bench_function("read", |bencher| {
        bencher.iter(|| memory.par_chunks(1 << 16).map(|chunk| chunk.iter().sum::<u64>()).sum::<u64>())
    });
    for (rows, cols) in [(4096, 4096), (11008, 4096)] {
        for batch in [1, 4, 8] {
            let caps = Caps { rows: batch, outputs: 0 };
            let (mut program, bytes) =
                program(&backend, rows, cols, (256 << 20) / (rows * cols / 2) as u32, caps);
            let hidden: Vec<f32> = (0..batch * cols).map(|_| stream.normal()).collect();
            group.throughput(Throughput::Bytes(bytes));
            group.bench_function(format!("{rows}x{cols}, {batch} rows"), |bencher| {
                bencher.iter(|| black_box(submit(&mut *program, &hidden, &places(batch))))
            });
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for (rows, cols) in [(4096, 4096), (11008, 4096)] {
        let (mut program, _) = program(&backend, rows, cols, 1, Caps { rows: 128, outputs: 0 });
        let hidden: Vec<f32> = (0..128 * cols).map(|_| stream.normal()).collect();
        // Elements are floating-point operations.
        group.throughput(Throughput::Elements(2 * 128 * (rows * cols) as u64));
        group.bench_function(format!("{rows}x{cols}, 128 rows"), |bencher| {
            bencher.iter(|| black_box(submit(&mut *program, &hidden, &places(128))))
        });
    }
    group.finish();
}

criterion_group!(benches, linear);
criterion_main!(benches);
