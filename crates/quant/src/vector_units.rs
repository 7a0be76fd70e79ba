//! The block encoder compiled for each vector unit, and the choice among them while running.
//!
//! The encoder is ordinary portable code; a wider unit only lets the compiler keep more elements
//! in a register. Measured on an AMD EPYC with AVX-512, quantizing 4096 x 11008 of f16 to NF4 with
//! double quantization, in GB/s of f16 on one core and on two: 1.0 and 2.0 with the x86-64
//! baseline, 1.7 and 3.2 with AVX2, 2.6 and 4.7 with AVX-512. That gain is why this file alone may
//! say `unsafe`.
#![allow(unsafe_code)]

use crate::{Element, QuantSpec, blockwise};

/// Encodes consecutive blocks: their elements, the codes that they become and their scales.
pub(crate) type Encoder<T> = fn(&[T], QuantSpec, &mut [u8], &mut [f32]);

/// The encoder for the widest vector unit of this processor.
pub(crate) fn encoder<T: Element>() -> Encoder<T> {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(encoder) = x86_64::avx512().or_else(x86_64::avx2) {
            return encoder;
        }
    }
    portable
}

/// The encoder for the target's baseline. On AArch64 that has NEON already.
fn portable<T: Element>(values: &[T], spec: QuantSpec, packed: &mut [u8], absmax: &mut [f32]) {
    blockwise::encode_chunk(values, spec, packed, absmax);
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::Encoder;
    use crate::{Element, QuantSpec, blockwise};

    /// The encoder for AVX2, if there is AVX2.
    pub(super) fn avx2<T: Element>() -> Option<Encoder<T>> {
        #[target_feature(enable = "avx2")]
        fn compiled<T: Element>(v: &[T], spec: QuantSpec, packed: &mut [u8], absmax: &mut [f32]) {
            blockwise::encode_chunk(v, spec, packed, absmax);
        }
        is_x86_feature_detected!("avx2").then_some(|v, spec, packed, absmax| {
            // SAFETY: this closure is only handed out where AVX2 was detected.
            unsafe { compiled(v, spec, packed, absmax) }
        })
    }

    /// The encoder for AVX-512 with its byte, double-word and shorter-vector extensions, if
    /// there is all of that.
    pub(super) fn avx512<T: Element>() -> Option<Encoder<T>> {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn compiled<T: Element>(v: &[T], spec: QuantSpec, packed: &mut [u8], absmax: &mut [f32]) {
            blockwise::encode_chunk(v, spec, packed, absmax);
        }
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        detected.then_some(|v, spec, packed, absmax| {
            // SAFETY: this closure is only handed out where all four features were detected.
            unsafe { compiled(v, spec, packed, absmax) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QuantType;
    use half::{bf16, f16};

    /// Every encoder that this processor can run.
    fn encoders<T: Element>() -> Vec<(&'static str, Encoder<T>)> {
        let mut encoders: Vec<(_, Encoder<T>)> = vec![("portable", portable)];
        #[cfg(target_arch = "x86_64")]
        for (name, encoder) in [("AVX2", x86_64::avx2()), ("AVX-512", x86_64::avx512())] {
            match encoder {
                Some(encoder) => encoders.push((name, encoder)),
                None => eprintln!("{name} is not compared: this processor lacks it"),
            }
        }
        encoders
    }

    /// Compares codes and the bits of scales of all encoders with the scalar definition.
    fn compare<T: Element>(values: &[T], source: crate::Source<'_>) {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            for blocksize in [32, 64, 4096] {
                let spec = QuantSpec { quant_type, blocksize, double_quant: false };
                let truth = crate::scalar::quantize(source, spec).unwrap();
                let bits = |scales: &[f32]| scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
                for (name, encoder) in encoders::<T>() {
                    let mut packed = vec![0; truth.packed.len()];
                    let mut absmax = vec![0.0; truth.absmax.len()];
                    encoder(values, spec, &mut packed, &mut absmax);
                    assert!(packed == truth.packed, "{name}: codes by {spec:?}");
                    assert_eq!(bits(&absmax), bits(&truth.absmax.expand()), "{name}: {spec:?}");
                }
            }
        }
    }

    #[test]
    fn every_encoder_agrees_with_the_scalar_definition_on_every_16_bit_pattern() {
        // A stride that is coprime to 65536 mixes magnitudes within blocks; in the second half
        // infinities and NaN are left out, so that they do not hide the other values.
        let patterns = (0..=u16::MAX).map(|i| i.wrapping_mul(40_503));
        let finite = |bits: &u16| f16::from_bits(*bits).is_finite();
        let bits: Vec<u16> = patterns.clone().chain(patterns.filter(finite)).collect();
        let half: Vec<f16> = bits.iter().map(|&b| f16::from_bits(b)).collect();
        let brain: Vec<bf16> = bits.iter().map(|&b| bf16::from_bits(b)).collect();
        compare(&half, crate::Source::F16(&half));
        compare(&brain, crate::Source::Bf16(&brain));
    }

    #[test]
    fn every_encoder_agrees_around_every_decision_point() {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            let mut values = vec![];
            for point in quant_type.midpoints() {
                let neighbours = [point.next_down(), *point, point.next_up()];
                values.push(1.0);
                values.extend(neighbours.iter().flat_map(|n| [*n, n * 0.731, n * 2.5e-9]));
            }
            for scale in [1.0, 0.731_058_6, 2.9e-39, 1e38] {
                let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
                compare(&scaled, crate::Source::F32(&scaled));
            }
        }
    }
}
