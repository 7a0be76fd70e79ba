//! A tile of decoded weights times rows of activations, in blocks of registers.

use crate::simd::Lanes;

/// What is multiplied: both sides are `[rows, columns]` with the same order of columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// A multiple of 16; padding is zero on both sides.
    pub columns: usize,
    /// `[weight rows, columns]`
    pub weights: &'a [f32],
    /// `[rows, columns]`
    pub inputs: &'a [f32],
    /// Rows of activations.
    pub rows: usize,
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn weight(&self, row: usize) -> &'a [[f32; 16]] {
        self.weights[row * self.columns..][..self.columns].as_chunks().0
    }

    #[inline(always)]
    fn input(&self, row: usize) -> &'a [[f32; 16]] {
        self.inputs[row * self.columns..][..self.columns].as_chunks().0
    }
}

/// `y[j, r] = weights[j] inputs[r]`, with `y: [weight rows, rows]`, in blocks of `W` weight rows and `X`
/// rows of activations.
#[inline(always)]
pub(crate) fn multiply<L: Lanes, const W: usize, const X: usize>(lanes: L, panel: Panel<'_>, y: &mut [f32]) {
    let count = y.len() / panel.rows;
    // Activations on the outside: a block of them stays near while the tile's rows pass by.
    let whole_rows = panel.rows / X * X;
    let whole_weights = count / W * W;
    for row in (0..whole_rows).step_by(X) {
        for weight in (0..whole_weights).step_by(W) {
            block::<L, W, X>(lanes, &panel, weight, row, y);
        }
        for weight in whole_weights..count {
            block::<L, 1, X>(lanes, &panel, weight, row, y);
        }
    }
    for row in whole_rows..panel.rows {
        for weight in (0..whole_weights).step_by(W) {
            block::<L, W, 1>(lanes, &panel, weight, row, y);
        }
        for weight in whole_weights..count {
            block::<L, 1, 1>(lanes, &panel, weight, row, y);
        }
    }
}

#[inline(always)]
fn block<L: Lanes, const W: usize, const X: usize>(
    lanes: L,
    panel: &Panel<'_>,
    weight: usize,
    row: usize,
    y: &mut [f32],
) {
    let chunks = panel.columns / 16;
    // Loops instead of `array::from_fn`: its closures are compiled without these instructions.
    let mut weights: [&[[f32; 16]]; W] = [&[]; W];
    for (j, slice) in weights.iter_mut().enumerate() {
        *slice = &panel.weight(weight + j)[..chunks];
    }
    let mut inputs: [&[[f32; 16]]; X] = [&[]; X];
    for (r, slice) in inputs.iter_mut().enumerate() {
        *slice = &panel.input(row + r)[..chunks];
    }
    let mut sums = [[lanes.splat(0.0); X]; W];
    for k in 0..chunks {
        let mut w = [lanes.splat(0.0); W];
        for (w, weights) in w.iter_mut().zip(weights) {
            *w = lanes.load(&weights[k]);
        }
        for r in 0..X {
            let x = lanes.load(&inputs[r][k]);
            for j in 0..W {
                sums[j][r] = lanes.mul_add(w[j], x, sums[j][r]);
            }
        }
    }
    for (j, sums) in sums.iter().enumerate() {
        for (r, &sum) in sums.iter().enumerate() {
            y[(weight + j) * panel.rows + row + r] = lanes.sum(sum);
        }
    }
}
