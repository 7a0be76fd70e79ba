//! Norms, and what happens to a step's input before its product.

use crate::bound::{NormView, PreView};
use crate::layout::padded;
use halfbyte_backend::{EmitKind, NormKind};

/// Norms `x`, `[len]`, in place; mean and variance in f64.
pub(crate) fn norm(norm: &NormView<'_>, x: &mut [f32]) {
    let len = x.len() as f64;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / len,
    };
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / len;
    let inverse = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    for (i, value) in x.iter_mut().enumerate() {
        let weight = f64::from(norm.weight[i]) + f64::from(norm.offset);
        let bias = norm.bias.get(i).map_or(0.0, |&bias| f64::from(bias));
        *value = ((f64::from(*value) - mean) * inverse * weight + bias) as f32;
    }
}

/// `x = residual + post(input)`, `h = norm(x)`; keeps `x` or `h` where the step asks for it.
pub(crate) fn pre(view: &PreView<'_>, inputs: &mut [f32], emitted: &mut [f32]) {
    let columns = padded(view.width);
    for (row, x) in inputs.chunks_exact_mut(columns).enumerate() {
        let range = row * view.width..(row + 1) * view.width;
        let (x, padding) = x.split_at_mut(view.width);
        padding.fill(0.0);
        x.copy_from_slice(&view.input[range.clone()]);
        if let Some(post) = &view.post {
            norm(post, x);
        }
        if let Some(residual) = view.residual {
            for (value, residual) in x.iter_mut().zip(&residual[range.clone()]) {
                *value += residual;
            }
        }
        if view.emit == Some(EmitKind::Sum) {
            emitted[range.clone()].copy_from_slice(x);
        }
        if let Some(weight) = &view.norm {
            norm(weight, x);
        }
        if view.emit == Some(EmitKind::Normed) {
            emitted[range].copy_from_slice(x);
        }
    }
}
