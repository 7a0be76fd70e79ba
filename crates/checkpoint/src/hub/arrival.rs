//! Tensors from the Hub in the order in which they are needed, fetched ahead by several connections, and
//! no more of them in memory than the window allows.

use super::checksum::hex;
use super::connection::{Ask, Connection, Way};
use super::progress::Progress;
use super::refusal::Refusal;
use super::transfer::{Remote, checked_range};
use crate::checkpoint::Checkpoint;
use crate::error::{CheckpointError, shown};
use crate::header::TensorInfo;
use crate::write::{Original, Originals};
use serde_json::{Value, json};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::ops::{Deref, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Connections that fetch at a time.
const WORKERS: usize = 4;

/// Small tensors that follow each other are fetched together, up to so many bytes.
const TOGETHER: u64 = 16 << 20;

/// How often the progress hears of what has come while a tensor is waited for.
const TICK: Duration = Duration::from_millis(200);

/// What is read at once.
const PIECE: usize = 256 << 10;

/// The tensors of a model while they arrive.
pub(super) struct Arrivals<'a, 'p> {
    checkpoint: &'a Checkpoint,
    shared: Arc<Shared>,
    progress: &'p mut dyn Progress,
    identity: Value,
    /// The first bytes of each shard, and its length: what its hash begins with, and where it ends.
    headers: Vec<(Vec<u8>, u64)>,
    /// For each tensor to come: its number of job, and its place in that.
    order: VecDeque<(usize, Range<usize>)>,
    /// The job whose tensors are being given out.
    current: Option<(usize, Arc<Piece>)>,
    hash: Option<Hash>,
    /// Whether a shard turned out not to be what its name says.
    pub damaged: bool,
}

/// The hash of a shard up to a place.
#[derive(Clone)]
struct Hash {
    shard: usize,
    end: u64,
    sha256: Sha256,
}

/// A range of a shard that is fetched at once.
#[derive(Debug, Clone)]
struct Job {
    shard: usize,
    from: u64,
    to: u64,
}

/// What the connections and the reader share.
struct Shared {
    connection: Connection,
    model: String,
    commit: String,
    /// By number of shard.
    remotes: Vec<Remote>,
    window: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    next: usize,
    ready: BTreeMap<usize, Result<Vec<u8>, Refusal>>,
    /// Bytes that are in memory or on their way there.
    held: u64,
    most_held: u64,
    received: u64,
    notes: Vec<String>,
    stopped: bool,
}

impl<'a, 'p> Arrivals<'a, 'p> {
    /// Nothing is fetched before the first [`Originals::expect`]. `headers` are the beginnings of the shards
    /// and the lengths of the whole.
    pub fn new(
        checkpoint: &'a Checkpoint,
        connection: Connection,
        commit: &str,
        remotes: Vec<Remote>,
        headers: Vec<(Vec<u8>, u64)>,
        window: u64,
        progress: &'p mut dyn Progress,
    ) -> Self {
        let shared = Shared {
            connection,
            model: checkpoint.name.clone(),
            commit: commit.to_owned(),
            remotes,
            window,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self {
            checkpoint,
            shared: Arc::new(shared),
            progress,
            identity: json!({ "hub": checkpoint.name, "commit": commit }),
            headers,
            order: VecDeque::new(),
            current: None,
            hash: None,
            damaged: false,
        }
    }

    /// The most bytes of tensors that were in memory at a time, or on their way there.
    pub fn most_held(&self) -> u64 {
        self.shared.lock().most_held
    }

    fn error(&self, refusal: &Refusal) -> CheckpointError {
        self.shared.connection.error(&self.shared.model, refusal)
    }

    /// Tells what has come. The lock is not held while that is drawn.
    fn tell(&mut self) {
        let mut state = self.shared.lock();
        let notes = std::mem::take(&mut state.notes);
        let total = state.jobs.iter().map(|job| job.to - job.from).sum();
        let received = state.received;
        drop(state);
        notes.iter().for_each(|note| self.progress.note(note));
        self.progress.all(received, total);
    }

    /// Waits for a job's bytes.
    fn wait(&mut self, job: usize) -> Result<Arc<Piece>, CheckpointError> {
        loop {
            self.tell();
            let mut state = self.shared.lock();
            if let Some(result) = state.ready.remove(&job) {
                drop(state);
                let bytes = result.map_err(|refusal| self.error(&refusal))?;
                return Ok(Arc::new(Piece { bytes, shared: Arc::clone(&self.shared) }));
            }
            let waited = self.shared.changed.wait_timeout(state, TICK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            drop(state);
        }
    }

    /// Hashes the bytes of `tensor`, and compares where they end a shard whose bytes all went by.
    fn hash(&mut self, tensor: &TensorInfo, bytes: &[u8]) -> Result<(), CheckpointError> {
        let (header, length) = &self.headers[tensor.file];
        if tensor.begin == header.len() as u64 {
            let sha256 = Sha256::new_with_prefix(header);
            self.hash = Some(Hash { shard: tensor.file, end: tensor.begin, sha256 });
        }
        // Tensors that the index does not name are not fetched: such a shard cannot be verified.
        let Some(hash) =
            self.hash.as_mut().filter(|hash| (hash.shard, hash.end) == (tensor.file, tensor.begin))
        else {
            self.hash = None;
            return Ok(());
        };
        hash.sha256.update(bytes);
        hash.end = tensor.end;
        if hash.end == *length {
            let found = hex(&hash.sha256.clone().finalize());
            let Remote { file, etag, .. } = &self.shared.remotes[tensor.file];
            if etag.len() == found.len() && !etag.eq_ignore_ascii_case(&found) {
                self.damaged = true;
                let refusal = Refusal::Damaged { file: file.clone(), wanted: etag.clone(), found };
                return Err(self.error(&refusal));
            }
        }
        Ok(())
    }
}

impl<'a> Originals<'a> for Arrivals<'a, '_> {
    fn identity(&self) -> Value {
        self.identity.clone()
    }

    fn expect(&mut self, tensors: &[&'a TensorInfo], mark: Option<&str>) -> Result<(), CheckpointError> {
        let together = TOGETHER.min(self.shared.window);
        let mut jobs: Vec<Job> = Vec::new();
        for tensor in tensors {
            let joins = |job: &&mut Job| {
                job.shard == tensor.file && job.to == tensor.begin && tensor.end - job.from <= together
            };
            let begin = match jobs.last_mut().filter(joins) {
                Some(job) => {
                    job.to = tensor.end;
                    tensor.begin - job.from
                }
                None => {
                    jobs.push(Job { shard: tensor.file, from: tensor.begin, to: tensor.end });
                    0
                }
            };
            let begin = begin as usize;
            self.order.push_back((jobs.len() - 1, begin..begin + tensor.bytes() as usize));
        }
        self.hash = mark.zip(tensors.first()).and_then(|(mark, first)| Hash::of_mark(mark, first));
        self.shared.lock().jobs = jobs;
        for _ in 0..WORKERS {
            let shared = Arc::clone(&self.shared);
            std::thread::spawn(move || shared.work());
        }
        Ok(())
    }

    fn next(&mut self, tensor: &'a TensorInfo) -> Result<Original<'a>, CheckpointError> {
        let unexpected = || CheckpointError::MissingTensor {
            tensor: shown(&tensor.name),
            files: self.checkpoint.name.clone(),
            hint: ": it was not expected now".into(),
        };
        let (job, range) = self.order.pop_front().ok_or_else(unexpected)?;
        let piece = match self.current.take() {
            Some((at, piece)) if at == job => piece,
            _ => self.wait(job)?,
        };
        let view = View { piece: Arc::clone(&piece), range };
        self.hash(tensor, &view)?;
        if self.order.front().is_some_and(|(next, _)| *next == job) {
            self.current = Some((job, piece));
        } else if self.order.is_empty() {
            self.tell();
        }
        Ok(Original::Held(Box::new(view)))
    }

    fn mark(&self) -> Option<String> {
        self.hash.as_ref().map(Hash::mark)
    }
}

impl Drop for Arrivals<'_, '_> {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Hash {
    fn mark(&self) -> String {
        json!({ "shard": self.shard, "end": self.end, "sha256": hex(&self.sha256.serialize()) }).to_string()
    }

    /// The hash that a mark has, if it is of what comes before `first`.
    fn of_mark(mark: &str, first: &TensorInfo) -> Option<Hash> {
        let mark: Value = serde_json::from_str(mark).ok()?;
        let (shard, end) = (mark["shard"].as_u64()? as usize, mark["end"].as_u64()?);
        let text = mark["sha256"].as_str()?;
        let bytes: Option<Vec<u8>> =
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect();
        let state = SerializedState::<Sha256>::try_from(bytes?.as_slice()).ok()?;
        let sha256 = Sha256::deserialize(&state).ok()?;
        ((shard, end) == (first.file, first.begin)).then_some(Hash { shard, end, sha256 })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches one job after the other, each as soon as there is room for it.
    fn work(&self) {
        let mut state = self.lock();
        while !state.stopped && state.next < state.jobs.len() {
            let at = state.next;
            let job = state.jobs[at].clone();
            let bytes = job.to - job.from;
            if state.held > 0 && state.held.saturating_add(bytes) > self.window {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.next += 1;
            state.held += bytes;
            state.most_held = state.most_held.max(state.held);
            drop(state);
            let fetched = self.fetch(&job);
            state = self.lock();
            let failed = fetched.is_err();
            state.ready.insert(at, fetched);
            self.changed.notify_all();
            if failed {
                return;
            }
        }
    }

    /// The bytes of a job; after a connection breaks, the rest of them.
    fn fetch(&self, job: &Job) -> Result<Vec<u8>, Refusal> {
        let remote = &self.remotes[job.shard];
        let own = self.connection.url(&self.model, &self.commit, &remote.file);
        let mut way = Way::new(own, remote.location.clone());
        let note = |text: String| self.lock().notes.push(text);
        let mut bytes = Vec::with_capacity((job.to - job.from) as usize);
        loop {
            let before = bytes.len();
            match self.receive(job, remote, &way.location, &mut bytes) {
                Ok(()) => return Ok(bytes),
                Err(refusal) => way.broke(refusal, bytes.len() > before, &note)?,
            }
        }
    }

    fn receive(
        &self,
        job: &Job,
        remote: &Remote,
        location: &str,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let file = &remote.file;
        let from = job.from + bytes.len() as u64;
        if from == job.to {
            return Ok(());
        }
        let response = self.connection.ask(file, location, Ask::Range(from, Some(job.to - 1)))?;
        let total = checked_range(file, &response, from)?;
        if total != remote.size {
            return Err(Refusal::Lie { file: file.clone(), said: remote.size, sent: total });
        }
        if response.status() == 200 && from > 0 {
            let problem = format!("{}: the server knows no ranges; take --keep-original", shown(file));
            return Err(Refusal::Malformed(problem));
        }
        let mut body = response.into_body();
        let mut reader = self.connection.steady(&mut body);
        let mut piece = vec![0; PIECE];
        while job.from + (bytes.len() as u64) < job.to {
            let left = job.to - job.from - bytes.len() as u64;
            let most = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = reader.read(&mut piece[..most]).map_err(|error| Refusal::of_read(file, error))?;
            if read == 0 {
                return Err(Refusal::broken(format!("{} ended {left} bytes too early", shown(file))));
            }
            bytes.extend_from_slice(&piece[..read]);
            let mut state = self.lock();
            state.received += read as u64;
            if state.stopped {
                return Err(Refusal::Stopped);
            }
        }
        Ok(())
    }
}

/// The bytes of a job; they count as held until the last view of them is gone.
struct Piece {
    bytes: Vec<u8>,
    shared: Arc<Shared>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        // Freed before it is said to be.
        let bytes = std::mem::take(&mut self.bytes);
        let length = bytes.len() as u64;
        drop(bytes);
        let mut state = self.shared.lock();
        state.held = state.held.saturating_sub(length);
        drop(state);
        self.shared.changed.notify_all();
    }
}

/// One tensor of a piece.
struct View {
    piece: Arc<Piece>,
    range: Range<usize>,
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.piece.bytes.get(self.range.clone()).unwrap_or_default()
    }
}
