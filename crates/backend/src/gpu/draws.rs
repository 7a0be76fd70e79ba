//! Draws as kernels take them: their parameters in words, seen tokens in bits.

use crate::SampleParams;

/// Words of a draw, of which the last two are free.
pub const DRAW_WORDS: usize = 8;

/// `[temperature, top_k, top_p, repetition_penalty, low and high word of the seed, 0, 0]`, numbers as their bits. A
/// `top_k` of more than 32 bits keeps all, which is 0.
pub fn draw_words(params: &SampleParams) -> [u32; DRAW_WORDS] {
    [
        params.temperature.to_bits(),
        u32::try_from(params.top_k).unwrap_or(0),
        params.top_p.to_bits(),
        params.repetition_penalty.to_bits(),
        params.seed as u32,
        (params.seed >> 32) as u32,
        0,
        0,
    ]
}

/// A bit for each token of `seen`, `[words]`; tokens beyond are left out.
pub fn seen_bits(seen: &[u32], words: usize) -> Vec<u32> {
    let mut bits = vec![0u32; words];
    for &token in seen {
        if let Some(word) = bits.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_a_token() {
        assert_eq!(seen_bits(&[0, 33, 33, 64, 200], 2), [1, 2]);
        let params = SampleParams { seed: 7 << 32 | 5, top_k: usize::MAX, ..SampleParams::default() };
        assert_eq!(draw_words(&params)[..6], [0, 0, 1.0f32.to_bits(), 1.0f32.to_bits(), 5, 7]);
    }
}
