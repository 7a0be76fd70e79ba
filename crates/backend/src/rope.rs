//! Rotary position embeddings (Su et al. 2021, arXiv:2104.09864): tables made on the host in f64.

/// How a table of cosines and sines is made.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeShape {
    /// Positions `0..positions`.
    pub positions: usize,
    /// Angle per position of each rotated pair, `[dim / 2]`, scaling (linear, llama3, ...) applied.
    pub inv_freq: Vec<f64>,
    /// Factor on cosines and sines (YaRN and long rope; 1 otherwise).
    pub magnitude: f64,
}

/// Cosines and sines in f32, `[positions, dim/2, 2]`: the cosine first.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// Rotated pairs per head: `dim / 2`.
    pub pairs: usize,
    /// `positions * pairs * 2` values.
    pub values: Vec<f32>,
}

impl RopeShape {
    /// Bytes of the table in f32.
    pub fn bytes(&self) -> u64 {
        self.positions as u64 * self.inv_freq.len() as u64 * 8
    }

    /// The table's values in order. Angles are formed in f64 and rounded once, so that position 100,000
    /// is as exact as position 1.
    pub fn values(&self) -> impl Iterator<Item = f32> + '_ {
        (0..self.positions).flat_map(move |position| {
            self.inv_freq.iter().flat_map(move |&frequency| {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                [(cos * self.magnitude) as f32, (sin * self.magnitude) as f32]
            })
        })
    }

    /// The table, in memory of its own.
    pub fn table(&self) -> RopeTable {
        let mut values = Vec::with_capacity(self.positions * self.inv_freq.len() * 2);
        values.extend(self.values());
        RopeTable { pairs: self.inv_freq.len(), values }
    }
}

/// Unscaled angles per position: `theta ^ (-2 i / dim)` for `i` in `0..dim/2`.
pub fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect()
}
