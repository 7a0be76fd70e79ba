//! A counter-based random number: the same on every device, whatever the order of evaluation.

/// Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
/// additions, rotations and xors of 32-bit words only, so that shaders compute it too.
pub fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
    let keys = [key[0], key[1], 0x1BD1_1BDA ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for round in 0..20 {
        x[0] = x[0].wrapping_add(x[1]);
        x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
        if round % 4 == 3 {
            let group = round / 4 + 1;
            x[0] = x[0].wrapping_add(keys[group % 3]);
            x[1] = x[1].wrapping_add(keys[(group + 1) % 3]).wrapping_add(group as u32);
        }
    }
    x
}

/// Uniform in `[0, 1)` with 24 bits, for `(seed, counter)`.
pub fn uniform(seed: u64, counter: u64) -> f32 {
    let [word, _] = threefry(halves(seed), halves(counter));
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// A stream of numbers for tests and synthetic weights: [`threefry`] of a growing counter.
#[derive(Debug, Clone)]
pub struct Stream {
    seed: u64,
    counter: u64,
    spare: Option<f32>,
}

impl Stream {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, counter: 0, spare: None }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [low, high] = threefry(halves(self.seed), halves(self.counter));
        self.counter += 1;
        u64::from(high) << 32 | u64::from(low)
    }

    /// The next number uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 * (1.0 / 16_777_216.0)
    }

    /// The next integer in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// The next number of the standard normal distribution (Box and Muller 1958).
    pub fn normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution for threefry2x32, 20 rounds.
    #[test]
    fn threefry_known_answers() {
        assert_eq!(threefry([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry([!0, !0], [!0, !0]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(
            threefry([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]),
            [0xc492_3a9c, 0x483d_f7a0]
        );
    }

    #[test]
    fn normal_has_unit_variance() {
        let mut stream = Stream::new(7);
        let values: Vec<f64> = (0..20_000).map(|_| f64::from(stream.normal())).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
    }
}
