//! What distinguishes one compiled `norm_linear` from another.

/// How the matrix is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Elements {
    /// 4-bit codes with an absmax for each block.
    Codes {
        /// Whether absmax is 8-bit codes.
        nested: bool,
        /// Whether groups of 32 never straddle two blocks: columns are a multiple of 32.
        aligned: bool,
    },
    F32,
    F16,
    Bf16,
}

impl Elements {
    /// 16-byte loads of one group.
    pub(crate) fn quads(self) -> usize {
        match self {
            Elements::Codes { .. } => 1,
            Elements::F32 => 8,
            Elements::F16 | Elements::Bf16 => 4,
        }
    }

    pub(crate) fn is_codes(self) -> bool {
        matches!(self, Elements::Codes { .. })
    }

    pub(crate) fn nested(self) -> bool {
        matches!(self, Elements::Codes { nested: true, .. })
    }

    pub(crate) fn straddles(self) -> bool {
        matches!(self, Elements::Codes { aligned: false, .. })
    }
}

/// How `x` is normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Norming {
    /// Not at all.
    None,
    Rms,
    Layer {
        /// Whether its weight is followed by a bias.
        bias: bool,
    },
}

impl Norming {
    pub(crate) fn centers(self) -> bool {
        matches!(self, Norming::Layer { .. })
    }

    pub(crate) fn has_bias(self) -> bool {
        self == Norming::Layer { bias: true }
    }
}

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub elements: Elements,
    pub norm: Norming,
    /// Whether teams are planes (warps), which sum without shared memory.
    pub planes: bool,
    /// Units of a team.
    pub lanes: usize,
    /// Teams of a cube.
    pub teams: usize,
    /// Rows of the matrix for each team; even.
    pub tile_rows: usize,
    /// Rows of `x` for each cube.
    pub tile_batch: usize,
}

impl Variant {
    /// Units of a cube.
    pub(crate) fn units(&self) -> usize {
        self.lanes * self.teams
    }

    /// Rows of the matrix for each cube.
    pub(crate) fn cube_rows(&self) -> usize {
        self.teams * self.tile_rows
    }

    /// Values in shared memory for the map of 8-bit codes; an array cannot be empty.
    pub(crate) fn map_len(&self) -> usize {
        if self.elements.nested() { 256 } else { 1 }
    }

    /// Where the `(absmax, offset)` pairs start in the state.
    pub(crate) fn pairs_at(&self) -> usize {
        if self.elements.nested() { 16 + 256 } else { 16 }
    }
}
