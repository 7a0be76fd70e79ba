//! Where the tensors come from that are written: a memory map, or a download that is going on.

use super::TensorBytes;
use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::fingerprint::fingerprint;
use crate::header::TensorInfo;
use serde_json::Value;
use std::borrow::Cow;
use std::ops::Deref;

/// Gives the bytes of tensors in the order in which they are written, each once.
pub trait Originals<'a> {
    /// What tells this source from others: an interrupted run of the same source is gone on with.
    fn identity(&self) -> Value;

    /// Told once, before the first tensor is asked for: which will be, in this order, and the
    /// [`mark`](Self::mark) of the last one of an interrupted run.
    ///
    /// # Errors
    /// If they cannot be had.
    fn expect(&mut self, tensors: &[&'a TensorInfo], mark: Option<&str>) -> Result<(), CheckpointError>;

    /// The bytes of the next tensor.
    ///
    /// # Errors
    /// If they cannot be had.
    fn next(&mut self, tensor: &'a TensorInfo) -> Result<Original<'a>, CheckpointError>;

    /// What this source wants to know of itself if the run ends after the tensor that it gave last.
    fn mark(&self) -> Option<String> {
        None
    }
}

/// The bytes of a tensor.
pub enum Original<'a> {
    /// Of a memory map.
    Mapped(&'a [u8]),
    /// Held in memory until this is dropped.
    Held(Box<dyn Deref<Target = [u8]> + Send + 'a>),
}

impl Deref for Original<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Original::Mapped(bytes) => bytes,
            Original::Held(bytes) => bytes,
        }
    }
}

/// Tensors that can be had in any order.
pub(super) struct Given<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) source: &'a dyn TensorBytes,
}

impl<'a> Originals<'a> for Given<'a> {
    fn identity(&self) -> Value {
        fingerprint(self.checkpoint)
    }

    fn expect(&mut self, _tensors: &[&'a TensorInfo], _mark: Option<&str>) -> Result<(), CheckpointError> {
        Ok(())
    }

    fn next(&mut self, tensor: &'a TensorInfo) -> Result<Original<'a>, CheckpointError> {
        Ok(match self.source.tensor(&tensor.name)? {
            Cow::Borrowed(bytes) => Original::Mapped(bytes),
            Cow::Owned(bytes) => Original::Held(Box::new(bytes)),
        })
    }
}
