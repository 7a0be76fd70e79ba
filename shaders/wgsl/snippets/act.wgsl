// Activation functions and the soft cap. ACT numbers them in the order of halfbyte's `Act`.
override ACT: u32 = 0u;

// tanh of a large argument overflows on some drivers, where it is formed from exponentials.
fn safe_tanh(x: f32) -> f32 {
    return tanh(clamp(x, -15.0, 15.0));
}

// Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - poly * exp(-x * x));
}

fn activate(x: f32) -> f32 {
    switch ACT {
        case 1u: {
            return x / (1.0 + exp(min(-x, 80.0)));
        }
        case 2u: {
            return 0.5 * x * (1.0 + erf(x * 0.70710678118654752));
        }
        case 3u: {
            return 0.5 * x * (1.0 + safe_tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
        }
        case 4u: {
            return max(x, 0.0);
        }
        case 5u: {
            return safe_tanh(x);
        }
        default: {
            return x;
        }
    }
}

// `cap * tanh(x / cap)`; a cap of 0 is none.
fn soft_cap(x: f32, cap: f32) -> f32 {
    if (cap > 0.0) {
        return cap * safe_tanh(x / cap);
    }
    return x;
}
