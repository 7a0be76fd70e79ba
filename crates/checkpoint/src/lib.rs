//! Reading Hugging Face checkpoints: safetensors, config.json, tokenizers, the Hub.
//!
//! The readers take bytes, so they also work in a browser; [`ModelFiles`] gathers the bytes of one
//! model and [`Checkpoint`] is what they make of it. Files and memory maps are in [`native`], the Hub
//! in [`hub`], each behind the feature of its name. With files comes [`write`](mod@write), which writes bitsandbytes
//! 4-bit checkpoints.
//!
//! ```no_run
//! use halfbyte_checkpoint::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("models/stories".as_ref())?;
//! let layers = checkpoint.config.usize("num_hidden_layers")?;
//! for tensor in checkpoint.index.iter() {
//!     println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
//! }
//! let norm: &[u8] = checkpoint.tensor_bytes("model.norm.weight")?;
//! let ids = checkpoint.tokenizer()?.encode("Once upon a time", true)?;
//! # Ok::<(), halfbyte_checkpoint::CheckpointError>(())
//! ```
//!
//! Nothing in a checkpoint is trusted: offsets, shapes, sizes, names and templates are checked, and
//! what does not hold becomes a [`CheckpointError`] of one line.

mod added_tokens;
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod decode_stream;
#[cfg(feature = "native")]
pub mod disk_rate;
pub mod dtype;
pub mod error;
mod fewest_tokens;
#[cfg(feature = "native")]
mod file_map;
pub mod files;
#[cfg(feature = "native")]
pub mod fingerprint;
pub mod generation;
pub mod header;
#[cfg(feature = "hub")]
pub mod hub;
pub mod index;
#[cfg(feature = "native")]
pub mod native;
mod pipeline;
pub mod quant_state;
pub mod quantization;
mod quiet_panic;
mod region;
pub mod rope;
pub mod selection;
mod sentencepiece;
mod strftime;
mod template_limits;
pub mod tokenizer;
#[cfg(feature = "native")]
pub mod write;

pub use chat_template::{ChatMessage, Conversation};
pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use decode_stream::DecodeStream;
pub use dtype::TensorDtype;
pub use error::CheckpointError;
pub use files::{FileBytes, ModelFiles, TokenizerFiles};
pub use generation::GenerationConfig;
pub use header::{Header, TensorInfo};
#[cfg(feature = "hub")]
pub use hub::{HubOptions, Progress, resolve};
pub use index::{ShardIndex, TensorIndex};
pub use quant_state::{LocatedWeight, QuantState, QuantizedWeight};
pub use quantization::QuantizationConfig;
pub use region::Region;
pub use rope::{RopeKind, RopeScaling};
pub use selection::{Fate, Selection};
pub use tokenizer::{SpannedTokens, Tokenizer};
#[cfg(feature = "native")]
pub use write::{
    TensorBytes, WriteOptions, WriteReport, quantized_bytes, write_originals, write_quantized,
    write_quantized_from,
};
