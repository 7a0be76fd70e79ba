//! Devices: what they are, what they hold, what they run.

use crate::{
    Caps, Fault, Footprint, Fut, Kind, KvRows, KvSpan, Ledger, Program, Slot, Stretch, Want, WeightSource,
};

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A GPU with memory of its own.
    DiscreteGpu,
    /// A GPU that shares the host's memory.
    IntegratedGpu,
    /// The host's processor.
    Cpu,
    /// A GPU interface that the processor emulates: right, and slow.
    Software,
    /// The host's processor, with weights that stay on the disk.
    Disk,
}

/// A device as `halfbyte devices` shows it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DeviceInfo {
    /// As device maps name it: `cpu`, `wgpu:0`, `cuda:0`.
    pub name: String,
    /// The maker's name for it.
    pub adapter: String,
    /// API and driver, as in `Vulkan, Mesa 22.3.6`.
    pub driver: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Limits and features worth knowing, by name.
    pub limits: Vec<(String, String)>,
}

/// A device's memory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Devices with the same pool share their memory: it is counted once.
    pub pool: String,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
    /// Bytes free now, where that is known.
    pub free: Option<u64>,
    /// Where the figures come from, as in `/proc/meminfo` or `VK_EXT_memory_budget`.
    pub source: String,
}

/// A backend's account of bytes, without a device: pure functions of shapes. `reserve` and `compile`
/// allocate exactly this, so a plan made from it comes true.
pub trait Layout {
    /// Bytes that a want takes.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if the backend cannot hold it.
    fn want(&self, kind: &Kind) -> Result<u64, Fault>;

    /// [`want`](Self::want) by purpose, with what is read where it lies in a file: as provided, nothing.
    ///
    /// # Errors
    /// As [`want`](Self::want).
    fn want_footprint(&self, want: &Want) -> Result<Footprint, Fault> {
        Ok(Footprint::of(want.purpose, self.want(&want.kind)?))
    }

    /// Bytes that a compiled stretch takes beside its wants: registers, logits, scratch, staging.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if the backend cannot run a step.
    fn program(&self, stretch: &Stretch, caps: &Caps) -> Result<Footprint, Fault>;

    /// Bytes that the backend holds as long as it is open (staging), whatever it runs.
    fn resident(&self) -> Footprint;
}

/// A device that can hold weights and run steps.
///
/// Calls are futures because in the browser every one of them is; natively they end at once or when
/// the device has answered.
pub trait Backend {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// Its account of bytes.
    fn layout(&self) -> &dyn Layout;

    /// Its memory now.
    fn memory(&self) -> Memory;

    /// Every allocation that it holds.
    fn ledger(&self) -> &Ledger;

    /// Allocates all wants or none. Rope tables and KV caches are ready for use after it; the other
    /// kinds await [`upload`](Self::upload).
    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>>;

    /// Fills a slot that was reserved for `want`, or for one that [takes the same place](Kind::lies_as), from `source`. Host memory beyond the slot's own: one
    /// segment in canonical bytes and the staging buffer.
    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()>;

    /// Frees slots; unknown ones are ignored. Programs that use them must be gone.
    fn release(&self, slots: &[Slot]);

    /// What an upload put into a slot that was reserved for `want`, to be had again in canonical bytes: another
    /// device is filled from it without the model's files.
    ///
    /// # Errors
    /// [`Fault::Unsupported`], as provided, where the way back from the device's own layout is not known.
    fn contents<'a>(&'a self, slot: Slot, want: &'a Want) -> Result<Box<dyn WeightSource + 'a>, Fault> {
        let _ = slot;
        Err(self.info().unsupported(format!("no way back for the weights of {}", want.name)))
    }

    /// Whether [`read_kv`](Self::read_kv) and [`write_kv`](Self::write_kv) are there.
    fn moves_kv(&self) -> bool {
        false
    }

    /// Keys and values out of a cache's slot, after everything that was submitted before. What no submission wrote
    /// is whatever lay there.
    fn read_kv<'a>(&'a self, _slot: Slot, _span: KvSpan) -> Fut<'a, KvRows> {
        Box::pin(async { Err(self.info().unsupported("no way for keys and values to leave it")) })
    }

    /// Keys and values into a cache's slot, after everything that was submitted before.
    fn write_kv<'a>(&'a self, _slot: Slot, _span: KvSpan, _rows: &'a KvRows) -> Fut<'a, ()> {
        Box::pin(async { Err(self.info().unsupported("no way for keys and values to reach it")) })
    }

    /// Bytes a second that the device reads from its own memory, measured now with a buffer that no cache
    /// holds: the limit that every speed is printed beside.
    ///
    /// The measurement's own memory is freed before it returns and never enters the ledger.
    fn read_bandwidth(&self) -> Fut<'_, f64> {
        Box::pin(async { Err(self.info().unsupported("no measurement of its read bandwidth")) })
    }

    /// Compiles a stretch over the slots of its wants (`slots[i]` is for `stretch.wants[i]`).
    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>>;
}

impl DeviceInfo {
    /// Shorthand for [`Fault::Unsupported`] on this device.
    pub fn unsupported(&self, what: impl Into<String>) -> Fault {
        Fault::Unsupported { device: self.name.clone(), what: what.into() }
    }
}
