//! What the user and the environment say about the Hub.

use crate::error::shown;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What the user asks of the Hub; what is left open comes from the environment, as in Python's
/// `huggingface_hub`: `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
/// `HF_HUB_DOWNLOAD_TIMEOUT` (seconds); and `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, `SSL_CERT_FILE`,
/// `REQUESTS_CA_BUNDLE`.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// A branch, tag or commit; `main` if not given.
    pub revision: Option<String>,
    /// The access token.
    pub token: Option<String>,
    /// The directory that holds `models--org--name`, as `cache_dir` in Python.
    pub cache_dir: Option<PathBuf>,
    /// Use only what the cache has.
    pub offline: bool,
    /// Another server with the Hub's interface, such as a mirror.
    pub endpoint: Option<String>,
    /// How long a server may say nothing, or send less than 1 KiB a second, before that counts as a broken
    /// connection; 30 seconds if not given.
    pub patience: Option<Duration>,
    /// The most bytes of original weights that are in memory while a model is quantized as it arrives, besides
    /// one tensor that is larger; 1 GiB if not given.
    pub window: Option<u64>,
}

/// Without the token.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("endpoint", &self.endpoint)
            .field("patience", &self.patience)
            .field("window", &self.window)
            .finish()
    }
}

/// [`HubOptions::patience`] where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(30);

/// [`HubOptions`] after the environment has filled them.
#[derive(Clone)]
pub(super) struct Settings {
    pub revision: String,
    pub token: Option<String>,
    pub offline: bool,
    pub endpoint: String,
    pub patience: Duration,
    pub window: u64,
    /// A PEM file of certificates to trust instead of those that are built in.
    pub certificates: Option<PathBuf>,
    /// The variable that names a proxy, if one does.
    pub proxy: Option<&'static str>,
    cache_dir: Option<PathBuf>,
}

impl Settings {
    /// `variable` reads the environment.
    pub fn new(options: &HubOptions, variable: &dyn Fn(&str) -> Option<String>) -> Settings {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
                let home = variable("HOME").or_else(|| variable("USERPROFILE"))?;
                Some(PathBuf::from(home).join(".cache"))
            });
            cache.map(|cache| cache.join("huggingface"))
        });
        let cache_dir = options.cache_dir.clone().or_else(|| {
            variable("HF_HUB_CACHE")
                .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
                .map(PathBuf::from)
                .or_else(|| home.as_ref().map(|home| home.join("hub")))
        });
        let token = options
            .token
            .clone()
            .or_else(|| variable("HF_TOKEN"))
            .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| {
                let file = variable("HF_TOKEN_PATH")
                    .map(PathBuf::from)
                    .or_else(|| home.as_ref().map(|home| home.join("token")))?;
                std::fs::read_to_string(file).ok()
            })
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        let on = |name: &str| {
            variable(name).is_some_and(|value| {
                matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
            })
        };
        let endpoint = options
            .endpoint
            .clone()
            .or_else(|| variable("HF_ENDPOINT"))
            .unwrap_or_else(|| "https://huggingface.co".to_string());
        let seconds = || variable("HF_HUB_DOWNLOAD_TIMEOUT")?.trim().parse::<u64>().ok();
        let patience = options.patience.or_else(|| seconds().map(Duration::from_secs));
        let certificates = variable("SSL_CERT_FILE").or_else(|| variable("REQUESTS_CA_BUNDLE"));
        let proxies = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
        Settings {
            window: options.window.unwrap_or(1 << 30),
            patience: patience.unwrap_or(PATIENCE).max(Duration::from_millis(1)),
            certificates: certificates.map(PathBuf::from),
            proxy: proxies.into_iter().find(|name| variable(name).is_some()),
            revision: options.revision.clone().unwrap_or_else(|| "main".to_string()),
            token,
            offline: options.offline || on("HF_HUB_OFFLINE"),
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            cache_dir,
        }
    }

    /// The cache's directory, absolute.
    pub fn cache_dir(&self) -> Result<PathBuf, String> {
        let dir = self
            .cache_dir
            .as_ref()
            .ok_or("there is no home directory for the cache; set HF_HOME or give --cache-dir")?;
        std::path::absolute(dir).map_err(|error| format!("cache {}: {error}", dir.display()))
    }

    /// Checks what becomes part of paths and requests.
    pub fn check(&self) -> Result<(), String> {
        let revision = &self.revision;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | '+');
        let inside = revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"));
        if !revision.chars().all(plain) || !inside || revision.len() > 255 || revision.contains("..") {
            return Err(format!(
                "the revision {} cannot be one; give a branch, a tag or a commit",
                shown(revision)
            ));
        }
        let server = self.endpoint.strip_prefix("https://").or_else(|| self.endpoint.strip_prefix("http://"));
        if server.is_none_or(|server| server.is_empty() || server.contains(char::is_whitespace)) {
            return Err(format!(
                "HF_ENDPOINT is {}, expected an address such as https://huggingface.co",
                shown(&self.endpoint)
            ));
        }
        if self.token.as_ref().is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            return Err("the token has characters that a token cannot have; copy it again".to_string());
        }
        Ok(())
    }

    /// A message in which the token, should some library have put it there, is hidden.
    pub fn without_token(&self, message: String) -> String {
        match &self.token {
            Some(token) => message.replace(token.as_str(), "(token)"),
            None => message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(options: HubOptions, variables: &[(&str, &str)]) -> Settings {
        Settings::new(&options, &|name| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(found.1.to_string())
        })
    }

    #[test]
    fn the_environment_fills_what_is_not_given() {
        let from = |variables: &[(&str, &str)]| settings(HubOptions::default(), variables);
        let dir = |variables: &[(&str, &str)]| from(variables).cache_dir().unwrap();
        assert_eq!(dir(&[("HOME", "/h")]), PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(dir(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(dir(&[("HF_HOME", "/hf"), ("HOME", "/h")]), PathBuf::from("/hf/hub"));
        assert_eq!(dir(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/hf")]), PathBuf::from("/c"));
        assert!(from(&[]).cache_dir().unwrap_err().contains("HF_HOME"));
        assert!(from(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(from(&[("HF_HUB_OFFLINE", "True")]).offline);
        assert!(!from(&[("HF_HUB_OFFLINE", "0")]).offline);
        let mirror = from(&[("HF_ENDPOINT", "https://mirror.example/")]);
        assert_eq!(mirror.endpoint, "https://mirror.example");
        assert_eq!(from(&[("HF_TOKEN", " hf_abc\n")]).token.as_deref(), Some("hf_abc"));
        assert_eq!(from(&[]).revision, "main");

        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = [("HF_HOME", home.path().to_str().unwrap())];
        assert_eq!(from(&home).token.as_deref(), Some("hf_file"));
    }

    #[test]
    fn what_is_given_wins() {
        let options = HubOptions {
            token: Some("mine".to_string()),
            cache_dir: Some("/mine".into()),
            endpoint: Some("http://localhost:1".to_string()),
            ..HubOptions::default()
        };
        let variables = [("HF_TOKEN", "other"), ("HF_HOME", "/other"), ("HF_ENDPOINT", "https://o")];
        let settings = settings(options, &variables);
        assert_eq!(settings.token.as_deref(), Some("mine"));
        assert_eq!(settings.cache_dir().unwrap(), PathBuf::from("/mine"));
        assert_eq!(settings.endpoint, "http://localhost:1");
        assert!(settings.check().is_ok());
    }

    #[test]
    fn what_could_escape_is_refused() {
        for revision in ["../../etc", "a/../b", "", "a//b", "/a", "a b", "a?b", ".git", "a\n"] {
            let options = HubOptions { revision: Some(revision.to_string()), ..HubOptions::default() };
            assert!(settings(options, &[]).check().is_err(), "{revision:?}");
        }
        for revision in ["main", "refs/pr/7", "v1.0", "0123456789abcdef"] {
            let options = HubOptions { revision: Some(revision.to_string()), ..HubOptions::default() };
            assert!(settings(options, &[]).check().is_ok(), "{revision:?}");
        }
        for endpoint in ["huggingface.co", "ftp://x", "https://", "https://a b"] {
            let settings = settings(HubOptions::default(), &[("HF_ENDPOINT", endpoint)]);
            assert!(settings.check().unwrap_err().contains("HF_ENDPOINT"), "{endpoint}");
        }
    }

    #[test]
    fn the_token_is_never_shown() {
        let options = HubOptions { token: Some("hf_secret".to_string()), ..HubOptions::default() };
        assert!(!format!("{options:?}").contains("hf_secret"));
        let settings = settings(options, &[]);
        assert_eq!(settings.without_token("Bearer hf_secret".to_string()), "Bearer (token)");
    }
}
