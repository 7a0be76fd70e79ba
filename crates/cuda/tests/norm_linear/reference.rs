//! The linear step in f64, one sum at a time.

use crate::case::{Built, Case, Residual};
use halfbyte_backend::Act;

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

/// The output register after the step, `[batch, width]`.
pub fn reference(case: &Case, built: &Built, inputs: &[Vec<f32>]) -> Vec<f64> {
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
