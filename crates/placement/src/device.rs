//! What the planner knows of a device.

use serde::Serialize;

/// What kind of place a device is, in the order of the stack: the first blocks of a model go to the
/// first of these that holds any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceClass {
    /// Weights are read from disk for every token: used only where nothing else fits.
    Disk,
    /// The host's processor.
    Cpu,
    /// A graphics processor, or one that the host's processor [emulates](Device::emulated).
    Gpu,
}

/// A device that blocks may be placed on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// As device maps name it: `cpu`, `wgpu:0`, `cuda:0`, `disk`.
    pub name: String,
    /// Devices of one pool share its memory: what they hold together counts against each budget.
    pub pool: String,
    /// Bytes of memory that may be held on it. A disk's are its host's: blocks that are read from it have
    /// their KV cache and their activations there.
    pub budget: u64,
    /// Where the budget comes from, as in `VK_EXT_memory_budget less 5%` or `--max-memory`.
    pub budget_source: String,
    /// What kind of place it is.
    pub kind: DeviceClass,
    /// Whether it is a GPU that the host's processor emulates: unmeasured, it is taken to be far slower than that.
    pub emulated: bool,
    /// Bytes of weights that it reads in a second of decoding, if measured.
    pub rate: Option<f64>,
    /// Bytes that reach it from the host in a second, if measured.
    pub upload: Option<f64>,
    /// Multiplications and additions of 4-bit products that it does in a second of a long prompt, if measured.
    pub products: Option<f64>,
    /// Of a disk, the bytes of files that may be read for every token; `None` for as many as it takes.
    pub files: Option<u64>,
}

/// Assumed of a processor whose rate nobody measured: two channels of slow DDR4. Only the ratio to
/// the other rates matters.
const ASSUMED_CPU_RATE: f64 = 20e9;

/// An unmeasured GPU is taken to be this many times as fast as the CPU, and the CPU this many times as
/// fast as an unmeasured disk.
const ASSUMED_RATIO: f64 = 10.0;

/// The CPU is taken to be this many times as fast as an unmeasured GPU that it emulates (Mesa's software Vulkan, decoding
/// in 4 bits on four cores with AVX-512).
const ASSUMED_EMULATION: f64 = 30.0;

impl Device {
    /// Whether it may read `bytes` of files.
    pub(crate) fn may_read(&self, bytes: u64) -> bool {
        self.files.is_none_or(|limit| bytes <= limit)
    }

    /// The stated rate, unless it is no rate at all (zero, negative, not finite).
    pub(crate) fn stated_rate(&self) -> Option<f64> {
        self.rate.filter(|rate| rate.is_finite() && *rate > 0.0)
    }
}

/// What the planner takes each device to read, in bytes a second, stated or assumed: a CPU reads [`ASSUMED_CPU_RATE`], a
/// GPU ten times what the first CPU reads, an emulated one a thirtieth, a disk a tenth.
pub fn rates(devices: &[Device]) -> Vec<f64> {
    let cpu = devices
        .iter()
        .filter(|device| device.kind == DeviceClass::Cpu)
        .find_map(Device::stated_rate)
        .unwrap_or(ASSUMED_CPU_RATE);
    let assumed = |device: &Device| match device.kind {
        DeviceClass::Disk => cpu / ASSUMED_RATIO,
        DeviceClass::Cpu => cpu,
        DeviceClass::Gpu if device.emulated => cpu / ASSUMED_EMULATION,
        DeviceClass::Gpu => cpu * ASSUMED_RATIO,
    };
    devices.iter().map(|device| device.stated_rate().unwrap_or_else(|| assumed(device))).collect()
}
