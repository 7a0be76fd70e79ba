//! `generation_config.json`: how the model's authors want it sampled, and where it stops.

use crate::config::ModelConfig;
use crate::error::CheckpointError;

/// The defaults for generating. What a file does not say is `None`, so that the caller's own defaults can fill it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; chat models have several.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills shorter rows of a batch.
    pub pad_token_id: Option<u32>,
    /// Whether to draw at random rather than take the likeliest.
    pub do_sample: Option<bool>,
    /// Divides the logits before drawing.
    pub temperature: Option<f64>,
    /// Draw only from this many likeliest tokens; 0 for all.
    pub top_k: Option<usize>,
    /// Draw only from the likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Divides the logits of tokens that have occurred.
    pub repetition_penalty: Option<f64>,
    /// The most tokens to generate.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; the token ids that it lacks come from `config.json`.
    /// Without a file everything comes from there.
    ///
    /// # Errors
    /// Bad JSON, or values of the wrong kind or out of range.
    pub fn parse(
        file: Option<(&str, &[u8])>,
        config: &ModelConfig,
    ) -> Result<GenerationConfig, CheckpointError> {
        let mut generation = match file {
            Some((file, json)) => Self::read(&ModelConfig::parse_plain(file, json)?)?,
            // Configurations of old carried these themselves.
            None => Self::read(config)?,
        };
        let fallback = Self::token_ids(config)?;
        generation.bos_token_id = generation.bos_token_id.or(fallback.bos_token_id);
        generation.pad_token_id = generation.pad_token_id.or(fallback.pad_token_id);
        if generation.eos_token_ids.is_empty() {
            generation.eos_token_ids = fallback.eos_token_ids;
        }
        Ok(generation)
    }

    fn token_ids(json: &ModelConfig) -> Result<GenerationConfig, CheckpointError> {
        Ok(GenerationConfig {
            bos_token_id: json.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: json.token_ids("eos_token_id")?,
            pad_token_id: json.token_ids("pad_token_id")?.first().copied(),
            ..GenerationConfig::default()
        })
    }

    fn read(json: &ModelConfig) -> Result<GenerationConfig, CheckpointError> {
        let number = |key: &str, expected: &str, fits: fn(f64) -> bool| {
            let number = json.opt_f64(key)?;
            match number {
                Some(number) if !fits(number) => Err(json.error(key, json.opt(key), expected)),
                number => Ok(number),
            }
        };
        Ok(GenerationConfig {
            do_sample: json.opt_bool("do_sample")?,
            temperature: number("temperature", "a number of at least 0", |t| t >= 0.0)?,
            top_k: json.opt_usize("top_k")?,
            top_p: number("top_p", "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?,
            repetition_penalty: number("repetition_penalty", "a number above 0", |p| p > 0.0)?,
            max_new_tokens: json.opt_usize("max_new_tokens")?,
            ..Self::token_ids(json)?
        })
    }
}
