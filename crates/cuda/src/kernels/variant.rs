//! What distinguishes one compiled product from another.

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

    /// Values in shared memory for the map of 8-bit codes; an array cannot be empty.
    pub(crate) fn map_len(self) -> usize {
        if self.nested() { 256 } else { 1 }
    }

    /// Where the `(absmax, offset)` pairs start in the state.
    pub(crate) fn pairs_at(self) -> usize {
        if self.nested() { 16 + 256 } else { 16 }
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

/// How the units of a cube sum together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Team {
    /// Whether teams are planes (warps), which sum without shared memory.
    pub planes: bool,
    /// Units of a team.
    pub lanes: usize,
    /// Teams of a cube.
    pub teams: usize,
}

impl Team {
    /// Cubes of 256 units, in planes of this size or in teams of 32 that sum through shared memory.
    pub(crate) fn of(planes: Option<usize>) -> Self {
        let lanes = planes.unwrap_or(32);
        Self { planes: planes.is_some(), lanes, teams: 256 / lanes }
    }

    /// Units of a cube.
    pub(crate) fn units(self) -> usize {
        self.lanes * self.teams
    }
}

/// How a 4-bit code becomes its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lookup {
    /// One read of a table of 16 in shared memory a weight: conflict-free on 32 banks.
    Table,
    /// One read of a table of 256 pairs for two weights: half the instructions, in this many copies so that
    /// lanes do not wait for each other (2 KiB a copy). See `kernels::codebook`.
    Pairs {
        /// Copies of the table; a power of two.
        copies: usize,
    },
}

impl Lookup {
    /// Values in shared memory for the single table; an array cannot be empty.
    pub(crate) fn table_len(self) -> usize {
        if self == Lookup::Table { 16 } else { 1 }
    }

    /// Pairs in shared memory.
    pub(crate) fn pairs_len(self) -> usize {
        if let Lookup::Pairs { copies } = self { 256 * copies } else { 1 }
    }

    /// Copies of the table of pairs.
    pub(crate) fn copies(self) -> usize {
        if let Lookup::Pairs { copies } = self { copies } else { 1 }
    }
}

/// Where `x` comes from, when it is the output of an attention in splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Merge {
    pub heads: usize,
    pub head_dim: usize,
    pub splits: usize,
}

/// What a product does with the experts' shares of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sharing {
    /// It is no expert's.
    None,
    /// It ends at once where no row of its tile takes the expert.
    Skip,
    /// Also, it adds its results times the row's share.
    Weigh,
}

/// What is fixed when a product is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub elements: Elements,
    pub norm: Norming,
    pub team: Team,
    /// Rows of the matrix for each team.
    pub tile_rows: usize,
    /// Rows of `x` for each cube.
    pub tile_batch: usize,
    pub lookup: Lookup,
    /// Whether `x` are the rows that the submission names as outputs.
    pub select: bool,
    pub sharing: Sharing,
    pub merge: Option<Merge>,
    /// Whether a group's words are unrolled: for GPUs. Software adapters compile for longer than they run.
    pub unroll: bool,
}

impl Variant {
    /// Units of a cube.
    pub(crate) fn units(&self) -> usize {
        self.team.units()
    }

    /// Rows of the matrix for each cube.
    pub(crate) fn cube_rows(&self) -> usize {
        self.team.teams * self.tile_rows
    }

    /// Weights of splits in shared memory, `[tile_batch, heads, splits]`; an array cannot be empty.
    pub(crate) fn merge_len(&self) -> usize {
        self.merge.map_or(1, |merge| self.tile_batch * merge.heads * merge.splits)
    }
}
