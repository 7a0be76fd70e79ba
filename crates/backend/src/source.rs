//! Where weights come from, again and again.

use crate::{DType, Fut, Mapped, Segment};
use halfbyte_quant::Quantized;
use std::borrow::Cow;

/// A tensor in its canonical bytes: the same whatever device they were or will be on.
#[derive(Debug, Clone)]
pub enum Canonical<'a> {
    /// `[rows, cols]`, row-major, little-endian, not necessarily aligned.
    Dense {
        /// Element type.
        dtype: DType,
        /// `rows * cols * dtype.size()` bytes.
        bytes: Cow<'a, [u8]>,
    },
    /// bitsandbytes' packed codes and quant state over the flattened `[rows, cols]`.
    Quantized(Cow<'a, Quantized>),
}

/// Yields every weight of a model as often as it is asked: from the 4-bit cache, a shard, or a seed.
/// A lost device or a moved layer is therefore no tragedy.
///
/// Failures are [`Fault::Source`](crate::Fault::Source) with a message that names file and tensor.
pub trait WeightSource {
    /// The segment in the format that it wants (`segment.format`), transposed if it says so.
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>>;

    /// A vector of `len` values in f32: a bias, a norm's weight.
    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>>;

    /// The segment where it lies in a mapped file, for a device that reads it there; `None`, as provided, if it
    /// does not lie there in the format that it wants.
    fn mapped<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Option<Mapped>> {
        let _ = segment;
        Box::pin(async { Ok(None) })
    }
}
