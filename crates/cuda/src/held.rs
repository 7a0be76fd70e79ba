//! What a slot holds.

use crate::kernels::variant::Norming;
use crate::weight::WeightLayout;
use cubecl::server::Handle;
use halfbyte_backend::kv::Record;
use halfbyte_backend::{Fault, KvShape, Norm, NormKind, Stretch, WantId};

/// The buffers of a linear layer on the device; see [`WeightLayout`] for what is in them.
#[derive(Debug, Clone)]
pub(crate) struct WeightBuffers {
    pub codes: Handle,
    pub scales: Handle,
    pub state: Handle,
}

/// A want's buffers.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    Linear(WeightLayout, WeightBuffers),
    /// The weight, and whether a bias follows it.
    Norm(Handle, bool),
    /// Cosines and sines `[positions, pairs, 2]`.
    Rope {
        table: Handle,
        pairs: usize,
    },
    /// `[sequences, kv_heads, slots]` records each.
    Kv {
        keys: Handle,
        values: Handle,
        shape: KvShape,
    },
}

/// Bytes of the keys of a cache, or of its values.
pub(crate) fn kv_bytes(shape: &KvShape) -> u64 {
    let record = Record::of(shape);
    (shape.sequences * shape.kv_heads * shape.slots() * record.words()) as u64 * 4
}

/// The slots of a stretch's wants, by [`WantId`].
pub(crate) struct Wants<'a> {
    pub stretch: &'a Stretch,
    pub held: &'a [Held],
}

/// A norm as the kernels take it.
#[derive(Debug, Clone)]
pub(crate) struct NormUse {
    pub weight: Handle,
    pub norming: Norming,
    pub eps: f32,
    pub offset: f32,
}

impl<'a> Wants<'a> {
    fn held(&self, id: WantId) -> Result<&'a Held, Fault> {
        self.held.get(id.0 as usize).ok_or_else(|| Fault::Internal(format!("no slot for want {}", id.0)))
    }

    fn other(&self, id: WantId, wanted: &str) -> Fault {
        match self.stretch.want(id) {
            Ok(want) => Fault::Internal(format!("the slot of {} holds no {wanted}", want.name)),
            Err(fault) => fault,
        }
    }

    pub(crate) fn linear(&self, id: WantId) -> Result<(&'a WeightLayout, &'a WeightBuffers), Fault> {
        match self.held(id)? {
            Held::Linear(layout, buffers) => Ok((layout, buffers)),
            _ => Err(self.other(id, "matrix")),
        }
    }

    pub(crate) fn norm(&self, norm: &Norm) -> Result<NormUse, Fault> {
        let Held::Norm(weight, bias) = self.held(norm.weight)? else {
            return Err(self.other(norm.weight, "norm"));
        };
        let norming = match norm.kind {
            NormKind::Rms => Norming::Rms,
            NormKind::Layer => Norming::Layer { bias: *bias },
        };
        Ok(NormUse { weight: weight.clone(), norming, eps: norm.eps, offset: norm.offset })
    }

    pub(crate) fn rope(&self, id: WantId) -> Result<(&'a Handle, usize), Fault> {
        match self.held(id)? {
            Held::Rope { table, pairs } => Ok((table, *pairs)),
            _ => Err(self.other(id, "rope table")),
        }
    }

    pub(crate) fn kv(&self, id: WantId) -> Result<(&'a Handle, &'a Handle, &'a KvShape), Fault> {
        match self.held(id)? {
            Held::Kv { keys, values, shape } => Ok((keys, values, shape)),
            _ => Err(self.other(id, "KV cache")),
        }
    }
}
