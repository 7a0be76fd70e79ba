//! Norms, and what happens to a step's input before its product.

use crate::bound::{NormView, PreView};
use crate::layout::padded;
use crate::simd::Lanes;
use crate::team::Team;
use halfbyte_backend::{EmitKind, NormKind};

/// Norms `x`, `[len]`, in place.
#[inline(always)]
pub(crate) fn norm<L: Lanes>(lanes: L, norm: &NormView<'_>, x: &mut [f32]) {
    let len = x.len() as f32;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum(lanes, x) / len,
    };
    let inverse = 1.0 / (sum_of_squares(lanes, x, mean) / len + norm.eps).sqrt();
    let whole = x.len() / 16 * 16;
    let (body, tail) = x.split_at_mut(whole);
    let (shift, factor) = (lanes.splat(-mean), lanes.splat(inverse));
    let offset = lanes.splat(norm.offset);
    let weights = norm.weight.as_chunks::<16>().0;
    let biases = norm.bias.as_chunks::<16>().0;
    for (k, (x, weight)) in body.as_chunks_mut::<16>().0.iter_mut().zip(weights).enumerate() {
        let centred = lanes.mul(lanes.add(lanes.load(x), shift), factor);
        let weight = lanes.add(lanes.load(weight), offset);
        let value = match biases.get(k) {
            Some(bias) => lanes.mul_add(centred, weight, lanes.load(bias)),
            None => lanes.mul(centred, weight),
        };
        lanes.store(value, x);
    }
    for (i, value) in tail.iter_mut().enumerate() {
        let bias = norm.bias.get(whole + i).copied().unwrap_or(0.0);
        *value = (*value - mean) * inverse * (norm.weight[whole + i] + norm.offset) + bias;
    }
}

#[inline(always)]
fn sum<L: Lanes>(lanes: L, x: &[f32]) -> f32 {
    let (body, tail) = x.as_chunks::<16>();
    let mut sums = lanes.splat(0.0);
    for x in body {
        sums = lanes.add(sums, lanes.load(x));
    }
    lanes.sum(sums) + tail.iter().sum::<f32>()
}

#[inline(always)]
fn sum_of_squares<L: Lanes>(lanes: L, x: &[f32], mean: f32) -> f32 {
    let (body, tail) = x.as_chunks::<16>();
    let shift = lanes.splat(-mean);
    let mut sums = lanes.splat(0.0);
    for x in body {
        let centred = lanes.add(lanes.load(x), shift);
        sums = lanes.mul_add(centred, centred, sums);
    }
    lanes.sum(sums) + tail.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
}

/// See [`Kernels::pre`](crate::program::Kernels::pre).
pub(crate) fn pre<L: Lanes>(
    lanes: L,
    team: &Team,
    view: &PreView<'_>,
    inputs: &mut [f32],
    emitted: &mut [f32],
) {
    let columns = padded(view.width);
    if inputs.len() == columns {
        return lanes.run(
            #[inline(always)]
            || pre_row(lanes, view, 0, inputs, emitted),
        );
    }
    if emitted.is_empty() {
        team.chunks(inputs, columns, |_, row, x| {
            lanes.run(
                #[inline(always)]
                || pre_row(lanes, view, row, x, &mut []),
            );
        });
        return;
    }
    team.chunks_of_two((inputs, columns), (emitted, view.width), |row, x, emitted| {
        lanes.run(
            #[inline(always)]
            || pre_row(lanes, view, row, x, emitted),
        );
    });
}

/// One row: `x` is `[padded(width)]`, `emitted` is `[width]` or empty.
#[inline(always)]
fn pre_row<L: Lanes>(lanes: L, view: &PreView<'_>, row: usize, x: &mut [f32], emitted: &mut [f32]) {
    let range = row * view.width..(row + 1) * view.width;
    let (x, padding) = x.split_at_mut(view.width);
    padding.fill(0.0);
    x.copy_from_slice(&view.input[range.clone()]);
    if let Some(post) = &view.post {
        norm(lanes, post, x);
    }
    if let Some(residual) = view.residual {
        x.iter_mut().zip(&residual[range]).for_each(|(value, residual)| *value += residual);
    }
    if view.emit == Some(EmitKind::Sum) {
        emitted.copy_from_slice(x);
    }
    if let Some(weight) = &view.norm {
        norm(lanes, weight, x);
    }
    if view.emit == Some(EmitKind::Normed) {
        emitted.copy_from_slice(x);
    }
}
