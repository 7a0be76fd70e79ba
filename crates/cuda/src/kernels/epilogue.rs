//! What happens to a sum before it is written: bias, activation, residual.

use cubecl::prelude::*;
use halfbyte_backend::Act;

/// What is added to the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residual {
    /// Nothing.
    None,
    /// A register of its own.
    Read,
    /// `out` itself.
    Accumulate,
}

/// Where a layer without a bias has it.
pub(crate) const NO_BIAS: u32 = u32::MAX;

/// The number of an activation function in the kernel.
pub(crate) fn number(act: Act) -> u32 {
    match act {
        Act::Identity => 0,
        Act::Silu => 1,
        Act::Gelu => 2,
        Act::GeluTanh => 3,
        Act::Relu => 4,
        Act::Tanh => 5,
    }
}

/// `sum`, plus the bias of `row` if there is one.
#[cube]
pub(crate) fn with_bias(sum: f32, state: &Array<f32>, bias_at: u32, row: usize) -> f32 {
    let mut value = sum;
    if bias_at != NO_BIAS {
        value += state[bias_at as usize + row];
    }
    value
}

/// The activation function of this [`number`].
#[cube]
pub(crate) fn activate(x: f32, act: u32) -> f32 {
    let mut y = x;
    if act == comptime!(number(Act::Silu)) {
        y = x / (1.0f32 + f32::exp(-x));
    } else if act == comptime!(number(Act::Gelu)) {
        y = 0.5f32 * x * (1.0f32 + Erf::erf(x * 0.707_106_77f32));
    } else if act == comptime!(number(Act::GeluTanh)) {
        let inner = 0.797_884_6f32 * (x + 0.044_715f32 * x * x * x);
        y = 0.5f32 * x * (1.0f32 + safe_tanh(inner));
    } else if act == comptime!(number(Act::Relu)) {
        y = max(x, 0.0f32);
    } else if act == comptime!(number(Act::Tanh)) {
        y = safe_tanh(x);
    }
    y
}

/// Some drivers' tanh overflows to NaN; at 15 it has long been 1.
#[cube]
fn safe_tanh(x: f32) -> f32 {
    f32::tanh(clamp(x, -15.0f32, 15.0f32))
}

/// `cap * tanh(x / cap)`; a cap of 0 is none.
#[cube]
pub(crate) fn soft_cap(x: f32, cap: f32) -> f32 {
    let mut y = x;
    if cap > 0.0f32 {
        y = cap * safe_tanh(x / cap);
    }
    y
}
