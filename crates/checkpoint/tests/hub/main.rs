//! The Hub, played by a stand-in on loopback: downloads, refusals, faults, the cache, being offline.

mod arrivals;
mod cached;
mod downloads;
mod faults;
mod headers;
mod refusals;

use halfbyte_checkpoint::{Checkpoint, HubOptions, Progress};
use halfbyte_hub_stand_in::{Repository, StandIn, TOKEN};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

/// `org/name` with the files of a fixture, and one that nobody needs.
fn repository(fixture_name: &str) -> Repository {
    let repository = Repository::from_dir("org/name", &fixture(fixture_name)).unwrap();
    repository.with("README.md", b"not needed".to_vec())
}

fn serve(fixture_name: &str) -> StandIn {
    StandIn::start(vec![repository(fixture_name)]).unwrap()
}

/// Options for a cache directory. A token of the machine that runs the tests must not get in.
fn options(hub: &StandIn, cache: &Path) -> HubOptions {
    HubOptions {
        cache_dir: Some(cache.to_path_buf()),
        endpoint: Some(hub.endpoint()),
        token: Some(TOKEN.to_string()),
        patience: Some(Duration::from_millis(400)),
        ..HubOptions::default()
    }
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Remembers what a download said.
#[derive(Debug, Default)]
struct Bars {
    /// Bytes of each file: those first heard of, the last, and the file's.
    files: BTreeMap<String, (u64, u64, u64)>,
    all: (u64, u64),
    notes: Vec<String>,
}

impl Progress for Bars {
    fn file(&mut self, file: &str, done: u64, total: u64) {
        let bar = self.files.entry(file.to_string()).or_insert((done, done, total));
        (bar.1, bar.2) = (done, total);
    }
    fn all(&mut self, done: u64, total: u64) {
        self.all = (done, total);
    }
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_string());
    }
}

fn same_tensors(downloaded: &Checkpoint, fixture_name: &str) {
    let local = Checkpoint::open(&fixture(fixture_name)).unwrap();
    assert_eq!(downloaded.index.len(), local.index.len());
    for tensor in local.index.iter() {
        let name = &tensor.name;
        assert_eq!(downloaded.tensor_bytes(name).unwrap(), local.tensor_bytes(name).unwrap());
    }
}

/// Where the cache keeps the bytes of a file, after following its link.
fn blob(cache: &Path, commit: &str, file: &str) -> PathBuf {
    cache.join("models--org--name/snapshots").join(commit).join(file).canonicalize().unwrap()
}
