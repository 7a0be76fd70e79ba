//! Bytes of weights: copied into memory, or where they lie in a mapped file.

use crate::buffer::{Shortage, zeroed};
use halfbyte_backend::MappedBytes;
use std::ops::Deref;
use std::sync::Arc;

/// The bytes of a tensor.
#[derive(Debug)]
pub(crate) enum Store {
    /// In memory of our own, which others may come to read, too, once it is filled.
    Held(Arc<Vec<u8>>),
    /// In a file.
    Mapped(Arc<dyn MappedBytes>),
}

impl Store {
    /// `len` zeros of our own.
    pub fn zeroed(len: usize) -> Result<Self, Shortage> {
        zeroed(len).map(|bytes| Self::Held(Arc::new(bytes)))
    }

    /// Nothing yet: to become [`Mapped`](Self::Mapped).
    pub fn empty() -> Self {
        Self::Held(Arc::default())
    }

    /// Bytes of memory that it takes.
    pub fn held(&self) -> u64 {
        match self {
            Self::Held(bytes) => bytes.len() as u64,
            Self::Mapped(_) => 0,
        }
    }

    /// To be filled; `None` if it lies in a file, or if somebody else reads it.
    pub fn own(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::Held(bytes) => Arc::get_mut(bytes).map(Vec::as_mut_slice),
            Self::Mapped(_) => None,
        }
    }

    /// The bytes for somebody else to read, too.
    pub fn share(&self) -> Arc<dyn MappedBytes> {
        match self {
            Self::Held(bytes) => Arc::clone(bytes) as Arc<dyn MappedBytes>,
            Self::Mapped(bytes) => Arc::clone(bytes),
        }
    }

    /// What is in a file.
    pub fn file(&self) -> Option<&Arc<dyn MappedBytes>> {
        match self {
            Self::Held(_) => None,
            Self::Mapped(bytes) => Some(bytes),
        }
    }
}

impl Deref for Store {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Held(bytes) => bytes,
            Self::Mapped(file) => file.bytes(),
        }
    }
}

/// Float `index` of little-endian floats, which a file need not have aligned.
#[inline(always)]
pub(crate) fn float(bytes: &[u8], index: usize) -> f32 {
    let (floats, _) = bytes.as_chunks::<4>();
    f32::from_le_bytes(floats[index])
}
