//! What long work tells while it goes on.

/// Told of downloads, loading, and what happened on the way. Every method does nothing by default.
pub trait Progress {
    /// `done` of `total` bytes of a file have been downloaded. Several files are downloaded at a time.
    fn download(&mut self, file: &str, done: u64, total: u64) {
        let _ = (file, done, total);
    }

    /// `done` of the `total` bytes of all files that are being downloaded together are there.
    fn download_all(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// `done` of `total` bytes are on their devices; `name` is the last that went there.
    fn load(&mut self, name: &str, done: u64, total: u64) {
        let _ = (name, done, total);
    }

    /// `done` of `total` bytes have been quantized and written; `name` is the last tensor that was.
    fn quantize(&mut self, name: &str, done: u64, total: u64) {
        let _ = (name, done, total);
    }

    /// Something that the user should know: a setting that was overruled, a head that is drawn at random. What
    /// becomes of a placement is told to [`on_event`](crate::on_event).
    fn note(&mut self, text: &str) {
        let _ = text;
    }
}

/// Tells nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
