//! The two 4-bit codebooks and their decision points.

use std::fmt;
use std::str::FromStr;

use crate::QuantError;

/// A 4-bit data type: which sixteen values a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuantType {
    /// NormalFloat4: the quantiles of a normal distribution, scaled to `[-1, 1]`, with an exact
    /// zero at code 7. Codes ascend with their values. Source: Dettmers et al., "QLoRA:
    /// Efficient Finetuning of Quantized LLMs" (2023), appendix E.
    Nf4,
    /// A 4-bit float of one sign bit, two exponent bits and one mantissa bit, divided by 12 so
    /// that its largest value is 1. Codes are bit patterns, so they do not ascend.
    Fp4,
}

/// Code number to value.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Code number to value. Code 8 is "minus zero" by its bits; bitsandbytes stores it as +0.
const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// Rank (place in ascending order of value) to code number.
const NF4_BY_RANK: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// The two zeros keep their order, as a stable sort leaves them: 0 below 8.
const FP4_BY_RANK: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

const NF4_MIDPOINTS: [f32; 15] = midpoints(&NF4, &NF4_BY_RANK);
const FP4_MIDPOINTS: [f32; 15] = midpoints(&FP4, &FP4_BY_RANK);

/// The single-precision midpoints between neighbours of a codebook in ascending order.
const fn midpoints(code: &[f32; 16], by_rank: &[u8; 16]) -> [f32; 15] {
    let mut points = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        points[i] = (code[by_rank[i] as usize] + code[by_rank[i + 1] as usize]) / 2.0;
        i += 1;
    }
    points
}

impl QuantType {
    /// The sixteen values by code number, in units of a block's largest magnitude.
    pub const fn codebook(self) -> &'static [f32; 16] {
        match self {
            QuantType::Nf4 => &NF4,
            QuantType::Fp4 => &FP4,
        }
    }

    /// The fifteen decision points between neighbouring values, ascending.
    ///
    /// A scaled value `s` has the rank `r` = number of points below `s`: a value that is exactly
    /// on a point takes the lower neighbour. NaN has rank 15.
    pub const fn midpoints(self) -> &'static [f32; 15] {
        match self {
            QuantType::Nf4 => &NF4_MIDPOINTS,
            QuantType::Fp4 => &FP4_MIDPOINTS,
        }
    }

    /// The code number of each rank, that is, of each value in ascending order.
    pub const fn codes_by_rank(self) -> &'static [u8; 16] {
        match self {
            QuantType::Nf4 => &NF4_BY_RANK,
            QuantType::Fp4 => &FP4_BY_RANK,
        }
    }
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            QuantType::Nf4 => "nf4",
            QuantType::Fp4 => "fp4",
        })
    }
}

impl FromStr for QuantType {
    type Err = QuantError;

    /// Reads the names that checkpoints and configurations use: `nf4` and `fp4`.
    fn from_str(name: &str) -> Result<Self, QuantError> {
        match name {
            "nf4" => Ok(QuantType::Nf4),
            "fp4" => Ok(QuantType::Fp4),
            _ => Err(QuantError::UnknownType(name.to_owned())),
        }
    }
}
