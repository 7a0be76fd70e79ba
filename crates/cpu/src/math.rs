//! How exactly products are computed.

use crate::fast_error;
use halfbyte_backend::Fault;
use halfbyte_backend::conformance::Case;
use std::fmt;
use std::str::FromStr;

/// The environment variable that chooses the arithmetic where nothing else does.
pub const MATH_VARIABLE: &str = "HALFBYTE_CPU_MATH";

/// The arithmetic of products with 4-bit weights and with output heads. Everything else is f32 in either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Math {
    /// f32 activations times the codebook's own values.
    #[default]
    Exact,
    /// Activations in bytes with a scale for every 64, held twice where a block has outliers, times a codebook in
    /// bytes, summed in whole numbers. Weights in blocks of 64, whose rows are a multiple of 16 and whose columns
    /// one of 64, are held sixteen rows side by side for it; others are multiplied exactly. So is a model's output head,
    /// and the embedding table that it may be, in bytes with a scale for every 64 columns, its inputs all held twice.
    Fast,
}

impl Math {
    /// The largest relative error `‖out - exact‖ / ‖exact‖` that [`Math::Fast`] may have in a case of the conformance
    /// table, whose inputs are normal: from the shapes that it multiplies in bytes, about 1 %; 0 where there are none.
    pub fn fast_tolerance(case: &Case) -> f64 {
        fast_error::tolerance(case)
    }

    /// What [`MATH_VARIABLE`] says, or `otherwise`.
    ///
    /// # Errors
    /// [`Fault::Invalid`] for an unknown name.
    pub fn from_env_or(otherwise: Self) -> Result<Self, Fault> {
        match std::env::var(MATH_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(otherwise),
        }
    }
}

impl fmt::Display for Math {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Math::Exact => "exact",
            Math::Fast => "fast",
        })
    }
}

impl FromStr for Math {
    type Err = Fault;

    fn from_str(name: &str) -> Result<Self, Fault> {
        match name {
            "exact" => Ok(Math::Exact),
            "fast" => Ok(Math::Fast),
            _ => Err(Fault::Setting(format!(
                "the CPU's arithmetic ({MATH_VARIABLE}) is {name}, which is neither exact nor fast"
            ))),
        }
    }
}
