//! How a download tells of itself.

/// Hears of downloads, to draw a bar with. `()` hears nothing.
pub trait Progress {
    /// The download of a file of `bytes` bytes begins.
    fn started(&mut self, file: &str, bytes: u64);
    /// This many more bytes are there; the first call may be for what an earlier, broken-off download left.
    fn advanced(&mut self, bytes: u64);
    /// The file is complete.
    fn finished(&mut self);
}

impl Progress for () {
    fn started(&mut self, _file: &str, _bytes: u64) {}
    fn advanced(&mut self, _bytes: u64) {}
    fn finished(&mut self) {}
}

/// Passes hf-hub's reports on. hf-hub begins each file twice, and again after each failed try, from the
/// bytes it has; here a file begins once and no byte counts twice.
pub(super) struct Forward<'a> {
    progress: &'a mut dyn Progress,
    started: bool,
    at: u64,
    reported: u64,
}

impl<'a> Forward<'a> {
    pub fn new(progress: &'a mut dyn Progress) -> Forward<'a> {
        Forward { progress, started: false, at: 0, reported: 0 }
    }
}

impl hf_hub::api::Progress for Forward<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.at = 0;
        if !self.started {
            self.started = true;
            self.progress.started(filename, size as u64);
        }
    }

    fn update(&mut self, size: usize) {
        self.at += size as u64;
        if self.at > self.reported {
            self.progress.advanced(self.at - self.reported);
            self.reported = self.at;
        }
    }

    fn finish(&mut self) {
        self.progress.finished();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hf_hub::api::Progress as _;

    #[derive(Default)]
    struct Log(Vec<String>);

    impl Progress for Log {
        fn started(&mut self, file: &str, bytes: u64) {
            self.0.push(format!("{file} {bytes}"));
        }
        fn advanced(&mut self, bytes: u64) {
            self.0.push(format!("+{bytes}"));
        }
        fn finished(&mut self) {
            self.0.push("done".to_string());
        }
    }

    #[test]
    fn retries_count_no_byte_twice() {
        let mut log = Log::default();
        let mut forward = Forward::new(&mut log);
        forward.init(10, "f");
        forward.init(10, "f");
        forward.update(0);
        forward.update(6);
        // The connection broke; hf-hub goes on from byte 4, which is what reached the disk.
        forward.init(10, "f");
        forward.update(4);
        forward.update(6);
        forward.finish();
        assert_eq!(log.0, ["f 10", "+6", "+4", "done"]);
    }
}
