//! Rotary position embeddings: from a configuration's words to frequencies.

use halfbyte_backend::{RopeShape, rope::inverse_frequencies};
use halfbyte_checkpoint::{RopeKind, RopeScaling};
use std::f64::consts::TAU;

use crate::ModelError;

/// The table for heads of `head_dim` features, of which the first `partial_rotary_factor` rotate, over
/// `context` positions of a model made for `max_positions`. All arithmetic is in f64.
///
/// # Errors
/// [`ModelError::Unsupported`] for a scaling that is not implemented, or not for so long a context.
pub fn shape(
    scaling: &RopeScaling,
    head_dim: usize,
    context: usize,
    max_positions: usize,
) -> Result<RopeShape, ModelError> {
    let dim = (head_dim as f64 * scaling.partial_rotary_factor) as usize;
    if dim == 0 || dim % 2 == 1 {
        return Err(ModelError::Unsupported {
            what: format!("rotating {dim} of {head_dim} features"),
            instead: "head_dim * partial_rotary_factor must be even and not zero".into(),
        });
    }
    let mut inv_freq = inverse_frequencies(scaling.theta, dim);
    let mut magnitude = 1.0;
    match &scaling.kind {
        RopeKind::Default => {}
        RopeKind::Linear { factor } => inv_freq.iter_mut().for_each(|frequency| *frequency /= factor),
        RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = *original_max_position_embeddings as f64;
            for frequency in &mut inv_freq {
                *frequency = llama3(*frequency, *factor, *low_freq_factor, *high_freq_factor, original);
            }
        }
        // Both change nothing, or one thing only, up to the length that the model was trained for.
        RopeKind::Dynamic { original_max_position_embeddings: original, .. } => {
            within("dynamic", context, *original)?;
        }
        RopeKind::LongRope {
            short_factor,
            factor,
            attention_factor,
            original_max_position_embeddings: original,
            ..
        } => {
            within("longrope", context, *original)?;
            if short_factor.len() != inv_freq.len() {
                return Err(ModelError::Unsupported {
                    what: format!("rope short_factor of {} values", short_factor.len()),
                    instead: format!("heads that rotate {dim} features need {}", dim / 2),
                });
            }
            for (frequency, divisor) in inv_freq.iter_mut().zip(short_factor) {
                *frequency /= divisor;
            }
            let factor = factor.unwrap_or(max_positions as f64 / *original as f64);
            magnitude = attention_factor.unwrap_or(if factor <= 1.0 {
                1.0
            } else {
                (1.0 + factor.ln() / (*original as f64).ln()).sqrt()
            });
        }
        RopeKind::Yarn { .. } => return Err(unsupported("yarn", "take a checkpoint without it")),
        _ => {
            return Err(unsupported(
                "of this kind",
                "known are default, linear, llama3, dynamic and longrope",
            ));
        }
    }
    Ok(RopeShape { positions: context, inv_freq, magnitude })
}

/// Llama 3.1's scaling: wavelengths that fit `high` times or more into the original context are kept,
/// those that fit `low` times or fewer are stretched by `factor`, and the rest blend.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let turns = original * frequency / TAU;
    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    frequency * (kept + (1.0 - kept) / factor)
}

fn within(kind: &str, context: usize, original: usize) -> Result<(), ModelError> {
    if context <= original {
        return Ok(());
    }
    Err(unsupported(
        &format!("{kind} for a context of {context}"),
        &format!("choose a context of at most {original}, where it needs no scaling"),
    ))
}

fn unsupported(kind: &str, instead: &str) -> ModelError {
    ModelError::Unsupported { what: format!("rotary scaling {kind}"), instead: instead.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three branches as transformers writes them, by wavelength.
    fn llama3_by_wavelength(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
        let wavelength = TAU / frequency;
        if wavelength < original / high {
            frequency
        } else if wavelength > original / low {
            frequency / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }

    #[test]
    fn llama3_keeps_blends_and_stretches() {
        for (i, frequency) in inverse_frequencies(500_000.0, 128).into_iter().enumerate() {
            let wanted = llama3_by_wavelength(frequency, 8.0, 1.0, 4.0, 8192.0);
            let found = llama3(frequency, 8.0, 1.0, 4.0, 8192.0);
            assert!((found - wanted).abs() <= 1e-15 * wanted.abs().max(1e-3), "{i}: {found} {wanted}");
        }
    }

    #[test]
    fn scalings_that_are_not_implemented_are_refused_by_name() {
        let dynamic = RopeKind::Dynamic { factor: 2.0, original_max_position_embeddings: 64 };
        let scaling = RopeScaling { theta: 1e4, partial_rotary_factor: 1.0, kind: dynamic };
        assert!(shape(&scaling, 16, 64, 64).is_ok());
        let refusal = shape(&scaling, 16, 65, 64).unwrap_err().to_string();
        assert!(refusal.contains("dynamic") && refusal.contains("64"), "{refusal}");
        let odd = RopeScaling { theta: 1e4, partial_rotary_factor: 0.2, kind: RopeKind::Default };
        assert!(shape(&odd, 16, 8, 8).is_err());
    }
}
