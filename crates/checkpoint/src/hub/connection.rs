//! Requests to the Hub and to where it sends on: redirects, the token, patience.

use super::options::Settings;
use super::refusal::Refusal;
use super::steady::Steady;
use crate::error::CheckpointError;
use std::time::Duration;
use ureq::http::{Response, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, BodyReader, ResponseExt};

/// The most redirects that are followed.
const REDIRECTS: usize = 8;

/// Tries of a request that fails in a way that may pass.
const TRIES: u32 = 5;

/// The wait before the second try; each later one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(400);

/// The longest wait that the Hub may ask for before this becomes an error: its windows are 5 minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(310);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// The headers. A redirect to another server is the answer: its headers say what the file is.
    Head,
    /// All of it.
    Whole,
    /// The bytes from the first up to the last, or up to the end.
    Range(u64, Option<u64>),
}

/// The Hub, as the settings name it.
pub(super) struct Connection {
    agent: Agent,
    settings: Settings,
}

impl Connection {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// If the certificates that the environment names cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, Refusal> {
        let mut config = Agent::config_builder()
            .user_agent(concat!("halfbyte/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here: the token must go to the Hub and to no other server.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(settings.patience))
            .timeout_recv_response(Some(settings.patience))
            .timeout_per_read(Some(settings.patience));
        if is_loopback(&settings.endpoint) {
            // No proxy leads back to this machine.
            config = config.proxy(None);
        }
        if let Some(file) = &settings.certificates {
            let roots = roots(file).map_err(|problem| {
                Refusal::Tls(format!("the certificates in {} cannot be read: {problem}", file.display()))
            })?;
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self { agent: config.build().new_agent(), settings: settings.clone() })
    }

    /// Asks once, following redirects. The token goes to the endpoint's own scheme, host and port only.
    ///
    /// # Errors
    /// Any status but those of success.
    pub fn ask(&self, file: &str, url: &str, ask: Ask) -> Result<Response<Body>, Refusal> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let mut request = match ask {
                Ask::Head => self.agent.head(&url),
                Ask::Whole | Ask::Range(..) => self.agent.get(&url),
            };
            if let Some(token) = &self.settings.token
                && origin(&url) == origin(&self.settings.endpoint)
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            match ask {
                Ask::Range(first, Some(last)) => {
                    request = request.header(header::RANGE, format!("bytes={first}-{last}"));
                }
                Ask::Range(first, None) => request = request.header(header::RANGE, format!("bytes={first}-")),
                Ask::Head | Ask::Whole => {}
            }
            let response = request.call().map_err(|error| Refusal::of_request(file, error))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(Refusal::of_status(file, &response));
            }
            let target = text(&response, header::LOCATION.as_str())
                .and_then(|location| joined(&response.get_uri().to_string(), location))
                .ok_or_else(|| Refusal::Malformed(format!("a redirect ({status}) that leads nowhere")))?;
            if url.starts_with("https:") && !target.starts_with("https:") {
                return Err(Refusal::Malformed("a redirect from https to http".into()));
            }
            if ask == Ask::Head && origin(&target) != origin(&self.settings.endpoint) {
                return Ok(response);
            }
            url = target;
        }
        Err(Refusal::Malformed(format!("more than {REDIRECTS} redirects")))
    }

    /// Asks until there is an answer, as [`retrying`] does.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn insist(
        &self,
        file: &str,
        url: &str,
        ask: Ask,
        note: &dyn Fn(String),
    ) -> Result<Response<Body>, Refusal> {
        retrying(note, &mut || self.ask(file, url, ask))
    }

    /// A body's bytes, as long as they keep coming.
    pub fn steady<'a>(&self, body: &'a mut Body) -> Steady<BodyReader<'a>> {
        Steady::new(body.as_reader(), self.settings.patience)
    }

    /// A refusal as an error, without the token.
    pub fn error(&self, model: &str, refusal: &Refusal) -> CheckpointError {
        let problem = self.settings.without_token(refusal.explain(model, &self.settings));
        CheckpointError::Hub { model: model.to_owned(), problem }
    }

    /// The address of a file of a model at a commit.
    pub fn url(&self, model: &str, commit: &str, file: &str) -> String {
        format!("{}/{model}/resolve/{commit}/{}", self.settings.endpoint, escaped(file))
    }

    /// The address of what the Hub knows about a model's revision.
    pub fn info_url(&self, model: &str) -> String {
        format!("{}/api/models/{model}/revision/{}", self.settings.endpoint, escaped(&self.settings.revision))
    }
}

/// Tries `attempt` again while its failures may pass (a busy or failing server, a broken connection), after
/// longer and longer waits, or after the one that the server asks for. `note` hears of waits that it asks for.
///
/// # Errors
/// The last failure.
pub(super) fn retrying<T>(
    note: &dyn Fn(String),
    attempt: &mut dyn FnMut() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut tries = 0;
    loop {
        let refusal = match attempt() {
            Ok(answer) => return Ok(answer),
            Err(refusal) => refusal,
        };
        tries += 1;
        pause(&refusal, tries, note).then_some(()).ok_or(refusal)?;
    }
}

/// Waits before try `tries` + 1 after `refusal`; false if there is to be none.
fn pause(refusal: &Refusal, tries: u32, note: &dyn Fn(String)) -> bool {
    if tries >= TRIES || !refusal.may_pass() {
        return false;
    }
    let wait = match refusal.asked_wait() {
        Some(asked) if asked > LONGEST_WAIT => return false,
        Some(asked) => {
            note(format!("the Hub limits requests (429): going on in {} s", asked.as_secs()));
            asked
        }
        None => FIRST_WAIT * (1 << (tries - 1)),
    };
    std::thread::sleep(wait);
    true
}

/// The way to a file whose transfer may break: where it is, and how often in a row nothing came.
pub(super) struct Way {
    /// The Hub's own address of the file.
    own: String,
    /// Where it is, at the moment.
    pub location: String,
    tries: u32,
}

impl Way {
    /// `location` may be a link to another server, which expires; `own` is asked for a new one.
    pub fn new(own: String, location: String) -> Way {
        Way { own, location, tries: 0 }
    }

    /// Waits before the next try after a transfer broke, where `some` of it came.
    ///
    /// # Errors
    /// The refusal, if there is to be no other try.
    pub fn broke(&mut self, refusal: Refusal, some: bool, note: &dyn Fn(String)) -> Result<(), Refusal> {
        // What came counts, unless it trickles: a connection that breaks every minute still gets there.
        self.tries = if some && !refusal.is_trickle() { 1 } else { self.tries + 1 };
        let expired = refusal.is_denied() && self.location != self.own;
        if !expired && !pause(&refusal, self.tries, note) {
            return Err(refusal);
        }
        self.location.clone_from(&self.own);
        Ok(())
    }
}

/// A header's text.
pub(super) fn text<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The address that a redirect leads to.
pub(super) fn redirect<B>(response: &Response<B>, from: &str) -> Option<String> {
    joined(from, text(response, header::LOCATION.as_str())?)
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find(['/', '?', '#']).map_or(url.len(), |at| authority + at);
    &url[..end]
}

/// Whether an address is of this machine.
fn is_loopback(url: &str) -> bool {
    let host = origin(url).rsplit("://").next().unwrap_or_default();
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|own| host.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')))
}

/// `location` as seen from `base`.
fn joined(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        Some(location.to_owned())
    } else if let Some(rest) = location.strip_prefix("//") {
        Some(format!("{}://{rest}", base.split("://").next()?))
    } else if location.starts_with('/') {
        Some(format!("{}{location}", origin(base)))
    } else {
        None
    }
}

/// A path with what is not plain in it escaped, but for its slashes.
fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes()
        .map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The certificates of a PEM file, in the place of those that are built in.
fn roots(file: &std::path::Path) -> Result<RootCerts, String> {
    let pem = std::fs::read(file).map_err(|error| error.to_string())?;
    let mut found: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| error.to_string())? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err("there are none".into()) } else { Ok(RootCerts::from(found.into_iter())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_scheme_host_and_port() {
        assert_eq!(origin("https://huggingface.co/a/b?c"), "https://huggingface.co");
        assert_eq!(origin("http://localhost:80?x"), "http://localhost:80");
        for other in ["http://huggingface.co/", "https://huggingface.co:444/", "https://huggingface.co.evil/"]
        {
            assert_ne!(origin(other), origin("https://huggingface.co/x"), "{other}");
        }
        assert_ne!(origin("https://huggingface.co@evil/"), origin("https://huggingface.co"));
    }

    #[test]
    fn this_machine_needs_no_proxy() {
        assert!(is_loopback("http://127.0.0.1:80/x") && is_loopback("http://localhost"));
        assert!(!is_loopback("http://localhost.example") && !is_loopback("https://huggingface.co"));
    }

    #[test]
    fn redirects_may_be_relative() {
        let base = "https://hub/a/b";
        assert_eq!(joined(base, "/c?d").as_deref(), Some("https://hub/c?d"));
        assert_eq!(joined(base, "//cdn/c").as_deref(), Some("https://cdn/c"));
        assert_eq!(joined(base, "http://cdn/c").as_deref(), Some("http://cdn/c"));
        assert_eq!(joined(base, "file:///etc/passwd"), None);
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escaped("a/b c?#%.json"), "a/b%20c%3F%23%25.json");
    }
}
