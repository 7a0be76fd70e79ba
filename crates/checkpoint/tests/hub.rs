//! The Hub, played by a server in this process: downloads, refusals, the cache, being offline.

use halfbyte_checkpoint::hub::outline;
use halfbyte_checkpoint::{Checkpoint, HubOptions, Progress, resolve};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_verysecret";

/// A server with the Hub's interface and one repository, `org/name`.
struct Hub {
    endpoint: String,
    /// `GET path` of each request, and `+token` where one was sent.
    requests: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Repository {
    files: BTreeMap<String, Vec<u8>>,
    /// The status for files without a valid token; with one, or if it is 200, files are served.
    gate: u16,
}

impl Hub {
    fn serve(repository: Repository) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &repository, &log);
            }
        });
        Hub { endpoint, requests }
    }

    fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            cache_dir: Some(cache.to_path_buf()),
            endpoint: Some(self.endpoint.clone()),
            // A token of the machine that runs the tests must not get in.
            token: Some("none".to_string()),
            ..HubOptions::default()
        }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn answer(mut stream: TcpStream, repository: &Repository, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_string());
    }
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else {
        return;
    };
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_string())
        })
    };
    let valid = header("authorization").is_some_and(|value| value == format!("Bearer {TOKEN}"));
    log.lock().unwrap().push(format!("{path}{}", if valid { " +token" } else { "" }));

    let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let (status, headers, body) = if path == "/api/models/org/name/revision/main" {
        let siblings: Vec<_> =
            repository.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        (200, String::new(), info.to_string().into_bytes())
    } else if file.is_some() && repository.gate != 200 && !valid {
        (repository.gate, String::new(), Vec::new())
    } else if let Some((name, bytes)) = file.and_then(|file| repository.files.get_key_value(file)) {
        let range = header("range").unwrap_or_else(|| "bytes=0-".to_string());
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(bytes.len(), |to: usize| (to + 1).min(bytes.len()));
        let total = bytes.len();
        let headers = format!(
            "x-repo-commit: {COMMIT}\r\netag: \"etag-{}\"\r\ncontent-range: bytes {from}-{}/{total}\r\n",
            name.replace('.', "-"),
            to.saturating_sub(1)
        );
        (206, headers, bytes[from..to].to_vec())
    } else {
        (if valid { 404 } else { 401 }, String::new(), Vec::new())
    };
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

fn repository(fixture_name: &str, gate: u16) -> Repository {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(fixture(fixture_name)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        files.insert(name, std::fs::read(entry.path()).unwrap());
    }
    files.insert("README.md".to_string(), b"not needed".to_vec());
    Repository { files, gate }
}

#[derive(Default)]
struct Bars {
    files: Vec<(String, u64, u64, bool)>,
}

impl Progress for Bars {
    fn started(&mut self, file: &str, bytes: u64) {
        self.files.push((file.to_string(), bytes, 0, false));
    }
    fn advanced(&mut self, bytes: u64) {
        self.files.last_mut().unwrap().2 += bytes;
    }
    fn finished(&mut self) {
        self.files.last_mut().unwrap().3 = true;
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

#[test]
fn a_sharded_model_is_downloaded_once_then_cached_then_offline() {
    let name = "llama_bf16_sharded";
    let hub = Hub::serve(repository(name, 200));
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());

    let mut bars = Bars::default();
    let checkpoint = resolve("org/name", &options, &mut bars).unwrap();
    assert_eq!(checkpoint.name, "org/name");
    same_tensors(&checkpoint, name);
    let downloaded: Vec<&str> = bars.files.iter().map(|(file, ..)| file.as_str()).collect();
    assert_eq!(
        downloaded,
        [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "model-00001-of-00004.safetensors",
            "model-00002-of-00004.safetensors",
            "model-00003-of-00004.safetensors",
            "model-00004-of-00004.safetensors",
        ]
    );
    for (file, total, seen, finished) in &bars.files {
        let size = std::fs::metadata(fixture(name).join(file)).unwrap().len();
        assert_eq!((*total, *seen, *finished), (size, size, true), "{file}");
    }

    // As Python leaves it: one reference, to the commit.
    let references = cache.path().join("models--org--name/refs");
    assert_eq!(std::fs::read_to_string(references.join("main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read_dir(references).unwrap().count(), 1);

    hub.requests();
    let mut bars = Bars::default();
    resolve("org/name", &options, &mut bars).unwrap();
    assert_eq!(hub.requests(), ["/api/models/org/name/revision/main"]);
    assert!(bars.files.is_empty());

    let offline = HubOptions { offline: true, ..options.clone() };
    same_tensors(&resolve("org/name", &offline, &mut ()).unwrap(), name);
    let commit = HubOptions { revision: Some(COMMIT.to_string()), ..offline.clone() };
    same_tensors(&resolve("org/name", &commit, &mut ()).unwrap(), name);
    assert!(hub.requests().is_empty());

    // The Hub is gone: the cache stands in.
    let gone = HubOptions { endpoint: Some(nobody()), ..options };
    same_tensors(&resolve("org/name", &gone, &mut ()).unwrap(), name);

    // A shard is gone too: the cache is not complete.
    let shard =
        cache.path().join(format!("models--org--name/snapshots/{COMMIT}/model-00002-of-00004.safetensors"));
    std::fs::remove_file(shard).unwrap();
    let error = resolve("org/name", &offline, &mut ()).unwrap_err().to_string();
    assert!(error.contains("org/name: offline, and the cache"), "{error}");
    assert!(error.contains("run it once without --offline"), "{error}");
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_broken_off_download_goes_on() {
    let name = "gpt2";
    let hub = Hub::serve(repository(name, 200));
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--org--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let whole = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
    std::fs::write(blobs.join("etag-model-safetensors.part"), &whole[..100_000]).unwrap();
    let mut bars = Bars::default();
    let checkpoint = resolve("org/name", &hub.options(cache.path()), &mut bars).unwrap();
    same_tensors(&checkpoint, name);
    let (_, total, seen, _) = bars.files.last().unwrap();
    assert_eq!(total, seen);
}

#[test]
fn a_gated_model_names_its_page_and_opens_with_a_token() {
    for gate in [401, 403] {
        let hub = Hub::serve(repository("llama_f16", gate));
        let cache = tempfile::tempdir().unwrap();
        let mut options = hub.options(cache.path());
        let error = resolve("org/name", &options, &mut ()).unwrap_err().to_string();
        assert!(error.contains(&gate.to_string()), "{error}");
        assert!(
            error.contains("--token or HF_TOKEN") || error.contains(&format!("{}/org/name", hub.endpoint)),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);

        options.token = Some(TOKEN.to_string());
        hub.requests();
        same_tensors(&resolve("org/name", &options, &mut ()).unwrap(), "llama_f16");
        assert!(hub.requests().iter().all(|request| request.ends_with("+token")));
    }
}

#[test]
fn refusals_say_what_to_do_and_never_the_token() {
    let hub = Hub::serve(repository("llama_f16", 200));
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { token: Some(TOKEN.to_string()), ..hub.options(cache.path()) };
    let refusal = |model: &str, options: &HubOptions| {
        let error = resolve(model, options, &mut ()).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!error.contains(TOKEN), "{error}");
        error
    };
    let error = refusal("org/other", &options);
    assert!(error.contains("no such model or no revision main of it (404)"), "{error}");
    let revision = HubOptions { revision: Some("v9".to_string()), ..options.clone() };
    assert!(refusal("org/name", &revision).contains("no revision v9"));
    let gone = HubOptions { endpoint: Some(nobody()), ..options.clone() };
    let error = refusal("org/name", &gone);
    assert!(error.contains("cannot be reached") && error.contains("check the network"), "{error}");
    let offline = HubOptions { offline: true, ..options.clone() };
    assert!(refusal("org/name", &offline).contains("offline, and the cache"));
    let bad = HubOptions { token: Some(format!("{TOKEN}\nx")), ..options.clone() };
    assert!(refusal("org/name", &bad).contains("characters that a token cannot have"));
    let error = refusal("no such/../thing", &options);
    assert!(error.contains("neither a local directory nor a Hub id"), "{error}");

    let mut pickles = repository("llama_f16", 200);
    pickles.files.remove("model.safetensors");
    pickles.files.insert("pytorch_model.bin".to_string(), vec![0; 9]);
    let hub = Hub::serve(pickles);
    let error = refusal("org/name", &hub.options(cache.path()));
    assert!(error.contains("pickles"), "{error}");
}

#[test]
fn a_cache_that_python_wrote_is_used() {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--org--name");
    let snapshot = model.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(model.join("refs/refs/pr")).unwrap();
    std::fs::write(model.join("refs/main"), COMMIT).unwrap();
    std::fs::write(model.join("refs/refs/pr/1"), COMMIT).unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(fixture("qwen3_qknorm").join(file), snapshot.join(file)).unwrap();
    }
    for revision in [None, Some("main"), Some("refs/pr/1"), Some(COMMIT)] {
        let options = HubOptions {
            cache_dir: Some(cache.path().to_path_buf()),
            offline: true,
            revision: revision.map(str::to_string),
            ..HubOptions::default()
        };
        let checkpoint = resolve("org/name", &options, &mut ()).unwrap();
        assert_eq!(checkpoint.config.architecture, "Qwen3ForCausalLM");
    }
    // A reference that leads out of the cache is no commit.
    std::fs::write(model.join("refs/main"), "../../..").unwrap();
    let options =
        HubOptions { cache_dir: Some(cache.path().to_path_buf()), offline: true, ..HubOptions::default() };
    assert!(resolve("org/name", &options, &mut ()).is_err());
}

#[test]
fn a_path_wins_over_the_hub() {
    let directory = fixture("gpt2");
    let options = HubOptions { offline: true, ..HubOptions::default() };
    let checkpoint = resolve(directory.to_str().unwrap(), &options, &mut ()).unwrap();
    assert_eq!(checkpoint.config.architecture, "GPT2LMHeadModel");
    let file = directory.join("model.safetensors");
    let error = resolve(file.to_str().unwrap(), &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("give the directory that also holds its config.json"), "{error}");
}

#[test]
fn a_plan_needs_headers_only() {
    let cache = tempfile::tempdir().unwrap();
    let mut repository = repository("llama_bf16_sharded", 200);
    let hub = Hub::serve(repository.clone());
    let checkpoint = outline("org/name", &hub.options(cache.path())).unwrap().unwrap();
    let local = Checkpoint::open(&fixture("llama_bf16_sharded")).unwrap();
    let names = |checkpoint: &Checkpoint| -> Vec<String> {
        checkpoint.index.iter().map(|tensor| tensor.name.clone()).collect()
    };
    assert_eq!(names(&checkpoint), names(&local));
    assert_eq!(checkpoint.config.architecture, local.config.architecture);
    let weights: u64 = local.index.iter().map(|tensor| tensor.bytes()).sum();
    assert_eq!(checkpoint.missing_bytes(), weights, "all but the headers is missing");
    let first = local.index.iter().next().unwrap();
    assert!(checkpoint.tensor_bytes(&first.name).unwrap_err().to_string().contains("not there"));
    assert!(std::fs::read_dir(cache.path()).unwrap().next().is_none(), "nothing is written");

    // What is not a model is refused as when it is downloaded.
    repository.files.retain(|name, _| !name.ends_with(".safetensors") && !name.ends_with("index.json"));
    repository.files.insert("pytorch_model.bin".into(), vec![0]);
    let hub = Hub::serve(repository);
    let error = outline("org/name", &hub.options(cache.path())).unwrap_err().to_string();
    assert!(error.contains("pickles"), "{error}");

    // Local models have nothing to fetch.
    let path = fixture("llama_mha").display().to_string();
    assert!(outline(&path, &hub.options(cache.path())).unwrap().is_none());
}
