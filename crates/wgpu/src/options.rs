//! How a device is opened.

use crate::Tuning;

/// Choices in opening a device; the default takes what the adapter offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The most bytes to hold; `reserve` and `compile` refuse beyond it.
    pub budget: Option<u64>,
    /// The largest shard of weights or of a cache, where it is to be smaller than the adapter's
    /// largest binding.
    pub max_binding: Option<u64>,
    /// Whether sums use subgroups; by default wherever the adapter has them.
    pub subgroups: Option<bool>,
    /// Shapes of kernels; by default those for the adapter. Its `subgroup` is not taken.
    pub tuning: Option<Tuning>,
    /// Slices that decode cuts every context into, 1 at least; by default they follow from its length. For tests.
    pub splits: Option<usize>,
    /// Whether shaders carry bounds checks of every access: for tests. The shaders are this workspace's
    /// own, and submissions are checked before they run; a browser checks in any case.
    pub checked: bool,
}
