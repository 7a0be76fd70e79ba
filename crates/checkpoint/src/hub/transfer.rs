//! One file from the Hub into the cache: resumed, verified, and there all at once.

use super::cache::{Cache, is_plain_etag};
use super::checksum::{Checksum, Running};
use super::connection::{Ask, Connection, Way, redirect, retrying, text};
use super::refusal::Refusal;
use crate::error::shown;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use ureq::Body;
use ureq::http::Response;

/// Read, hashed and written at once.
const PIECE: usize = 256 << 10;

/// What the Hub says about a file before it sends it.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    /// Its name in the repository.
    pub file: String,
    /// The name of its contents.
    pub etag: String,
    /// Bytes of it.
    pub size: u64,
    /// Where it is, at the moment: links to other servers expire.
    pub location: String,
}

impl Remote {
    /// Asks for the headers of a file of a commit.
    pub fn ask(
        connection: &Connection,
        model: &str,
        commit: &str,
        file: &str,
        note: &dyn Fn(String),
    ) -> Result<Remote, Refusal> {
        let url = connection.url(model, commit, file);
        let response = connection.insist(file, &url, Ask::Head, note)?;
        let lacks = |what: &str| Refusal::Malformed(format!("{} has no {what}", shown(file)));
        let etag = text(&response, "x-linked-etag").or_else(|| text(&response, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let etag = etag.filter(|etag| is_plain_etag(etag)).ok_or_else(|| lacks("usable etag"))?;
        let linked = text(&response, "x-linked-size");
        let own = || text(&response, "content-length").filter(|_| response.status().is_success());
        let size = linked.or_else(own).and_then(|size| size.parse().ok()).ok_or_else(|| lacks("size"))?;
        let location = redirect(&response, &url).filter(|_| response.status().is_redirection());
        Ok(Remote { file: file.to_owned(), etag: etag.to_owned(), size, location: location.unwrap_or(url) })
    }
}

/// Whether a download goes on, and what it hears of.
pub(super) trait Watch {
    /// So many bytes of the file are there; an error ends the download.
    fn at(&self, bytes: u64) -> Result<(), Refusal>;
    /// Something that takes longer than it should.
    fn note(&self, text: String);
}

/// Fetches a file whole into the cache, if another process has not, and returns its path in the snapshot of
/// `commit`. Goes on where an earlier try ended.
pub(super) fn fetch(
    connection: &Connection,
    cache: &Cache,
    model: &str,
    commit: &str,
    remote: &Remote,
    watch: &dyn Watch,
) -> Result<PathBuf, Refusal> {
    let disk = Refusal::Disk;
    let blob = cache.blob(&remote.etag);
    let there = || std::fs::metadata(&blob).is_ok_and(|found| found.len() == remote.size);
    if !there() {
        let name = shown(&remote.file);
        let waiting = || watch.note(format!("another process is downloading {name}: waiting for it"));
        let lock = cache.lock(&remote.etag, &waiting).map_err(disk)?;
        if !there() {
            if let Some(parent) = blob.parent() {
                std::fs::create_dir_all(parent).map_err(disk)?;
            }
            let part = cache.incomplete(&remote.etag);
            Unfinished::open(&part, remote).map_err(disk)?.complete(connection, model, commit, watch)?;
            std::fs::rename(&part, &blob).map_err(disk)?;
        }
        drop(lock);
    }
    watch.at(remote.size)?;
    cache.link(commit, &remote.file, &remote.etag).map_err(disk)
}

/// A file in the cache that is not all there yet.
struct Unfinished<'a> {
    file: File,
    length: u64,
    hash: Running,
    checksum: Checksum,
    remote: &'a Remote,
}

impl<'a> Unfinished<'a> {
    /// What an earlier try left, hashed, or nothing.
    fn open(path: &std::path::Path, remote: &'a Remote) -> io::Result<Unfinished<'a>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let checksum = Checksum::of_etag(&remote.etag);
        let hash = checksum.begin(remote.size);
        let mut unfinished = Unfinished { length: file.metadata()?.len(), file, hash, checksum, remote };
        if unfinished.length > remote.size {
            unfinished.restart()?;
        }
        let mut piece = vec![0; PIECE];
        loop {
            let read = unfinished.file.read(&mut piece)?;
            if read == 0 {
                return Ok(unfinished);
            }
            unfinished.hash.update(&piece[..read]);
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        self.hash = self.checksum.begin(self.remote.size);
        Ok(())
    }

    /// Fetches what is missing and verifies the whole.
    fn complete(
        mut self,
        connection: &Connection,
        model: &str,
        commit: &str,
        watch: &dyn Watch,
    ) -> Result<(), Refusal> {
        let note = |text: String| watch.note(text);
        let own = connection.url(model, commit, &self.remote.file);
        let mut way = Way::new(own, self.remote.location.clone());
        let mut damaged = false;
        loop {
            let before = self.length;
            match self.receive(connection, &way.location, watch) {
                Ok(()) => {
                    let hash = std::mem::replace(&mut self.hash, Running::Nothing);
                    let Some((wanted, found)) = self.checksum.differs(hash) else {
                        return self.file.sync_all().map_err(Refusal::Disk);
                    };
                    self.restart().map_err(Refusal::Disk)?;
                    if damaged {
                        return Err(Refusal::Damaged { file: self.remote.file.clone(), wanted, found });
                    }
                    damaged = true;
                    watch.note(format!("{} arrived damaged: once more", shown(&self.remote.file)));
                }
                Err(refusal) => way.broke(refusal, self.length > before, &note)?,
            }
        }
    }

    /// Asks for what is missing and receives as much of it as comes.
    fn receive(&mut self, connection: &Connection, location: &str, watch: &dyn Watch) -> Result<(), Refusal> {
        let (file, size) = (&self.remote.file, self.remote.size);
        watch.at(self.length)?;
        if self.length == size {
            return Ok(());
        }
        let response = connection.ask(file, location, Ask::Range(self.length, None))?;
        let total = checked_range(file, &response, self.length)?;
        if total != size {
            return Err(Refusal::Lie { file: file.clone(), said: size, sent: total });
        }
        if response.status() == 200 && self.length > 0 {
            // A server without ranges sends it from the beginning.
            self.restart().map_err(Refusal::Disk)?;
        }
        let mut body = response.into_body();
        let mut reader = connection.steady(&mut body);
        let mut piece = vec![0; PIECE];
        while self.length < size {
            let most = piece.len().min(usize::try_from(size - self.length).unwrap_or(usize::MAX));
            let read = reader.read(&mut piece[..most]).map_err(|error| Refusal::of_read(file, error))?;
            if read == 0 {
                return Err(Refusal::broken(format!(
                    "{} ended after {} of {size} bytes",
                    shown(file),
                    self.length
                )));
            }
            self.file.write_all(&piece[..read]).map_err(Refusal::Disk)?;
            self.hash.update(&piece[..read]);
            self.length += read as u64;
            watch.at(self.length)?;
        }
        Ok(())
    }
}

/// The whole file's length, of an answer that begins at byte `from` or, without ranges, at the first.
pub(super) fn checked_range(file: &str, response: &Response<Body>, from: u64) -> Result<u64, Refusal> {
    let number = |text: &str| text.parse::<u64>().ok();
    let found = match response.status().as_u16() {
        206 => text(response, "content-range").and_then(|range| {
            let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
            let (first, _) = range.split_once('-')?;
            (number(first)? == from).then(|| number(total))?
        }),
        200 => text(response, "content-length").and_then(number),
        _ => None,
    };
    found.ok_or_else(|| {
        Refusal::Malformed(format!("{}: an answer to a range request without that range", shown(file)))
    })
}

/// Bytes `from..to` of a file at `location`, fewer if it is shorter, and the file's length.
pub(super) fn range(
    connection: &Connection,
    file: &str,
    location: &str,
    from: u64,
    to: u64,
    note: &dyn Fn(String),
) -> Result<(Vec<u8>, u64), Refusal> {
    retrying(note, &mut || {
        let response = connection.ask(file, location, Ask::Range(from, Some(to.saturating_sub(1))))?;
        if response.status() == 200 && from > 0 {
            return Err(Refusal::Malformed(format!("{}: the server knows no ranges", shown(file))));
        }
        let length = checked_range(file, &response, from)?;
        let bytes = read(connection, file, response, (to - from).min(length.saturating_sub(from)))?;
        Ok((bytes, length))
    })
}

/// The first `most` bytes of an answer; it is an error if it has fewer.
pub(super) fn read(
    connection: &Connection,
    file: &str,
    response: Response<Body>,
    most: u64,
) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    let mut body = response.into_body();
    let read = connection.steady(&mut body).take(most).read_to_end(&mut bytes);
    read.map_err(|error| Refusal::of_read(file, error))?;
    if (bytes.len() as u64) < most {
        return Err(Refusal::broken(format!("{} ended after {} of {most} bytes", shown(file), bytes.len())));
    }
    Ok(bytes)
}
