//! How fast the largest linear of Llama-2-7B (4096 x 11008) is quantized and dequantized.
//!
//! Criterion's throughput line counts the 90.2 MB of 16-bit elements on the wide side, whichever
//! way they go. Weights are normal with a standard deviation of 0.02, so that codes are spread as
//! they are in a model. `RAYON_NUM_THREADS` sets the number of threads; the scalar definition
//! runs on one and on a sixteenth of the tensor.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use halfbyte_quant::{QuantSpec, QuantType, Source, quantize, scalar};

const ROWS: usize = 4096;
const COLUMNS: usize = 11008;

/// Normal deviates, as sums of uniform ones from a linear congruential generator.
fn weights(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut uniform = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut normal = || (0..12).map(|_| uniform()).sum::<f32>();
    (0..len).map(|_| 0.02 * normal()).collect()
}

fn benchmark(c: &mut Criterion) {
    let wide = weights(ROWS * COLUMNS);
    let half: Vec<f16> = wide.iter().map(|&x| f16::from_f32(x)).collect();
    let brain: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
    drop(wide);
    let bytes = size_of_val(half.as_slice()) as u64;
    let nf4 = QuantSpec::default();
    let fp4 = QuantSpec { quant_type: QuantType::Fp4, ..nf4 };

    let mut group = c.benchmark_group("4096x11008");
    group.sample_size(10).throughput(Throughput::Bytes(bytes));
    for (name, source, spec) in [
        ("quantize f16 to nf4", Source::F16(&half), nf4),
        ("quantize bf16 to nf4", Source::Bf16(&brain), nf4),
        ("quantize f16 to fp4", Source::F16(&half), fp4),
    ] {
        group.bench_function(name, |b| b.iter(|| quantize(black_box(source), spec)));
    }
    if let Ok(tensor) = quantize(Source::F16(&half), nf4) {
        group.bench_function("dequantize nf4 to f16", |b| {
            b.iter(|| black_box(&tensor).dequantize_f16());
        });
    }
    group.throughput(Throughput::Bytes(bytes / 16));
    let part = Source::F16(&half[..half.len() / 16]);
    group.bench_function("scalar quantize f16 to nf4, a sixteenth", |b| {
        b.iter(|| scalar::quantize(black_box(part), nf4));
    });
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
