//! The hashes that name the Hub's files.

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// What a file's etag says about its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checksum {
    /// Of a file in large file storage.
    Sha256(String),
    /// Git's hash of a blob: SHA-1 of `blob <length>\0` and the bytes.
    Git(String),
    /// Some other etag, as a mirror may have: it says nothing.
    Unknown,
}

impl Checksum {
    /// Reads an etag without its quotes.
    pub fn of_etag(etag: &str) -> Checksum {
        let hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match etag.len() {
            64 if hex => Checksum::Sha256(etag.to_ascii_lowercase()),
            40 if hex => Checksum::Git(etag.to_ascii_lowercase()),
            _ => Checksum::Unknown,
        }
    }

    /// Begins to hash a file of `size` bytes.
    pub fn begin(&self, size: u64) -> Running {
        match self {
            Checksum::Sha256(_) => Running::Sha256(Sha256::new()),
            Checksum::Git(_) => Running::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
            Checksum::Unknown => Running::Nothing,
        }
    }

    /// The hash that was found, if it is another one.
    pub fn differs(&self, running: Running) -> Option<(String, String)> {
        let (wanted, found) = match (self, running) {
            (Checksum::Sha256(wanted), Running::Sha256(hash)) => (wanted, hex(&hash.finalize())),
            (Checksum::Git(wanted), Running::Git(hash)) => (wanted, hex(&hash.finalize())),
            _ => return None,
        };
        (*wanted != found).then(|| (wanted.clone(), found))
    }
}

/// A hash of the bytes so far.
pub(super) enum Running {
    Sha256(Sha256),
    Git(Sha1),
    Nothing,
}

impl Running {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Running::Sha256(hash) => hash.update(bytes),
            Running::Git(hash) => hash.update(bytes),
            Running::Nothing => {}
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_and_sha256_hashes_are_told_apart_and_checked() {
        for (etag, bytes) in [
            ("ce013625030ba8dba906f756967f9e9ca394464a", &b"hello\n"[..]),
            ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", b"abc"),
        ] {
            let checksum = Checksum::of_etag(etag);
            let hashed = |bytes: &[u8]| {
                let mut running = checksum.begin(bytes.len() as u64);
                bytes.chunks(2).for_each(|piece| running.update(piece));
                checksum.differs(running)
            };
            assert_eq!(hashed(bytes), None);
            assert!(hashed(b"other").is_some());
        }
        assert_eq!(Checksum::of_etag("weak-etag"), Checksum::Unknown);
    }
}
