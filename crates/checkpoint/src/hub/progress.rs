//! How a download tells of itself.

/// Hears of downloads, to draw bars with. `()` hears nothing.
pub trait Progress {
    /// `done` of a file's `total` bytes are there. Several files are fetched at a time; a file is heard of
    /// again and again until all of it is there. What an earlier, broken-off download left counts as done.
    fn file(&mut self, file: &str, done: u64, total: u64) {
        let _ = (file, done, total);
    }

    /// The same for all the files together that are being fetched.
    fn all(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// Something that takes longer than it should, and why.
    fn note(&mut self, text: &str) {
        let _ = text;
    }
}

impl Progress for () {}
