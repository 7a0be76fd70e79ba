//! The backend's account of bytes, without a device.

use crate::gpu::BufferPlan;
use crate::kv_plan::KvPlan;
use crate::linear_plan::LinearPlan;
use crate::program_plan::ProgramPlan;
use crate::staging::Staging;
use halfbyte_backend::{Caps, Fault, Footprint, Kind, Layout, Purpose, Stretch, Want};

/// What one buffer may hold at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) device: String,
    /// Bytes of the largest binding, which is also the largest buffer: buffers are bound whole.
    pub(crate) binding: u64,
    /// Bytes of the largest shard of weights or of a cache; at most `binding`.
    pub(crate) shard: u64,
    /// Slices of every context in decode, if they do not follow from its length.
    pub(crate) splits: Option<usize>,
}

impl Bounds {
    /// Fails if `what` cannot be bound.
    pub(crate) fn bindable(&self, what: &str, bytes: u64) -> Result<(), Fault> {
        if bytes <= self.binding { Ok(()) } else { Err(self.unsupported(what, bytes, self.binding)) }
    }

    /// The fault of something that takes more than `limit` bytes.
    pub(crate) fn unsupported(&self, what: &str, bytes: u64, limit: u64) -> Fault {
        Fault::Unsupported {
            device: self.device.clone(),
            what: format!(
                "{what} takes {bytes} bytes, a buffer holds {limit} at most: lower the rows, outputs or context \
                 that are asked for at once, or use another device"
            ),
        }
    }
}

/// The account of bytes of a [`WgpuBackend`](crate::WgpuBackend), a pure function of shapes and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WgpuLayout {
    pub(crate) bounds: Bounds,
}

impl WgpuLayout {
    /// The account for a device named `name` (as in `wgpu:0`) with `limits`; WebGPU's own are
    /// `wgpu::Limits::default()`.
    pub fn new(name: &str, limits: &wgpu::Limits) -> Self {
        let binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        // Word offsets are u32 in the shaders, and rows of padded activations must stay below that.
        let binding = binding.min(8 << 30) & !15;
        Self { bounds: Bounds { device: name.to_owned(), binding, shard: binding, splits: None } }
    }

    /// The same, but weights and caches are cut into shards of at most `bytes`.
    #[must_use]
    pub fn with_shards(mut self, bytes: u64) -> Self {
        self.bounds.shard = self.bounds.binding.min(bytes);
        self
    }

    /// The same, but decode cuts every context into `splits` slices, whatever its length.
    #[must_use]
    pub fn with_splits(mut self, splits: Option<usize>) -> Self {
        self.bounds.splits = splits;
        self
    }

    /// The buffers of a want, in the order in which the backend holds them.
    pub(crate) fn buffers(&self, want: &Want) -> Result<Vec<BufferPlan>, Fault> {
        let parts = match &want.kind {
            Kind::Linear(shape) => LinearPlan::new(shape, &self.bounds)?.buffers(),
            Kind::Norm(shape) => vec![(String::new(), 2 * stride(shape.len) as u64 * 4)],
            Kind::Rope(shape) => {
                self.bounds.bindable("the rope table", shape.bytes())?;
                vec![(String::new(), shape.bytes().max(8))]
            }
            Kind::Kv(shape) => KvPlan::new(shape, &self.bounds)?.buffers(),
        };
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let named = parts.into_iter().map(|(part, bytes)| BufferPlan {
            name: format!("{}{part}", want.name),
            purpose: want.purpose,
            bytes,
            usage,
        });
        Ok(named.collect())
    }
}

impl Layout for WgpuLayout {
    fn want(&self, kind: &Kind) -> Result<u64, Fault> {
        let want = Want { name: String::new(), purpose: Purpose::Weights, kind: kind.clone() };
        Ok(self.buffers(&want)?.iter().map(|buffer| buffer.bytes).sum())
    }

    fn program(&self, stretch: &Stretch, caps: &Caps) -> Result<Footprint, Fault> {
        Ok(footprint(&ProgramPlan::new(stretch, caps, &self.bounds)?.buffers))
    }

    fn resident(&self) -> Footprint {
        footprint(&Staging::plan())
    }
}

fn footprint(buffers: &[BufferPlan]) -> Footprint {
    let mut footprint = Footprint::new();
    buffers.iter().for_each(|buffer| footprint.add(buffer.purpose, buffer.bytes));
    footprint
}

/// Elements of a padded row: whole groups of 32.
pub(crate) fn stride(width: usize) -> usize {
    width.next_multiple_of(32)
}
