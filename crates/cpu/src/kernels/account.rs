//! The account of decoding in bytes: what its kernel reads a second, beside plain reads of the same memory.
//!
//! A measurement for an idle machine, after a change of kernels or of the team; CONTRIBUTING.md has the command. The memory of virtual machines changes its speed from one
//! second to the next, so that reads and products come in turns.

use super::grouped::{CodeTables, Grouped};
use super::one_row::one_row;
use crate::interleaved::{Interleaved, Run};
use crate::lines::LANES;
use crate::quants::{QuantRow, Quants, quantize_row};
use crate::simd::Lanes;
use crate::simd::avx512::Avx512;
use crate::simd::bytes::Bytes;
use crate::team::Team;
use halfbyte_backend::random::Stream;
use halfbyte_backend::{Format, Segment};
use halfbyte_quant::{QuantSpec, Source, quantize};
use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The proof that this processor has the kernels comes first.
fn lanes() -> Option<Avx512> {
    Avx512::fast_kernels().map(|_| Avx512(()))
}

/// A matrix of about `bytes` bytes with `cols` columns.
fn matrix(bytes: usize, cols: usize) -> Interleaved {
    let (spec, rows) = (QuantSpec::default(), bytes / (cols * LANES / 2) * LANES);
    let format = Format::Quant(spec.into());
    let segment = Segment { tensor: "w".into(), rows, cols, format, bias: None, transposed: false };
    let mut stream = Stream::new(1);
    let few: Vec<f32> = (0..65_537).map(|_| stream.normal()).collect();
    let values: Vec<f32> = few.iter().cycle().take(rows * cols).copied().collect();
    let mut held = Interleaved::reserve(&segment, spec.into()).unwrap();
    held.lines().ask_for_large_pages();
    held.lines().settle();
    held.fill("w", &quantize(Source::F32(&values), spec).unwrap()).unwrap();
    held
}

/// The least time of some passes.
fn least(passes: usize, mut pass: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        pass();
        start.elapsed()
    };
    (0..passes).map(time).min().unwrap_or_default()
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Some groups times `x`.
fn multiply(
    lanes: Avx512,
    tensor: &Interleaved,
    tables: &CodeTables<Avx512>,
    groups: Range<usize>,
    x: QuantRow<'_>,
) {
    lanes.run_bytes(
        #[inline(always)]
        || {
            tensor.panels().walk(
                groups,
                #[inline(always)]
                |panel, group| {
                    black_box(one_row(lanes, tensor, [panel, group], tables, x, lanes.splat(0.0)));
                },
            );
        },
    );
}

/// Reads some groups.
fn read(tensor: &Interleaved, groups: Range<usize>) {
    let mut sums = [0u64; 64];
    tensor.panels().walk(groups, |panel, group| {
        let (fours, _) = match tensor.run(panel, group) {
            Run::Nested { fours, .. } => fours.as_flattened().as_chunks::<8>(),
            Run::Plain(_) => return,
        };
        for lines in fours {
            // Loops of fixed lengths become vectors.
            for (sums, line) in sums.as_chunks_mut::<8>().0.iter_mut().zip(lines) {
                for (sum, word) in sums.iter_mut().zip(line.0.as_chunks::<8>().0) {
                    *sum ^= u64::from_ne_bytes(*word);
                }
            }
        }
    });
    black_box(sums);
}

#[test]
#[ignore = "a measurement, not a test: see CONTRIBUTING.md"]
fn account() {
    let lanes = lanes().expect("AVX-512 with VNNI and VBMI");
    let team = Team::new(4);
    println!("an empty step of 4 threads: {:?}", least(1000, || team.each(4, |_, _| {})));
    for cols in [2048, 4096, 5632] {
        let mut stream = Stream::new(2);
        let x: Vec<f32> = (0..cols).map(|_| stream.normal()).collect();
        let mut quants = Quants::reserve(cols).unwrap();
        let (coarse, fine, scales) = quants.parts(1, cols);
        let to_bytes = least(100, || {
            lanes.run(
                #[inline(always)]
                || quantize_row(&x, false, coarse, fine, scales),
            );
        });
        let x = quants.row(0, cols);
        let tables = |tensor: &Interleaved| {
            lanes.run_bytes(
                #[inline(always)]
                || tensor.tables(lanes),
            )
        };
        let (near, far) = (matrix(400 << 10, cols), matrix(400 << 20, cols));
        let near_tables = tables(&near);
        let cached = least(100, || multiply(lanes, &near, &near_tables, 0..near.rows / LANES, x));
        let near_rate = rate(near.bytes(), cached);
        println!(
            "{cols} columns: activations to bytes {to_bytes:?}; in the second-level cache {near_rate:.1} GB/s"
        );
        let (tables, groups) = (tables(&far), far.rows / LANES);
        for _ in 0..5 {
            let one = least(1, || multiply(lanes, &far, &tables, 0..groups, x));
            let one_reads = least(1, || read(&far, 0..groups));
            let grain = far.panels().grain();
            let four = least(2, || {
                team.stretches((groups, grain), |_| (), |(), at| multiply(lanes, &far, &tables, at, x))
            });
            let four_read = least(2, || team.stretches((groups, grain), |_| (), |(), at| read(&far, at)));
            // As small as a model of 1.1B has them.
            let step = 160;
            let in_steps = least(2, || {
                for first in (0..groups).step_by(step) {
                    let count = step.min(groups - first);
                    team.stretches(
                        (count, grain),
                        |_| (),
                        |(), at| multiply(lanes, &far, &tables, first + at.start..first + at.end, x),
                    );
                }
            });
            println!(
                "  from memory: one thread {:.1} of {:.1}; four {:.1} of {:.1}, in steps of {step} groups {:.1} GB/s",
                rate(far.bytes(), one),
                rate(far.bytes(), one_reads),
                rate(far.bytes(), four),
                rate(far.bytes(), four_read),
                rate(far.bytes(), in_steps),
            );
        }
    }
}
