//! From a checkpoint to tokens.
//!
//! A family file turns a configuration into a [`Blueprint`]: named blocks of fused steps over the
//! memory they want. An [`Engine`] puts ranges of blocks on backends, fills them from a
//! [`WeightSource`](halfbyte_backend::WeightSource) and passes hidden states from one to the next. A
//! [`Session`] is one sequence of tokens with its KV cache; [`generate`] and [`score`] are what is
//! done with it.
//!
//! Everything here takes bytes and returns futures: it opens no files, starts no threads and never
//! blocks, so that it also runs in a browser.

#![forbid(unsafe_code)]

pub mod blueprint;
pub mod engine;
pub mod error;
pub mod families;
pub mod generate;
pub mod rope;
pub mod score;
pub mod session;
pub mod settings;
pub mod source;
pub mod synthetic;
pub mod tensors;

pub use blueprint::{Block, Blueprint};
pub use engine::{DeviceFootprint, Engine, Progress};
pub use error::ModelError;
pub use families::build;
pub use generate::{Finish, Flow, GenerateOptions, Generation, Timings, generate};
pub use score::{Score, logits, score};
pub use session::Session;
pub use settings::Settings;
pub use source::CheckpointSource;
pub use synthetic::SyntheticModel;
pub use tensors::{Stored, Tensors};
