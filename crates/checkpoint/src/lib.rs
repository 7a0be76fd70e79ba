//! Reading Hugging Face checkpoints: safetensors, config.json, tokenizers, the Hub.
pub mod config;
pub mod dtype;
pub mod error;
pub mod generation;
pub mod header;
pub mod index;
pub mod rope;
