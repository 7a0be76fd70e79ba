//! A body that keeps coming: a server that trickles is as bad as one that says nothing.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Bytes a second below which a body does not count as coming: less than any line that models are downloaded on.
const LEAST_RATE: f64 = 1024.0;

/// A reader that fails with [`Trickle`] where less than [`LEAST_RATE`] came for as long as silence is borne.
pub(super) struct Steady<R> {
    reader: R,
    patience: Duration,
    since: Instant,
    came: u64,
}

/// So few bytes came in that time.
#[derive(Debug)]
pub(super) struct Trickle {
    bytes: u64,
    time: Duration,
}

impl<R: Read> Steady<R> {
    pub fn new(reader: R, patience: Duration) -> Self {
        Self { reader, patience, since: Instant::now(), came: 0 }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(piece)?;
        self.came += read as u64;
        let time = self.since.elapsed();
        // The end of a body is no trickle.
        if read > 0 && time >= self.patience {
            if (self.came as f64) < LEAST_RATE * time.as_secs_f64() {
                return Err(io::Error::other(Trickle { bytes: self.came, time }));
            }
            (self.since, self.came) = (Instant::now(), 0);
        }
        Ok(read)
    }
}

impl fmt::Display for Trickle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "only {} bytes in {:.1} s", self.bytes, self.time.as_secs_f64())
    }
}

impl std::error::Error for Trickle {}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many bytes at each read, after a wait.
    struct Drops(usize, Duration);

    impl Read for Drops {
        fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(self.1);
            let len = self.0.min(piece.len());
            piece[..len].fill(7);
            Ok(len)
        }
    }

    #[test]
    fn a_trickle_fails_and_a_slow_line_does_not() {
        let (wait, patience) = (Duration::from_millis(5), Duration::from_millis(40));
        let read = |bytes| {
            let mut all = vec![0; 60 * bytes];
            Steady::new(Drops(bytes, wait), patience).read_exact(&mut all)
        };
        let error = read(1).unwrap_err();
        assert!(error.get_ref().is_some_and(|inner| inner.is::<Trickle>()), "{error}");
        // 20 KB a second, a lot less on a busy machine.
        read(100).unwrap();
    }
}
