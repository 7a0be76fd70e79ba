//! What a slot holds.

use crate::gpu::Allocation;
use crate::kv_plan::KvPlan;
use crate::layout::stride;
use crate::linear_plan::LinearPlan;
use halfbyte_backend::{Fault, Norm, NormKind, Stretch, WantId};
use std::rc::Rc;

/// A want's buffers.
#[derive(Debug)]
pub(crate) enum Held {
    Linear(LinearHeld),
    Norm { buffer: Allocation, len: usize },
    Rope { buffer: Allocation, pairs: usize, positions: usize },
    Kv(KvHeld),
}

/// A linear layer's buffers.
#[derive(Debug)]
pub(crate) struct LinearHeld {
    pub(crate) plan: LinearPlan,
    pub(crate) shards: Vec<Allocation>,
    pub(crate) scales: Option<Allocation>,
    pub(crate) tables: Option<Allocation>,
}

impl LinearHeld {
    /// The shard that holds a layer row, and the row in it.
    pub(crate) fn shard_of(&self, row: usize) -> (&Allocation, usize) {
        let per_shard = self.plan.shards[0].1;
        let index = (row / per_shard).min(self.shards.len() - 1);
        (&self.shards[index], row - self.plan.shards[index].0)
    }
}

/// A cache's buffers: keys and values of each shard.
#[derive(Debug)]
pub(crate) struct KvHeld {
    pub(crate) plan: KvPlan,
    pub(crate) shards: Vec<(Allocation, Allocation)>,
}

/// The slots of a stretch's wants, by [`WantId`].
pub(crate) struct Wants<'a> {
    pub(crate) stretch: &'a Stretch,
    pub(crate) held: &'a [Rc<Held>],
}

/// A norm as the kernels take it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormUse<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) layer: f64,
    pub(crate) eps: f64,
    pub(crate) offset: f64,
    /// Where the bias starts.
    pub(crate) bias_at: f64,
}

impl<'a> Wants<'a> {
    fn held(&self, id: WantId) -> Result<&'a Held, Fault> {
        self.held
            .get(id.0 as usize)
            .map(Rc::as_ref)
            .ok_or_else(|| Fault::Internal(format!("step names want {} of {}", id.0, self.held.len())))
    }

    fn mismatch(&self, id: WantId) -> Fault {
        let name = self.stretch.want(id).map_or("", |want| want.name.as_str());
        Fault::Internal(format!("the slot of {name} holds something else"))
    }

    pub(crate) fn linear(&self, id: WantId) -> Result<&'a LinearHeld, Fault> {
        match self.held(id)? {
            Held::Linear(held) => Ok(held),
            _ => Err(self.mismatch(id)),
        }
    }

    pub(crate) fn norm(&self, norm: &Norm) -> Result<NormUse<'a>, Fault> {
        let Held::Norm { buffer, len } = self.held(norm.weight)? else {
            return Err(self.mismatch(norm.weight));
        };
        Ok(NormUse {
            buffer: &buffer.buffer,
            layer: f64::from(u8::from(norm.kind == NormKind::Layer)),
            eps: f64::from(norm.eps),
            offset: f64::from(norm.offset),
            bias_at: stride(*len) as f64,
        })
    }

    /// The table, its pairs and its positions.
    pub(crate) fn rope(&self, id: WantId) -> Result<(&'a wgpu::Buffer, usize, usize), Fault> {
        match self.held(id)? {
            Held::Rope { buffer, pairs, positions } => Ok((&buffer.buffer, *pairs, *positions)),
            _ => Err(self.mismatch(id)),
        }
    }

    pub(crate) fn kv(&self, id: WantId) -> Result<&'a KvHeld, Fault> {
        match self.held(id)? {
            Held::Kv(held) => Ok(held),
            _ => Err(self.mismatch(id)),
        }
    }
}
