//! Parts of a model's files that outlive their checkpoint.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A file's contents, wherever they are. Advice is ignored where it means nothing.
pub(crate) trait Contents: Send + Sync {
    /// The contents.
    fn bytes(&self) -> &[u8];

    /// A range is read soon.
    fn will_need(&self, _range: &Range<usize>) {}

    /// A range is not read soon.
    fn done_with(&self, _range: &Range<usize>) {}
}

/// Contents in memory.
pub(crate) struct InMemory<T>(pub T);

impl<T: AsRef<[u8]> + Send + Sync> Contents for InMemory<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// A range of a model's file, which it keeps open, or mapped, for as long as it lives.
#[derive(Clone)]
pub struct Region {
    contents: Arc<dyn Contents>,
    range: Range<usize>,
}

impl Region {
    /// `None` if the file does not reach that far.
    pub(crate) fn new(contents: &Arc<dyn Contents>, range: Range<usize>) -> Option<Region> {
        contents.bytes().get(range.clone())?;
        Some(Region { contents: Arc::clone(contents), range })
    }

    /// The bytes. Those of a memory map are read from the disk when they are touched.
    pub fn bytes(&self) -> &[u8] {
        // Checked when it was made; a map does not change its length.
        self.contents.bytes().get(self.range.clone()).unwrap_or_default()
    }

    /// Has the system read them from the disk, without waiting for it.
    pub fn will_need(&self) {
        self.contents.will_need(&self.range);
    }

    /// Gives their memory back to the system, which reads them again when they are touched.
    pub fn done_with(&self) {
        self.contents.done_with(&self.range);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:?})", self.range)
    }
}
