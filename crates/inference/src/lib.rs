//! From a checkpoint to tokens.
//!
//! A family file turns a configuration into a [`Blueprint`]: named blocks of fused steps over the
//! memory they want. An [`Engine`] puts ranges of blocks on backends, fills them from a
//! [`WeightSource`](halfbyte_backend::WeightSource) and passes hidden states from one to the next. A
//! [`Session`] is one sequence of tokens with its KV cache; [`generate()`] and [`score()`] are what is
//! done with it.
//!
//! ```
//! use halfbyte_backend::{Backend, Caps};
//! use halfbyte_checkpoint::Checkpoint;
//! use halfbyte_inference::{
//!     CheckpointSource, Engine, Flow, GenerateOptions, Session, Settings, build, generate,
//! };
//! use std::rc::Rc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # pollster::block_on(async {
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stories");
//! let checkpoint = Checkpoint::open(folder.as_ref())?;
//! let blueprint = build(&checkpoint.config, &checkpoint.index, &Settings::default())?;
//!
//! let cpu: Rc<dyn Backend> = Rc::new(halfbyte_cpu::CpuBackend::new()?);
//! let placement = vec![(cpu, 0..blueprint.blocks.len())];
//! let source = CheckpointSource::new(&checkpoint);
//! let caps = Caps { rows: 128, outputs: 1 };
//! let mut engine = Engine::load(blueprint, placement, caps, &source, &mut |_| {}).await?;
//!
//! let tokenizer = checkpoint.tokenizer()?;
//! let prompt = tokenizer.encode("Once there was", true)?;
//! let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
//! let mut session = Session::new(0);
//! let text = generate(&mut engine, &mut session, &prompt, &options, &mut |_| Flow::Continue).await?;
//! assert_eq!(tokenizer.decode(&text.tokens, true)?, " a quick boy named Hugo. He al");
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! Everything here takes bytes and returns futures: it opens no files, starts no threads and never
//! blocks, so that it also runs in a browser.

#![forbid(unsafe_code)]

pub mod blueprint;
pub mod encode;
pub mod engine;
pub mod error;
pub mod families;
pub mod generate;
pub mod generate_batch;
pub mod known_models;
mod located;
pub mod rope;
pub mod score;
pub mod session;
pub mod settings;
pub mod source;
pub mod synthetic;
mod synthetic_outline;
pub mod tensors;

pub use blueprint::{Block, Blueprint, Task};
pub use encode::{Encoded, Features, classify, features};
pub use engine::{DeviceFootprint, Engine, Moved, Placement, Progress, Stream, StreamFootprints};
pub use error::ModelError;
pub use families::build;
pub use generate::{Came, Finish, Flow, GenerateOptions, Generation, Timings, generate, generate_heard};
pub use generate_batch::{generate_batch, generate_each, generate_until};
pub use known_models::{KnownModel, smaller_of_the_family};
pub use score::{Logits, Score, Scoring, logits, score};
pub use session::Session;
pub use settings::Settings;
pub use source::{CheckpointSource, Initialized};
pub use synthetic::SyntheticModel;
pub use tensors::{Stored, Tensors};
