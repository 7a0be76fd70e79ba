//! How far fast arithmetic is from exact, derived from what it rounds.
//!
//! A sum of `K` products `w x` whose factors are off by independent errors of relative size `a` and `b` is off by
//! `sqrt(a² + b²)` of its own size, whatever `K` is: the sum and its error both grow with the root of `K`. Of
//! - activations, a byte is a step of `M / 127`, and rounding to it is off by `step / sqrt(12)`. Among 64 normal values
//!   times the weights of a norm, the largest, `M`, is three times the root of their mean square: [`ACTIVATIONS`];
//! - 4-bit weights, the levels of NF4 are rounded to bytes: [`CODEBOOK`];
//! - a head in bytes, weights are rounded as activations are ([`HEAD`]), and activations have a second byte, whose error
//!   is nothing beside it.
//!
//! Where few numbers are compared, both sizes are estimates: over `n` outputs the ratio of their norms is off by `1 / sqrt(n)`
//! of itself, and `M²`, which makes two thirds of the error's square, varies by 0.45 of itself from block to block: 0.15 of
//! the error over the root of how many blocks a row has. A tolerance is four of these deviations above the expected error.

use crate::{byte_rows, interleaved, lines::BLOCK};
use halfbyte_backend::conformance::Case;
use halfbyte_backend::{Kind, LinearShape, Step, Stretch, WantId};

/// Of activations after a norm whose weights are 1 ± 0.3.
const ACTIVATIONS: f64 = 0.0068;
/// Of NF4's levels, as often as normal weights take them.
const CODEBOOK: f64 = 0.0049;
/// Of normal weights in bytes.
const HEAD: f64 = 0.0060;

/// The largest relative error that fast arithmetic may have in a case of the table, 0 if nothing in it is multiplied in
/// bytes.
pub(crate) fn tolerance(case: &Case) -> f64 {
    let products = case.stretch.steps.iter().flat_map(|step| products(&case.stretch, step));
    // Errors of products that follow on each other, and of gate and up, are independent.
    let (mut squares, mut spread) = (0.0, 0.0f64);
    for (expected, outputs, blocks) in products {
        squares += expected * expected;
        spread = spread.max((1.0 / outputs as f64 + 0.0225 / blocks as f64).sqrt());
    }
    squares.sqrt() * (1.0 + 4.0 * spread)
}

/// The products in bytes of a step: the error expected, the numbers that come of a row, and blocks of its inputs.
fn products(stretch: &Stretch, step: &Step) -> Vec<(f64, usize, usize)> {
    let shape = |id: WantId| match stretch.want(id).map(|want| &want.kind) {
        Ok(Kind::Linear(shape)) => Some(shape),
        _ => None,
    };
    let product = |shape: &LinearShape, outputs: usize| {
        let in_bytes = |fits: fn(&halfbyte_backend::Segment) -> bool| shape.segments.iter().any(fits);
        let expected = match shape.head {
            true if in_bytes(byte_rows::fits) => HEAD,
            false if in_bytes(interleaved::fits) => ACTIVATIONS.hypot(CODEBOOK),
            _ => return None,
        };
        Some((expected, outputs.max(1), (shape.cols() / BLOCK).max(1)))
    };
    let plain = |id| shape(id).and_then(|shape| product(shape, shape.rows()));
    let gated = |id| shape(id).and_then(|shape| product(shape, shape.rows() / 2));
    match step {
        Step::Linear(linear) if linear.gated => gated(linear.weight).into_iter().cycle().take(2).collect(),
        Step::Linear(linear) => plain(linear.weight).into_iter().collect(),
        Step::Head(head) => plain(head.weight).into_iter().collect(),
        // Each row takes some experts, whose errors average: one stands for all.
        Step::Moe(moe) => {
            let twice = gated(moe.gate_up_of(0)).into_iter().cycle().take(2);
            twice.chain(plain(moe.down_of(0))).collect()
        }
        Step::Embed(_) | Step::Attend(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::{Quants, quantize_row};
    use halfbyte_backend::random::Stream;
    use halfbyte_quant::QuantType;

    fn relative(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
        let (error, size) = pairs.fold((0.0, 0.0), |(error, size), (found, x)| {
            (error + f64::from(found - x).powi(2), size + f64::from(x).powi(2))
        });
        (error / size).sqrt()
    }

    #[test]
    fn activations_and_heads_are_rounded_as_far_as_they_say() {
        const COLS: usize = 1 << 16;
        let mut stream = Stream::new(5);
        for (deviation, wanted) in [(0.3, ACTIVATIONS), (0.0, HEAD)] {
            let x: Vec<f32> =
                (0..COLS).map(|_| stream.normal() * (1.0 + deviation * stream.normal())).collect();
            let mut quants = Quants::reserve(COLS).unwrap();
            let (coarse, fine, scales) = quants.parts(1, COLS);
            quantize_row(&x, false, coarse, fine, scales);
            let row = quants.row(0, COLS);
            let found = (0..COLS).map(|i| {
                let (block, within) = (i / BLOCK, i % BLOCK);
                f32::from(row.coarse[block][within]) * row.scales[block].coarse
            });
            let found = relative(found.zip(x.iter().copied()));
            assert!((found / wanted - 1.0).abs() < 0.03, "{found} where {wanted} is said");
        }
    }

    #[test]
    fn the_codebook_is_rounded_as_far_as_it_says() {
        let code = *QuantType::Nf4.codebook();
        let (bytes, factor) = interleaved::levels(&code);
        let mut stream = Stream::new(6);
        let pairs = (0..1 << 10).flat_map(|_| {
            let block: Vec<f32> = (0..BLOCK).map(|_| stream.normal()).collect();
            let largest = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            block.into_iter().map(move |value| {
                let far = |&at: &usize| (code[at] - value / largest).abs();
                let at = (0..16).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap();
                (f32::from(bytes[at]) / factor * largest, code[at] * largest)
            })
        });
        let found = relative(pairs);
        assert!((found / CODEBOOK - 1.0).abs() < 0.03, "{found} where {CODEBOOK} is said");
    }
}
