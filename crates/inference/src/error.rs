//! Why a model cannot be built, loaded or run.

use crate::Task;
use halfbyte_backend::Fault;
use halfbyte_checkpoint::CheckpointError;

/// A failed request. Every message is one line that names the thing, the numbers and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The checkpoint is broken or of a kind that is not read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A device failed. [`Fault::OutOfMemory`] asks for another placement, [`Fault::Lost`] for a new
    /// engine.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// No family file knows the architecture.
    #[error("{}; supported are {supported}", unknown_architecture(found))]
    Architecture {
        /// What `config.json` names; empty where it names none.
        found: String,
        /// All that are known.
        supported: String,
    },
    /// The model is for something else.
    #[error("{architecture} is made for {found}, not for {wanted}: {instead}")]
    Task {
        /// What `config.json` names.
        architecture: String,
        /// What the model is for.
        found: Task,
        /// What it was asked for.
        wanted: Task,
        /// What to do instead.
        instead: String,
    },
    /// The architecture is known, but not with this option.
    #[error("{what} is not supported: {instead}")]
    Unsupported {
        /// The option and its value, with where it was found.
        what: String,
        /// What to do instead.
        instead: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {tensor} in {file} has shape {found:?}, but config.json asks for {wanted:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The file that holds it.
        file: String,
        /// Its shape there.
        found: Vec<usize>,
        /// The shape that the model needs.
        wanted: Vec<usize>,
    },
    /// A tensor's elements are of a type that weights cannot have.
    #[error("tensor {tensor} in {file} is stored as {dtype}: {instead}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The file that holds it.
        file: String,
        /// Its element type there.
        dtype: String,
        /// What would be right.
        instead: String,
    },
    /// Tensors that one step reads together are held differently.
    #[error(
        "{first} and {second} are held in different formats, which one gated step cannot read; name both or neither in llm_int8_skip_modules"
    )]
    MixedFormats {
        /// One tensor.
        first: String,
        /// The other.
        second: String,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty: give at least one token (most models begin with their bos token)")]
    EmptyPrompt,
    /// More tokens than the context holds.
    #[error(
        "the prompt has {tokens} tokens, but the context holds {context}; {}",
        if tokens > max_positions { format!("shorten it: the model was made for {max_positions}") } else { format!("shorten it, or load the model with a context of at least {tokens}") }
    )]
    ContextTooShort {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the KV cache.
        context: usize,
        /// Positions that the model was trained for.
        max_positions: usize,
    },
    /// A text of more tokens than the context holds, which its size alone shows.
    #[error(
        "the prompt has {bytes} bytes, which are {fewest} tokens or more, but the context holds {context}; {}",
        if fewest > max_positions { format!("shorten it: the model was made for {max_positions}") } else { format!("shorten it, or load the model with a context of more than {fewest}") }
    )]
    PromptTooLong {
        /// Bytes of the prompt.
        bytes: usize,
        /// The fewest tokens that it can have.
        fewest: usize,
        /// Positions of the KV cache.
        context: usize,
        /// Positions that the model was trained for.
        max_positions: usize,
    },
    /// A token id that the model does not embed.
    #[error("token id {token} is not in the vocabulary of {vocab}: ids of another model's tokenizer?")]
    Token {
        /// The id.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A request that contradicts the engine: a placement with gaps, a sequence that it has not.
    #[error("invalid request: {0}")]
    Invalid(String),
}

fn unknown_architecture(found: &str) -> String {
    match found {
        "" => "config.json names no architecture: it wants \"architectures\": [\"NAME\"]".to_owned(),
        _ => format!("architecture {found} is not supported"),
    }
}
