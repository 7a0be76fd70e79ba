//! What can go wrong, in one line each.

use halfbyte_backend::Fault;
use halfbyte_checkpoint::error::CheckpointError;
use halfbyte_inference::ModelError;
use halfbyte_placement::Refusal;

/// Any failure of halfbyte. Displays as one line that names the thing, the numbers and the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument that cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// A file of the model, or the Hub.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A model, prompt or request that cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It does not fit.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// A device.
    #[error(transparent)]
    Device(#[from] Fault),
}

impl From<Box<Refusal>> for Error {
    fn from(refusal: Box<Refusal>) -> Self {
        Self::Refused(refusal)
    }
}
