//! Why a download failed, in words that say what to do.

use super::connection::text;
use super::options::Settings;
use super::steady::Trickle;
use crate::error::shown;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use ureq::Body;
use ureq::http::Response;

/// Why a download failed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The server answered a request for a file (or, empty, for the model) with an error.
    Status { file: String, status: u16, wait: Option<Duration> },
    /// No answer: no way to the server, no such server.
    Unreachable(String),
    /// The connection broke, or the server said nothing for too long.
    Broken(String),
    /// Next to nothing came for too long.
    Trickled(String),
    /// No trust in the server, or no TLS at all.
    Tls(String),
    /// The answer is not the Hub's.
    Malformed(String),
    /// A file's length is not what the Hub said.
    Lie { file: String, said: u64, sent: u64 },
    /// A file's bytes do not have the hash that names them, twice.
    Damaged { file: String, wanted: String, found: String },
    /// The cache cannot be read or written.
    Disk(io::Error),
    /// The disk cannot hold it.
    NoSpace { dir: PathBuf, needed: u64, free: u64 },
    /// The repository has no weights that can be read.
    NoWeights(String),
    /// Another file of the same download failed first.
    Stopped,
}

impl Refusal {
    /// A connection that broke.
    pub fn broken(problem: impl Into<String>) -> Refusal {
        Refusal::Broken(problem.into())
    }

    /// An answer to a request for `file` that is neither success nor redirect.
    pub fn of_status(file: &str, response: &Response<Body>) -> Refusal {
        // `retry-after` may also be a date, and the Hub has `ratelimit: "resolvers";r=0;t=55`: seconds of a window.
        let seconds = text(response, "retry-after").and_then(|value| value.trim().parse().ok());
        let window =
            || text(response, "ratelimit")?.split(";t=").nth(1)?.split([';', ',']).next()?.parse().ok();
        let wait = seconds.or_else(window).map(Duration::from_secs);
        Refusal::Status { file: file.to_string(), status: response.status().as_u16(), wait }
    }

    /// An error of a request for `file`.
    pub fn of_request(file: &str, error: ureq::Error) -> Refusal {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionReset, InvalidData, TimedOut, UnexpectedEof, WouldBlock,
        };
        match error {
            ureq::Error::StatusCode(status) => Refusal::Status { file: file.to_string(), status, wait: None },
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                Refusal::Unreachable(error.to_string())
            }
            ureq::Error::Timeout(_) => Refusal::broken(format!("no answer for too long: {error}")),
            ureq::Error::Tls(problem) => Refusal::Tls(problem.to_string()),
            ureq::Error::Rustls(error) => Refusal::Tls(error.to_string()),
            ureq::Error::Pem(error) => Refusal::Tls(error.to_string()),
            ureq::Error::Io(error) => match error.kind() {
                // rustls reports a handshake that fails as data that is not valid.
                InvalidData => Refusal::Tls(error.to_string()),
                ConnectionReset
                | ConnectionAborted
                | UnexpectedEof
                | TimedOut
                | WouldBlock
                | io::ErrorKind::BrokenPipe => Refusal::broken(error.to_string()),
                _ => Refusal::Unreachable(error.to_string()),
            },
            ureq::Error::Json(_) | ureq::Error::Protocol(_) | ureq::Error::Http(_) => {
                Refusal::Malformed(error.to_string())
            }
            error => Refusal::Unreachable(error.to_string()),
        }
    }

    /// An error while the body of `file` was read.
    pub fn of_read(file: &str, error: io::Error) -> Refusal {
        let text = format!("{}: {error}", shown(file));
        match error.downcast::<Trickle>() {
            Ok(_) => Refusal::Trickled(text),
            Err(_) => Refusal::Broken(text),
        }
    }

    /// Whether another try may succeed.
    pub fn may_pass(&self) -> bool {
        match self {
            Refusal::Broken(_) | Refusal::Trickled(_) => true,
            Refusal::Status { status, .. } => *status == 429 || *status == 408 || *status >= 500,
            _ => false,
        }
    }

    /// How long the server asks to wait.
    pub fn asked_wait(&self) -> Option<Duration> {
        match self {
            Refusal::Status { wait, .. } => *wait,
            _ => None,
        }
    }

    /// Whether what came of a body is no reason to hope for more.
    pub fn is_trickle(&self) -> bool {
        matches!(self, Refusal::Trickled(_))
    }

    /// Whether a link to another server is not, or no longer, good.
    pub fn is_denied(&self) -> bool {
        matches!(self, Refusal::Status { status: 400..=404 | 410, .. })
    }

    /// Whether the cache may stand in: the Hub said nothing, rather than no.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Refusal::Unreachable(_) | Refusal::Broken(_) | Refusal::Trickled(_) | Refusal::Tls(_) => true,
            Refusal::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// What happened, and what to do.
    pub fn explain(&self, model: &str, settings: &Settings) -> String {
        let Settings { endpoint, revision, .. } = settings;
        let has_token = settings.token.is_some();
        let how = format!("pass a token from {endpoint}/settings/tokens with --token or HF_TOKEN");
        let way = match settings.proxy {
            Some(variable) => format!("the network, the proxy of {variable}"),
            None => "the network".to_owned(),
        };
        match self {
            Refusal::Status { status: 401, .. } if has_token => format!(
                "the Hub does not accept the token (401): it is wrong or expired, or the model is private; {how}"
            ),
            Refusal::Status { status: 401, file, .. } if file.is_empty() => format!(
                "there is no such local directory, and on the Hub no public model of this name (401); check the name, or if it is private or gated, {how}"
            ),
            Refusal::Status { status: 401, .. } => {
                format!("the model is gated (401): accept its licence at {endpoint}/{model} and {how}")
            }
            Refusal::Status { status: 403, .. } if has_token => format!(
                "the account of the token has no access (403): accept the model's licence at {endpoint}/{model}, wait for approval if it is needed, and give the token read access to gated repositories"
            ),
            Refusal::Status { status: 403, .. } => {
                format!("the model is gated (403): accept its licence at {endpoint}/{model} and {how}")
            }
            Refusal::Status { status: 404, file, .. } if file.is_empty() => format!(
                "there is no such local directory, and on the Hub no such model or no revision {revision} of it (404); check the name at {endpoint}/models"
            ),
            Refusal::Status { status: 404, file, .. } => {
                format!("its revision {revision} has no {} (404)", shown(file))
            }
            Refusal::Status { status: 416, file, .. } => format!(
                "{} is shorter on the server than the Hub says (416); try again later, or another --revision",
                shown(file)
            ),
            Refusal::Status { status: 429, wait, .. } => {
                let wait =
                    wait.map_or("a few minutes".to_owned(), |wait| format!("{} seconds", wait.as_secs()));
                format!("the Hub limits requests (429); wait {wait}, or {how}")
            }
            Refusal::Status { status, .. } if *status >= 500 => format!(
                "the Hub at {endpoint} is in trouble ({status}); try again later, or use --offline for what the cache has"
            ),
            Refusal::Status { status, .. } => {
                format!("the Hub at {endpoint} answered {status}; check HF_ENDPOINT")
            }
            Refusal::Unreachable(error) => format!(
                "there is no such local directory, and the Hub at {endpoint} cannot be reached ({}); check {way} and HF_ENDPOINT, or give a local directory",
                shown(error)
            ),
            Refusal::Broken(error) => format!(
                "the connection broke again and again ({}); check {way} and run it again: it goes on where it was, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds",
                shown(error)
            ),
            Refusal::Trickled(error) => format!(
                "the server sends next to nothing ({}); check {way} and run it again later: it goes on where it was",
                shown(error)
            ),
            Refusal::Tls(error) => format!(
                "no secure connection to {endpoint} ({}); check the clock, and where a company's proxy signs for it, give its certificate in SSL_CERT_FILE",
                shown(error)
            ),
            Refusal::Malformed(error) => format!(
                "{endpoint} does not answer as the Hub does ({}); check HF_ENDPOINT and proxies",
                shown(error)
            ),
            Refusal::Lie { file, said, sent } => format!(
                "the Hub says that {} has {said} bytes, and the server that sends it {sent}; try again later, or another --revision",
                shown(file)
            ),
            Refusal::Damaged { file, wanted, found } => format!(
                "{} arrived damaged twice (its hash is {found}, not {wanted}); try again on another network, or without a proxy",
                shown(file)
            ),
            Refusal::Disk(error) => format!(
                "the cache cannot be written ({}); free space or give another directory with --cache-dir",
                shown(&error.to_string())
            ),
            Refusal::NoSpace { dir, needed, free } => format!(
                "{needed} bytes are to be downloaded and the disk of {} has {free} free; free some, or give another directory with --cache-dir",
                dir.display()
            ),
            Refusal::NoWeights(why) => why.clone(),
            Refusal::Stopped => "another file could not be downloaded".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::HubOptions;

    fn settings(token: Option<&str>) -> Settings {
        let options = HubOptions { token: token.map(str::to_string), ..HubOptions::default() };
        Settings::new(&options, &|_| None)
    }

    #[test]
    fn each_status_has_its_way_out() {
        let token = Some("hf_secret");
        #[rustfmt::skip]
        let table = [
            ("", 401, None, "no public model of this name (401); check the name, or if it is private or gated, pass a token"),
            ("config.json", 401, None, "accept its licence at https://huggingface.co/org/name and pass a token"),
            ("config.json", 401, token, "does not accept the token"),
            ("config.json", 403, None, "gated (403): accept its licence at https://huggingface.co/org/name"),
            ("config.json", 403, token, "account of the token has no access (403)"),
            ("", 404, None, "no such model or no revision main of it (404)"),
            ("config.json", 404, None, "its revision main has no config.json (404)"),
            ("config.json", 416, None, "shorter on the server"),
            ("", 429, None, "limits requests (429); wait a few minutes"),
            ("", 503, None, "in trouble (503)"),
            ("", 418, None, "answered 418"),
        ];
        for (file, status, token, fragment) in table {
            let refusal = Refusal::of_request(file, ureq::Error::StatusCode(status));
            let text = refusal.explain("org/name", &settings(token));
            assert!(text.contains(fragment), "{status}: {text}");
            assert!(!text.contains("hf_secret"));
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let of = |kind: io::ErrorKind| Refusal::of_request("f", ureq::Error::Io(kind.into()));
        assert!(of(io::ErrorKind::ConnectionReset).may_pass());
        assert!(!of(io::ErrorKind::ConnectionRefused).may_pass());
        assert!(of(io::ErrorKind::ConnectionRefused).is_unreachable());
        let text = Refusal::of_request("", ureq::Error::HostNotFound).explain("a/b", &settings(None));
        assert!(text.contains("cannot be reached"), "{text}");
        assert!(!Refusal::Disk(io::ErrorKind::StorageFull.into()).is_unreachable());
    }

    #[test]
    fn a_proxy_is_named() {
        let settings = Settings::new(&HubOptions::default(), &|name| {
            (name == "HTTPS_PROXY").then(|| "http://proxy.example:3128".to_owned())
        });
        let text = Refusal::Unreachable("refused".into()).explain("a/b", &settings);
        assert!(text.contains("the proxy of HTTPS_PROXY"), "{text}");
    }
}
