//! Why a download failed, in words that say what to do.

use super::options::Settings;
use crate::error::shown;
use hf_hub::api::sync::ApiError;
use std::io;

/// Why a download failed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The server answered a request for a file (or, empty, for the model) with an error.
    Status { file: String, status: u16 },
    /// No answer, or the connection broke.
    Unreachable(String),
    /// The answer is not the Hub's.
    Malformed(String),
    /// The cache cannot be read or written.
    Disk(io::Error),
    /// Another process holds a file's lock.
    Locked(String),
    /// The repository has no weights that can be read.
    NoWeights(String),
}

impl Refusal {
    /// Sorts an error of a request for `file`, or for the model itself where that is empty.
    pub fn new(file: &str, error: ApiError) -> Refusal {
        match error {
            ApiError::RequestError(error) => Self::of_request(file, *error),
            ApiError::TooManyRetries(error) => Self::new(file, *error),
            ApiError::IoError(error) => match error.downcast::<ureq::Error>() {
                Ok(error) => Self::of_request(file, error),
                Err(error) if is_network(&error) => Refusal::Unreachable(error.to_string()),
                Err(error) => Refusal::Disk(error),
            },
            ApiError::LockAcquisition(path) => Refusal::Locked(path.display().to_string()),
            ApiError::InvalidResume => Refusal::Disk(io::Error::other(format!(
                "the unfinished download of {file} is longer than the file; delete the .part files in its blobs directory"
            ))),
            other => Refusal::Malformed(other.to_string()),
        }
    }

    fn of_request(file: &str, error: ureq::Error) -> Refusal {
        match error {
            ureq::Error::StatusCode(status) => Refusal::Status { file: file.to_string(), status },
            ureq::Error::Io(error) if !is_network(&error) => Refusal::Disk(error),
            error @ (ureq::Error::Json(_) | ureq::Error::Protocol(_) | ureq::Error::Http(_)) => {
                Refusal::Malformed(error.to_string())
            }
            error => Refusal::Unreachable(error.to_string()),
        }
    }

    /// Whether the cache may stand in: the Hub said nothing, rather than no.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Refusal::Unreachable(_) => true,
            Refusal::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// What happened, and what to do.
    pub fn explain(&self, model: &str, settings: &Settings) -> String {
        let Settings { endpoint, revision, .. } = settings;
        let has_token = settings.token.is_some();
        let how = format!("pass a token from {endpoint}/settings/tokens with --token or HF_TOKEN");
        match self {
            Refusal::Status { status: 401, .. } if has_token => format!(
                "the Hub does not accept the token (401): it is wrong or expired, or the model is private; {how}"
            ),
            Refusal::Status { status: 401, file } if file.is_empty() => format!(
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
            Refusal::Status { status: 404, file } if file.is_empty() => format!(
                "there is no such local directory, and on the Hub no such model or no revision {revision} of it (404); check the name at {endpoint}/models"
            ),
            Refusal::Status { status: 404, file } => {
                format!("its revision {revision} has no {} (404)", shown(file))
            }
            Refusal::Status { status: 429, .. } => {
                format!("the Hub limits requests (429); wait a few minutes, or {how}")
            }
            Refusal::Status { status, .. } if *status >= 500 => format!(
                "the Hub at {endpoint} is in trouble ({status}); try again later, or use --offline for what the cache has"
            ),
            Refusal::Status { status, .. } => {
                format!("the Hub at {endpoint} answered {status}; check HF_ENDPOINT")
            }
            Refusal::Unreachable(error) => format!(
                "there is no such local directory, and the Hub at {endpoint} cannot be reached ({}); check the network and HF_ENDPOINT, or give a local directory",
                shown(error)
            ),
            Refusal::Malformed(error) => format!(
                "{endpoint} does not answer as the Hub does ({}); check HF_ENDPOINT and proxies",
                shown(error)
            ),
            Refusal::Disk(error) => format!(
                "the cache cannot be written ({}); free space or give another directory with --cache-dir",
                shown(&error.to_string())
            ),
            Refusal::Locked(path) => format!(
                "another process is downloading it (lock {path}); wait for it, or delete the lock if there is none"
            ),
            Refusal::NoWeights(why) => why.clone(),
        }
    }
}

/// Errors of sockets, as opposed to those of files.
fn is_network(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | NotConnected
            | BrokenPipe
            | TimedOut
            | UnexpectedEof
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
            | AddrNotAvailable
            | WouldBlock
            | Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::HubOptions;

    fn explained(file: &str, error: ureq::Error, token: Option<&str>) -> String {
        let options = HubOptions { token: token.map(str::to_string), ..HubOptions::default() };
        let settings = Settings::new(&options, &|_| None);
        Refusal::new(file, ApiError::RequestError(Box::new(error))).explain("org/name", &settings)
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
            ("", 429, None, "limits requests (429)"),
            ("", 503, None, "in trouble (503)"),
            ("", 418, None, "answered 418"),
        ];
        for (file, status, token, fragment) in table {
            let text = explained(file, ureq::Error::StatusCode(status), token);
            assert!(text.contains(fragment), "{status}: {text}");
            assert!(!text.contains("hf_secret"));
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn no_network_is_not_a_full_disk() {
        let text = explained("", ureq::Error::HostNotFound, None);
        assert!(text.contains("cannot be reached"), "{text}");
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(Refusal::new("f", ApiError::IoError(reset)).is_unreachable());
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let refusal = Refusal::new("f", ApiError::TooManyRetries(Box::new(ApiError::IoError(full))));
        assert!(matches!(refusal, Refusal::Disk(_)));
        assert!(!refusal.is_unreachable());
    }
}
