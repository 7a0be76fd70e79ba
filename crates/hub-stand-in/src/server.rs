//! The two servers: threads that accept, read, answer and remember.

use crate::answer::{self, Content};
use crate::fault::{Fault, Rule};
use crate::http::{self, Head};
use crate::repository::Repository;
use crate::request::{Request, Site};
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The token that opens every repository.
pub const TOKEN: &str = "hf_stand_in_member";

/// A token of an account that was let into no gated or private repository.
pub const TOKEN_WITHOUT_ACCESS: &str = "hf_stand_in_outsider";

/// Sent at once.
const PIECE: usize = 64 << 10;

/// The running servers; they end when this is dropped.
#[derive(Debug)]
pub struct StandIn {
    state: Arc<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    repositories: BTreeMap<String, Repository>,
    renamed: Mutex<BTreeMap<String, String>>,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Request>>,
    hub: SocketAddr,
    cdn: SocketAddr,
    stopped: AtomicBool,
    /// Whether requests are printed.
    loud: bool,
}

impl StandIn {
    /// Serves on two free ports of this machine.
    ///
    /// # Errors
    /// If there are none.
    pub fn start(repositories: Vec<Repository>) -> io::Result<Self> {
        Self::serve(repositories, 0, false)
    }

    /// Serves the Hub on `port` (0: a free one) and prints every request, for a person to watch.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start_loud(repositories: Vec<Repository>, port: u16) -> io::Result<Self> {
        Self::serve(repositories, port, true)
    }

    fn serve(repositories: Vec<Repository>, port: u16, loud: bool) -> io::Result<Self> {
        let hub = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let cdn = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let state = Arc::new(State {
            repositories: repositories.into_iter().map(|one| (one.id.clone(), one)).collect(),
            renamed: Mutex::default(),
            rules: Mutex::default(),
            log: Mutex::default(),
            hub: hub.local_addr()?,
            cdn: cdn.local_addr()?,
            stopped: AtomicBool::new(false),
            loud,
        });
        for (listener, site) in [(hub, Site::Hub), (cdn, Site::Cdn)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || accept(&listener, site, &state));
        }
        Ok(Self { state })
    }

    /// What `HF_ENDPOINT` is to say.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.state.hub)
    }

    /// Where the Hub sends for large files.
    pub fn cdn_endpoint(&self) -> String {
        self.state.cdn_endpoint()
    }

    /// The commit of a repository's `main`.
    pub fn commit(&self, id: &str) -> String {
        self.state.repository(id).map_or_else(String::new, Repository::commit)
    }

    /// Adds a fault; the first that concerns a request happens to it.
    pub fn misbehave(&self, rule: Rule) {
        locked(&self.state.rules).push(rule);
    }

    /// Takes all faults back.
    pub fn behave(&self) {
        locked(&self.state.rules).clear();
    }

    /// Sends who asks for `old` on to `new`, as the Hub does for a repository that was renamed.
    pub fn rename(&self, old: &str, new: &str) {
        locked(&self.state.renamed).insert(old.into(), new.into());
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        locked(&self.state.log).clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        locked(&self.state.log).clear();
    }

    /// Bytes of bodies that were sent, by both servers.
    pub fn sent(&self) -> u64 {
        locked(&self.state.log).iter().map(|request| request.sent).sum()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the threads that accept.
        for address in [self.state.hub, self.state.cdn] {
            let _ = TcpStream::connect(address);
        }
    }
}

impl State {
    pub(crate) fn repository(&self, id: &str) -> Option<&Repository> {
        self.repositories.get(id)
    }

    pub(crate) fn renamed(&self, id: &str) -> Option<String> {
        locked(&self.renamed).get(id).cloned()
    }

    pub(crate) fn cdn_endpoint(&self) -> String {
        format!("http://{}", self.cdn)
    }

    /// The fault that happens to a request.
    fn fault(&self, request: &Request) -> Option<Fault> {
        let file = request.file.as_deref().unwrap_or_default();
        let mut rules = locked(&self.rules);
        rules.iter_mut().find_map(|rule| rule.strikes(request, file).then(|| rule.fault.clone()))
    }
}

fn accept(listener: &TcpListener, site: Site, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.stopped.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(stream) = stream {
            let state = Arc::clone(state);
            // A visitor who hangs up in the middle ends the conversation, not the server.
            std::thread::spawn(move || converse(stream, site, &state));
        }
    }
}

/// Answers the requests of one connection, one after the other.
fn converse(stream: TcpStream, site: Site, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut request, close) = match http::read(&mut reader, site) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(()),
            Err(_) => {
                // TLS, for one: said in words that are none of it.
                Head::new(400).write(&mut &stream)?;
                return stream.shutdown(Shutdown::Both);
            }
        };
        let answer = answer::answer(state, &mut request);
        let fault = state.fault(&request);
        let at = {
            let mut log = locked(&state.log);
            log.push(request.clone());
            log.len() - 1
        };
        let mut record = |status: u16, sent: u64| {
            if let Some(entry) = locked(&state.log).get_mut(at) {
                (entry.status, entry.sent) = (status, sent);
            }
        };
        let mut out = &stream;
        let result = send(&mut out, &request, answer, fault.as_ref(), state, &mut record);
        if state.loud {
            let entry = locked(&state.log).get(at).cloned();
            print(entry.as_ref().unwrap_or(&request), fault.as_ref());
        }
        if result.is_err() || close || state.stopped.load(Ordering::SeqCst) {
            return stream.shutdown(Shutdown::Both);
        }
    }
}

/// Sends an answer, well or badly; `record` hears its status and how much of its body was sent. An error ends
/// the connection.
fn send(
    out: &mut impl Write,
    request: &Request,
    answer: answer::Answer<'_>,
    fault: Option<&Fault>,
    state: &State,
    record: &mut dyn FnMut(u16, u64),
) -> io::Result<()> {
    let mut head = answer.head;
    let mut body: Box<dyn Read + '_> = match (&answer.body, fault) {
        (_, Some(Fault::Status(status, retry_after))) => {
            head = Head::new(*status);
            if let Some(seconds) = retry_after {
                head = head.with("retry-after", seconds.to_string());
            }
            Box::new(io::empty())
        }
        (Content::Text(text), _) => {
            head.length = text.len() as u64;
            Box::new(text.as_bytes())
        }
        (Content::File(file), fault) => {
            let shorter = if let Some(Fault::Truncated(bytes)) = fault { *bytes } else { 0 };
            let total = file.body.len().saturating_sub(shorter);
            let range = request.range.filter(|_| fault != Some(&Fault::NoRanges));
            let (first, end) = match range {
                Some((first, _)) if first >= total => {
                    let head = Head::new(416).with("content-range", format!("bytes */{total}"));
                    record(head.status, 0);
                    return head.write(out);
                }
                Some((first, last)) => (first, last.map_or(total, |last| total.min(last.saturating_add(1)))),
                None => (0, total),
            };
            if range.is_some() {
                head.status = 206;
                let value = format!("bytes {first}-{}/{total}", end.saturating_sub(1));
                head = head.with("content-range", value);
            }
            head.length = end.saturating_sub(first);
            let reader = file.body.reader(first)?.take(head.length);
            match fault {
                Some(Fault::Corrupt(at)) => {
                    Box::new(Corrupted { inner: reader, at: at.checked_sub(first), position: 0 })
                }
                _ => Box::new(reader),
            }
        }
    };
    if let Some(Fault::Lies(bytes)) = fault {
        for (name, value) in &mut head.headers {
            if *name == "x-linked-size" {
                *value = (value.parse::<u64>().unwrap_or(0) + bytes).to_string();
            }
        }
    }
    let (status, mut sent) = (head.status, 0);
    record(status, sent);
    head.write(out)?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let mut piece =
        vec![0; if let Some(Fault::Slow(rate)) = fault { PIECE.min(*rate as usize / 20 + 1) } else { PIECE }];
    loop {
        let most = match fault {
            Some(Fault::Cut(after) | Fault::Stall(after)) => {
                piece.len().min(after.saturating_sub(sent) as usize)
            }
            _ => piece.len(),
        };
        if most == 0 {
            if matches!(fault, Some(Fault::Stall(_))) {
                while !state.stopped.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let read = body.read(&mut piece[..most])?;
        if read == 0 {
            return out.flush();
        }
        out.write_all(&piece[..read])?;
        sent += read as u64;
        record(status, sent);
        if let Some(Fault::Slow(rate)) = fault {
            std::thread::sleep(Duration::from_secs_f64(read as f64 / (*rate).max(1) as f64));
        }
    }
}

/// A reader one of whose bytes is wrong.
struct Corrupted<R> {
    inner: R,
    /// Counted from where the reader begins.
    at: Option<u64>,
    position: u64,
}

impl<R: Read> Read for Corrupted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        let byte =
            self.at.and_then(|at| at.checked_sub(self.position)).and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = byte.and_then(|at| out[..read].get_mut(at)) {
            *byte ^= 0x10;
        }
        self.position += read as u64;
        Ok(read)
    }
}

/// One line for a person. Whether a token came is said, not which.
fn print(request: &Request, fault: Option<&Fault>) {
    let site = if request.site == Site::Hub { "hub" } else { "cdn" };
    let range = match request.range {
        Some((first, Some(last))) => format!(" bytes {first}-{last}"),
        Some((first, None)) => format!(" bytes {first}-"),
        None => String::new(),
    };
    let token = if request.token.is_some() { " with a token" } else { "" };
    let fault = fault.map(|fault| format!(", {fault:?}")).unwrap_or_default();
    let name = request.file.as_ref().filter(|_| request.site == Site::Cdn);
    let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
    let _ = writeln!(
        io::stdout(),
        "{site} {} {}{name}{range}{token}: {}, {} bytes{fault}",
        request.method,
        request.path,
        request.status,
        request.sent
    );
}

/// The data of a lock, even if a thread ended in the middle of it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
