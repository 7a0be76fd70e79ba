//! How a device is opened.

/// Choices in opening a device; the default takes what the adapter offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most bytes to hold; `reserve` and `compile` refuse beyond it.
    pub budget: Option<u64>,
    /// The largest shard of weights or of a cache, where it is to be smaller than the adapter's
    /// largest binding.
    pub max_binding: Option<u64>,
    /// Whether sums use subgroups; by default wherever the adapter has them.
    pub subgroups: Option<bool>,
    /// Whether shaders carry the driver's bounds checks. Without them a defect of halfbyte could read
    /// other memory of this process' device.
    pub checked: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { budget: None, max_binding: None, subgroups: None, checked: true }
    }
}
