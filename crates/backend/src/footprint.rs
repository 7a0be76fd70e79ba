//! Bytes by purpose: the unit in which plans and ledgers are written.

use std::collections::BTreeMap;
use std::fmt;

/// What device memory is for. Every allocation has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Weights of layers: 4-bit codes, their scales, biases, norms.
    Weights,
    /// Embedding tables and output heads, usually 16-bit.
    Embeddings,
    /// Tables of rotary position embeddings.
    RopeTable,
    /// Keys and values of the context.
    KvCache,
    /// Registers of a program: residual stream, q|k|v, feed-forward.
    Activations,
    /// Logits and what sampling needs.
    Logits,
    /// Buffers that upload and read back.
    Staging,
    /// Everything else a program needs: parameters, row metadata, partial results.
    Scratch,
    /// Weights that are read where they lie in a mapped file. Their pages are the system's, which drops and
    /// reads them again as it likes: no part of [`Footprint::total`].
    Mapped,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::Weights => "weights",
            Purpose::Embeddings => "embeddings",
            Purpose::RopeTable => "rope tables",
            Purpose::KvCache => "KV cache",
            Purpose::Activations => "activations",
            Purpose::Logits => "logits",
            Purpose::Staging => "staging",
            Purpose::Scratch => "scratch",
            Purpose::Mapped => "mapped files",
        })
    }
}

/// Bytes for each [`Purpose`].
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Footprint(BTreeMap<Purpose, u64>);

impl Footprint {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// `bytes` for one purpose.
    pub fn of(purpose: Purpose, bytes: u64) -> Self {
        let mut footprint = Self::new();
        footprint.add(purpose, bytes);
        footprint
    }

    /// Adds `bytes` for `purpose`.
    pub fn add(&mut self, purpose: Purpose, bytes: u64) {
        if bytes > 0 {
            let entry = self.0.entry(purpose).or_default();
            *entry = entry.saturating_add(bytes);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Footprint) {
        for (&purpose, &bytes) in &other.0 {
            self.add(purpose, bytes);
        }
    }

    /// Takes `bytes` for `purpose` away; never below zero.
    pub fn remove(&mut self, purpose: Purpose, bytes: u64) {
        if let Some(entry) = self.0.get_mut(&purpose) {
            *entry = entry.saturating_sub(bytes);
            if *entry == 0 {
                self.0.remove(&purpose);
            }
        }
    }

    /// Bytes for `purpose`.
    pub fn get(&self, purpose: Purpose) -> u64 {
        self.0.get(&purpose).copied().unwrap_or(0)
    }

    /// Bytes of memory, for all purposes. [`Purpose::Mapped`] is none.
    pub fn total(&self) -> u64 {
        let held = self.iter().filter(|&(purpose, _)| purpose != Purpose::Mapped);
        held.fold(0, |sum, (_, bytes)| sum.saturating_add(bytes))
    }

    /// Bytes that are read where they lie in mapped files.
    pub fn mapped(&self) -> u64 {
        self.get(Purpose::Mapped)
    }

    /// Purposes and their bytes, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (Purpose, u64)> + '_ {
        self.0.iter().map(|(&purpose, &bytes)| (purpose, bytes))
    }
}
