//! The linear product.

use crate::bound::Epilogue;
use crate::layout::padded;
use crate::matrix::Matrix;
use halfbyte_backend::Act;

/// `y[j, r] = epilogue(W[j] x[r] + b[j])`: `x` is `[rows, padded(cols)]`, `y` is `[layer rows, rows]`.
pub(crate) fn product(weight: &Matrix, epilogue: &Epilogue, rows: usize, x: &[f32], y: &mut [f32]) {
    let columns = padded(weight.cols);
    for (j, y) in y.chunks_exact_mut(rows).enumerate() {
        y.fill(0.0);
        let (tensor, at) = weight.source(j);
        let decoded: Vec<f32> = (0..weight.cols).map(|k| tensor.element(at * weight.cols + k)).collect();
        for (y, x) in y.iter_mut().zip(x.chunks_exact(columns)) {
            let products = decoded.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            *y = (products.sum::<f64>() + f64::from(weight.bias(j))) as f32;
        }
    }
    if epilogue.gated {
        for pair in y.chunks_exact_mut(2 * rows) {
            let (gate, up) = pair.split_at_mut(rows);
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = (act(epilogue.act, f64::from(*gate)) * f64::from(*up)) as f32;
            }
        }
    } else {
        y.iter_mut().for_each(|value| *value = act(epilogue.act, f64::from(*value)) as f32);
    }
    for value in y {
        let scaled = f64::from(*value) * f64::from(epilogue.scale);
        *value = match epilogue.softcap {
            Some(cap) => (f64::from(cap) * (scaled / f64::from(cap)).tanh()) as f32,
            None => scaled as f32,
        };
    }
}

/// Activation functions in f64.
fn act(act: Act, x: f64) -> f64 {
    match act {
        Act::Identity => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Act::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Act::Relu => x.max(0.0),
        Act::Tanh => x.tanh(),
    }
}

/// Writes every `step`-th row of `y`, `[layer rows, rows]`, to a column of `out`, `[rows, width]`, from
/// column `at` on: alone, added to `residual`, or (if that is empty) added to what is there.
pub(crate) fn place(
    y: &[f32],
    step: usize,
    at: usize,
    residual: Option<&[f32]>,
    rows: usize,
    out: &mut [f32],
) {
    let width = out.len() / rows;
    for (j, y) in y.chunks_exact(rows).step_by(step).enumerate() {
        for (row, &value) in y.iter().enumerate() {
            let index = row * width + at + j;
            out[index] = match residual {
                None => value,
                Some([]) => out[index] + value,
                Some(residual) => residual[index] + value,
            };
        }
    }
}
