//! Rotary position embedding: its base and its scaling, in the old and the new form of `config.json`.
//!
//! Up to transformers 4 a configuration has `rope_theta` at its top and, for a longer context,
//! `rope_scaling {type or rope_type, factor, …}`. From transformers 5 it has `rope_parameters
//! {rope_theta, rope_type, factor, …}`, or one such object per layer type (Gemma 3).

use crate::config::ModelConfig;
use crate::error::{CheckpointError, shown};

/// How positions become rotations: `theta ^ (-2i / rotary_dim)`, adjusted by `kind`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeScaling {
    /// The base of the frequencies.
    pub theta: f64,
    /// The share of each head that is rotated, from the front; 1 for most models.
    pub partial_rotary_factor: f64,
    /// What is done to the frequencies for a longer context.
    pub kind: RopeKind,
}

/// The ways to stretch rotary frequencies, with the parameters that transformers reads.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeKind {
    /// As they are.
    Default,
    /// All divided by `factor`.
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// The base grows with the length (NTK) once it exceeds what the model was trained for.
    Dynamic {
        /// How many times longer the context becomes.
        factor: f64,
        /// The length the model was trained for.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): interpolates low frequencies, keeps high ones, scales the logits.
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// The length the model was trained for.
        original_max_position_embeddings: usize,
        /// The factor on cos and sin; derived from `factor` and `mscale` where the file does not say.
        attention_factor: Option<f64>,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is interpolated in full.
        beta_slow: f64,
        /// DeepSeek's numerator of the attention factor.
        mscale: Option<f64>,
        /// DeepSeek's denominator of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the bounds of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024; Phi-3): one divisor per frequency, two sets of them.
    LongRope {
        /// Divisors up to the original length, `[rotary_dim / 2]`.
        short_factor: Vec<f64>,
        /// Divisors beyond the original length, `[rotary_dim / 2]`.
        long_factor: Vec<f64>,
        /// How many times longer the context becomes; `max_position_embeddings / original` where the file does not say.
        factor: Option<f64>,
        /// The factor on cos and sin; derived from `factor` where the file does not say.
        attention_factor: Option<f64>,
        /// The length the model was trained for.
        original_max_position_embeddings: usize,
    },
    /// Llama 3.1: divides low frequencies by `factor`, keeps high ones, and blends between.
    Llama3 {
        /// How many times longer the context becomes.
        factor: f64,
        /// Rotations over the original context below which a frequency is divided in full.
        low_freq_factor: f64,
        /// Rotations over the original context above which a frequency is kept.
        high_freq_factor: f64,
        /// The length the model was trained for.
        original_max_position_embeddings: usize,
    },
}

/// The base that transformers takes where a configuration says none.
const DEFAULT_THETA: f64 = 10_000.0;

impl ModelConfig {
    /// The rotary embedding of a model whose layers all have the same one; for a model with one per
    /// layer type, that of `full_attention`.
    ///
    /// # Errors
    /// An unknown type of scaling, or parameters that are missing or out of range.
    pub fn rope(&self) -> Result<RopeScaling, CheckpointError> {
        self.rope_for("full_attention")
    }

    /// The rotary embedding of the layers of one type: `full_attention` or `sliding_attention`.
    ///
    /// # Errors
    /// An unknown type of scaling, or parameters that are missing or out of range.
    pub fn rope_for(&self, layer_type: &str) -> Result<RopeScaling, CheckpointError> {
        if let Some(parameters) = self.section("rope_parameters")?
            && !self.scaling_goes_first(&parameters)?
        {
            let nested = parameters.json.values().any(|value| value.is_object());
            if !nested {
                return self.read_rope(&parameters, None);
            }
            let own = parameters.section(layer_type)?.ok_or_else(|| {
                parameters.error(layer_type, None, "the rotary parameters of the layers of this type")
            })?;
            return self.read_rope(&own, None);
        }
        // Gemma 3 before transformers 5: a base of their own for sliding layers, without scaling.
        if layer_type == "sliding_attention"
            && let Some(theta) = self.opt_f64("rope_local_base_freq")?
        {
            return Ok(RopeScaling {
                theta: self.positive("rope_local_base_freq", theta)?,
                partial_rotary_factor: self.partial_rotary_factor(self)?,
                kind: RopeKind::Default,
            });
        }
        let theta = self.f64_or("rope_theta", DEFAULT_THETA)?;
        let theta = self.positive("rope_theta", theta)?;
        match self.section("rope_scaling")? {
            Some(scaling) => self.read_rope(&scaling, Some(theta)),
            None => Ok(RopeScaling {
                theta,
                partial_rotary_factor: self.partial_rotary_factor(self)?,
                kind: RopeKind::Default,
            }),
        }
    }

    /// Whether `rope_scaling` is there besides `rope_parameters` and says something else, as where somebody has added it
    /// for a longer context: it then takes the place of them, as in transformers, if it is known of which base.
    fn scaling_goes_first(&self, parameters: &ModelConfig) -> Result<bool, CheckpointError> {
        const KEY: &str = "rope_scaling";
        let Some(scaling) = self.section(KEY)? else { return Ok(false) };
        if scaling.json.iter().all(|(key, value)| parameters.json.get(key) == Some(value)) {
            return Ok(false);
        }
        let nested = parameters.json.values().any(|value| value.is_object());
        let theta = scaling.opt("rope_theta").or(self.opt("rope_theta"));
        if nested || theta.is_none() {
            let instead = "nothing beside rope_parameters: put it there, with its rope_theta";
            return Err(self.error(KEY, self.opt(KEY), instead));
        }
        Ok(true)
    }

    /// Reads `parameters`, an object with `rope_type`. What it lacks is looked for at the top (`self`).
    fn read_rope(
        &self,
        parameters: &ModelConfig,
        theta: Option<f64>,
    ) -> Result<RopeScaling, CheckpointError> {
        let theta = match (parameters.opt_f64("rope_theta")?, theta) {
            (Some(theta), _) => parameters.positive("rope_theta", theta)?,
            (None, Some(theta)) => theta,
            (None, None) => {
                let theta = self.f64_or("rope_theta", DEFAULT_THETA)?;
                self.positive("rope_theta", theta)?
            }
        };
        Ok(RopeScaling {
            theta,
            partial_rotary_factor: self.partial_rotary_factor(parameters)?,
            kind: self.read_kind(parameters)?,
        })
    }

    fn read_kind(&self, parameters: &ModelConfig) -> Result<RopeKind, CheckpointError> {
        let kind = match parameters.opt_str("rope_type")? {
            Some(kind) => kind,
            None => parameters.str_or("type", "default")?,
        };
        let factor = || parameters.positive("factor", parameters.f64("factor")?);
        let original = || -> Result<usize, CheckpointError> {
            const KEY: &str = "original_max_position_embeddings";
            match (parameters.opt_usize(KEY)?, self.opt_usize(KEY)?) {
                (Some(length), _) | (None, Some(length)) => Ok(length),
                (None, None) => self.usize("max_position_embeddings"),
            }
        };
        Ok(match kind {
            "default" => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: factor()? },
            "dynamic" => RopeKind::Dynamic {
                factor: factor()?,
                // Unlike the others, transformers takes the model's own length here.
                original_max_position_embeddings: match parameters
                    .opt_usize("original_max_position_embeddings")?
                {
                    Some(length) => length,
                    None => self.usize("max_position_embeddings")?,
                },
            },
            "yarn" => RopeKind::Yarn {
                factor: factor()?,
                original_max_position_embeddings: original()?,
                attention_factor: parameters.opt_f64("attention_factor")?,
                beta_fast: parameters.f64_or("beta_fast", 32.0)?,
                beta_slow: parameters.f64_or("beta_slow", 1.0)?,
                mscale: parameters.opt_f64("mscale")?,
                mscale_all_dim: parameters.opt_f64("mscale_all_dim")?,
                truncate: parameters.bool_or("truncate", true)?,
            },
            // Phi-3's first release called it `su`.
            "longrope" | "su" => RopeKind::LongRope {
                short_factor: parameters.divisors("short_factor")?,
                long_factor: parameters.divisors("long_factor")?,
                factor: parameters.opt_f64("factor")?,
                attention_factor: parameters.opt_f64("attention_factor")?,
                original_max_position_embeddings: original()?,
            },
            "llama3" => {
                let low = parameters.f64("low_freq_factor")?;
                let high = parameters.f64("high_freq_factor")?;
                // The blend divides by their difference.
                if high <= low {
                    return Err(parameters.error(
                        "high_freq_factor",
                        parameters.opt("high_freq_factor"),
                        &format!("a number above low_freq_factor, which is {low}"),
                    ));
                }
                RopeKind::Llama3 {
                    factor: factor()?,
                    low_freq_factor: parameters.positive("low_freq_factor", low)?,
                    high_freq_factor: high,
                    original_max_position_embeddings: original()?,
                }
            }
            other => {
                return Err(CheckpointError::Unsupported {
                    what: format!("{}: rotary scaling of type \"{}\"", self.file, shown(other)),
                    instead: "known are default, linear, dynamic, yarn, longrope and llama3".to_string(),
                });
            }
        })
    }

    fn partial_rotary_factor(&self, parameters: &ModelConfig) -> Result<f64, CheckpointError> {
        const KEY: &str = "partial_rotary_factor";
        let (place, share) = match parameters.opt_f64(KEY)? {
            Some(share) => (parameters, share),
            None => (self, self.f64_or(KEY, 1.0)?),
        };
        if share > 0.0 && share <= 1.0 {
            return Ok(share);
        }
        Err(place.error(KEY, place.opt(KEY), "a number above 0 and at most 1"))
    }

    fn positive(&self, key: &str, number: f64) -> Result<f64, CheckpointError> {
        if number > 0.0 {
            return Ok(number);
        }
        Err(self.error(key, self.opt(key), "a number above 0"))
    }

    fn divisors(&self, key: &str) -> Result<Vec<f64>, CheckpointError> {
        let divisors = self.opt_f64_list(key)?.unwrap_or_default();
        if divisors.is_empty() || divisors.iter().any(|&divisor| divisor <= 0.0) {
            return Err(self.error(key, self.opt(key), "a list of numbers above 0"));
        }
        Ok(divisors)
    }
}
