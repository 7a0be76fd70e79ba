//! What a model asks a device to hold.

use crate::{KvShape, LinearShape, Purpose, RopeShape};

/// A want's place in its [`Stretch`](crate::Stretch): steps name their weights by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WantId(pub u32);

/// A reserved want on one backend. Opaque; never used on another backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

/// The weight of a normalization, and its bias if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NormShape {
    /// Features.
    pub len: usize,
    /// Name of the weight, `[len]`.
    pub weight: String,
    /// Name of the bias, `[len]` (LayerNorm).
    pub bias: Option<String>,
}

/// What is held.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A linear layer, an embedding table or an output head.
    Linear(LinearShape),
    /// The parameters of a norm, held in f32.
    Norm(NormShape),
    /// Cosines and sines, made on the host.
    Rope(RopeShape),
    /// Keys and values of one layer. Not uploaded.
    Kv(KvShape),
}

/// One thing that a model asks a device to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Want {
    /// Its name in ledgers and errors, as in `model.layers.0.self_attn.qkv`.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// What it is.
    pub kind: Kind,
}

impl Kind {
    /// Whether `other` takes the same place: a slot that was reserved for one can be filled with the other.
    pub fn lies_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Kind::Linear(one), Kind::Linear(two)) => one.lies_as(two),
            (Kind::Norm(one), Kind::Norm(two)) => {
                one.len == two.len && one.bias.is_some() == two.bias.is_some()
            }
            (one, two) => one == two,
        }
    }
}
