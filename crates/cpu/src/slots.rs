//! What is behind a slot.

use crate::buffer::{Shortage, zeroed};
use crate::cache::Cache;
use crate::matrix::Matrix;
use halfbyte_backend::{Fault, Kind, NormShape, RopeShape, RopeTable, Slot};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Contents that a slot and the programs over it share.
#[derive(Debug)]
pub(crate) struct Shared<T>(Arc<RwLock<T>>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Shared<T> {
    fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }

    /// To look at. A kernel that panicked leaves plain numbers behind, so that poison says nothing.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parameters of a norm.
#[derive(Debug)]
pub(crate) struct NormParams {
    /// `[len]`
    pub weight: Vec<f32>,
    /// `[len]`, or empty.
    pub bias: Vec<f32>,
}

impl NormParams {
    fn reserve(shape: &NormShape) -> Result<Self, Shortage> {
        Ok(Self {
            weight: zeroed(shape.len)?,
            bias: zeroed(if shape.bias.is_some() { shape.len } else { 0 })?,
        })
    }
}

/// A reserved want.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    /// [`Kind::Linear`]
    Linear(Shared<Matrix>),
    /// [`Kind::Norm`]
    Norm(Shared<NormParams>),
    /// [`Kind::Rope`]
    Rope(Shared<RopeTable>),
    /// [`Kind::Kv`]
    Kv(Shared<Cache>),
}

impl Stored {
    /// Allocates what `kind` takes: of a matrix that stays in its file, little. `in_bytes` as for
    /// [`Matrix::reserve`].
    pub fn reserve(kind: &Kind, in_files: bool, in_bytes: bool) -> Result<Self, Shortage> {
        Ok(match kind {
            Kind::Linear(shape) if in_files => Stored::Linear(Shared::new(Matrix::reserve_in_file(shape)?)),
            Kind::Linear(shape) => Stored::Linear(Shared::new(Matrix::reserve(shape, in_bytes)?)),
            Kind::Norm(shape) => Stored::Norm(Shared::new(NormParams::reserve(shape)?)),
            Kind::Rope(shape) => Stored::Rope(Shared::new(rope_table(shape)?)),
            Kind::Kv(shape) => Stored::Kv(Shared::new(Cache::reserve(*shape)?)),
        })
    }

    /// Bytes of its arrays, as allocated.
    pub fn bytes(&self) -> u64 {
        match self {
            Stored::Linear(matrix) => matrix.read().bytes(),
            Stored::Norm(norm) => {
                let norm = norm.read();
                ((norm.weight.len() + norm.bias.len()) * 4) as u64
            }
            Stored::Rope(table) => (table.read().values.len() * 4) as u64,
            Stored::Kv(cache) => cache.read().bytes(),
        }
    }
}

fn rope_table(shape: &RopeShape) -> Result<RopeTable, Shortage> {
    let mut values = zeroed(shape.positions * shape.inv_freq.len() * 2)?;
    for (value, made) in values.iter_mut().zip(shape.values()) {
        *value = made;
    }
    Ok(RopeTable { pairs: shape.inv_freq.len(), values })
}

/// One reserved want, with its tickets in the ledger.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its contents.
    pub stored: Stored,
    /// To strike it with.
    pub tickets: Vec<u64>,
}

/// All slots of a backend.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

impl Slots {
    /// Takes an entry in.
    pub fn insert(&mut self, entry: Entry) -> Slot {
        let id = self.next;
        self.next += 1;
        self.entries.insert(id, entry);
        Slot(id)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, slot: Slot) -> Option<Entry> {
        self.entries.remove(&slot.0)
    }

    /// The contents of `slot`.
    ///
    /// # Errors
    /// [`Fault::Internal`] if it was never reserved or is released.
    pub fn get(&self, slot: Slot) -> Result<&Stored, Fault> {
        let entry = self.entries.get(&slot.0);
        entry.map(|entry| &entry.stored).ok_or_else(|| Fault::Internal(format!("slot {} is empty", slot.0)))
    }
}
