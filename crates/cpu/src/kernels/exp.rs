//! The exponential function, without a call and without a branch, so that loops over it become vectors.

/// `e^x` in f32, off by 2e-7 of itself at most; 0 below -87, where it would be subnormal, and infinity above 88.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, `n` into the exponent, and a polynomial for the rest (Cephes' `expf`,
/// S. Moshier).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to whole numbers, and leaves them in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few bits, so that its products are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.5);
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_66;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    // 2^n in two steps: 2^128 is no float, though its product with a value below 1 may be.
    let n = shifted.to_bits() as i32 - MAGIC.to_bits() as i32;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let scaled = value * power(n / 2) * power(n - n / 2);
    let low = if x < -87.0 { 0.0 } else { scaled };
    if x > 88.5 { f32::INFINITY } else { low }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential_function() {
        let mut worst = 0.0f64;
        for i in -870_000..=885_000 {
            let x = i as f32 * 1e-4;
            let right = f64::from(x).exp();
            if right < f64::from(f32::MAX) {
                worst = worst.max(((f64::from(exp(x)) - right) / right).abs());
            }
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(
            [exp(0.0), exp(f32::NEG_INFINITY), exp(-100.0), exp(f32::INFINITY)],
            [1.0, 0.0, 0.0, f32::INFINITY]
        );
        assert!(exp(f32::NAN).is_nan());
    }
}
