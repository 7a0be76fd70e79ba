//! Values of `override`s and of storage for a run.

use halfbyte_shaders::{Flag, Kernel, Variant};

/// The sizes of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub constants: Vec<(&'static str, f64)>,
    /// Threads that share rows of weights: neighbours among them are compared.
    pub lanes: u32,
    /// Rows of activations.
    pub columns: u32,
}

/// Groups of 32 weights that each lane takes of a row.
pub const STEPS: u32 = 4;

impl Settings {
    /// One row of activations, 32 lanes, 4-bit blocks of 64 with nested scales or f16.
    pub fn gpu(variant: Variant) -> Self {
        Self::decode(variant, 32, 1, 1)
    }

    /// `columns` rows of activations, `lanes` threads a row, dense weights in `dtype` (0 f32, 1 f16, 2 bf16).
    pub fn decode(variant: Variant, lanes: u32, columns: u32, dtype: u32) -> Self {
        let groups = STEPS * lanes;
        let shared = [
            ("ROWS", 64.0),
            ("COLS", f64::from(groups * 32)),
            ("GROUPS", f64::from(groups)),
            ("LANES", f64::from(lanes)),
            ("COLUMNS", f64::from(columns)),
            ("CHUNK4", f64::from(512 / columns)),
            ("X_STRIDE4", f64::from(groups * 8)),
            ("DTYPE", f64::from(dtype)),
            ("WIDTH", 256.0),
            ("STRIDE", 256.0),
            ("HEADS", 4.0),
            ("HEAD_DIM", 64.0),
        ];
        let own: &[(&str, f64)] = match variant.kernel {
            // Four query heads of 64 and 32 keys at a time.
            Kernel::Attend => &[
                ("GROUP", 4.0),
                ("HEADS_HERE", 4.0),
                ("QUERIES", 4.0),
                ("KEYS", 32.0),
                ("QUERY_TILE", 2.0),
                ("DOT_LANES", 8.0),
                ("SCORE_PLANES", 8.0),
                ("VALUE_LANES", 2.0),
                ("QKV_STRIDE", 512.0),
                ("PAIRS", 32.0),
                ("KV_DTYPE", 1.0),
                ("CODE_WORDS", 32.0),
                ("SCALE_WORDS", 0.0),
                ("HEAD_WORDS", 32768.0),
                ("SCALES_AT", 32768.0),
            ],
            Kernel::ReadBandwidth => &[("QUADS", 8192.0)],
            _ => &[],
        };
        let constants = shared.into_iter().filter(|(name, _)| !own.iter().any(|(other, _)| other == name));
        Self { constants: constants.chain(own.iter().copied()).collect(), lanes, columns }
    }

    /// Attention with heads of `head_dim` features in a cache of type `dtype` (as in `kv`) of 1021 slots, 16 keys at
    /// a time.
    pub fn attention(variant: Variant, dtype: u32, head_dim: u32) -> Self {
        let slots = 1021;
        let code_words = head_dim / [1, 2, 4, 8][dtype as usize];
        let scale_words = if dtype < 2 { 0 } else { head_dim / 64 };
        let scales_at = (slots * code_words).next_multiple_of(4);
        let own = [
            ("HEAD_DIM", head_dim),
            ("PAIRS", head_dim / 2),
            ("KEYS", 16),
            ("KV_DTYPE", dtype),
            ("CODE_WORDS", code_words),
            ("SCALE_WORDS", scale_words),
            ("SCALES_AT", scales_at),
            ("HEAD_WORDS", scales_at + (slots * scale_words).next_multiple_of(4)),
        ];
        let mut settings = Self::gpu(variant);
        for (name, value) in own {
            let constant = settings.constants.iter_mut().find(|(constant, _)| *constant == name);
            constant.unwrap_or_else(|| panic!("no constant {name}")).1 = f64::from(value);
        }
        settings
    }

    /// What storage holds: the row metadata of `columns` rows in one tile at position 63, rows of weights
    /// that start with a block, and experts that every row takes.
    pub fn word(&self, buffer: &str, at: u32) -> u32 {
        match (buffer, at / 4) {
            ("places", 0 | 1) => self.columns,
            ("places", 2) => 1,
            // ROW_CAP and OUTPUT_CAP are 1: the tile is at 16 + 4 + 1.
            ("places", 22 | 26) => 1,
            ("places", 24) => 63,
            ("shares", _) => 1f32.to_bits(),
            _ => 0,
        }
    }
}

/// Whether the variant is the product that decoding is made of.
pub fn decodes(variant: Variant) -> bool {
    variant.kernel == Kernel::NormLinear
}

/// Whether its weights are in 4 bits.
pub fn four_bits(variant: Variant) -> bool {
    variant.flags.has(Flag::Q4)
}
