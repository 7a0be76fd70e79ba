//! The 4-bit cache: the same answers as without, made once, made anew when its source changes, and never
//! half there.

use halfbyte::{CausalLm, FourBitCache, LoadOptions, ModelSource, Progress, QuantSpec};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const IDS: &[u32] = &[5, 17, 300, 2, 88, 41, 9];

/// A copy of a fixture, to be changed, and a place for the cache.
struct Case {
    scratch: tempfile::TempDir,
    model: PathBuf,
}

/// What loading told.
#[derive(Default)]
struct Told {
    notes: Vec<String>,
    quantized: usize,
}

impl Progress for Told {
    fn quantize(&mut self, _name: &str, _done: u64, _total: u64) {
        self.quantized += 1;
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

impl Case {
    fn new(fixture: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(fixture);
        let model = scratch.path().join("model");
        std::fs::create_dir(&model).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
        Self { scratch, model }
    }

    fn options(&self, four_bit_cache: FourBitCache) -> LoadOptions {
        LoadOptions {
            device_map: "cpu".parse().unwrap(),
            cache_dir: Some(self.scratch.path().join("hub")),
            four_bit_cache,
            ..LoadOptions::default()
        }
    }

    fn load(&self, options: &LoadOptions) -> (Vec<f32>, Told) {
        let mut told = Told::default();
        let source = ModelSource::named(self.model.to_str().unwrap());
        let mut model = CausalLm::load(&source, options, &mut told).unwrap();
        assert_eq!(model.name(), self.model.to_str().unwrap());
        (model.logits(IDS).unwrap(), told)
    }

    /// The directory that holds this model's caches.
    fn home(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.scratch.path().join("hub/halfbyte")).unwrap();
        let home = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none());
        home
    }

    /// Names beside each other in it, sorted.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.home()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn cached_models_answer_as_those_that_are_quantized_while_loading() {
    for fixture in ["llama_mha", "llama_bf16_sharded", "llama_gqa_tied_llama3rope", "phi3_fused", "gpt2"] {
        let case = Case::new(fixture);
        let (wanted, told) = case.load(&case.options(FourBitCache::Never));
        assert_eq!(told.quantized, 0);
        let (first, told) = case.load(&case.options(FourBitCache::Always));
        assert!(told.quantized > 0, "{fixture}");
        assert!(told.notes.iter().any(|note| note.contains("--no-cache")), "{:?}", told.notes);
        let (second, told) = case.load(&case.options(FourBitCache::Always));
        assert_eq!(told.quantized, 0, "{fixture}: the cache is made once");
        assert_eq!(told.notes, Vec::<String>::new());
        assert_eq!(first, wanted, "{fixture}");
        assert_eq!(second, wanted, "{fixture}");
        assert_eq!(case.names(), ["nf4-64-dq", "nf4-64-dq.lock"]);
    }
}

#[test]
fn small_models_are_left_alone() {
    let case = Case::new("llama_mha");
    case.load(&case.options(FourBitCache::Auto));
    assert!(!case.scratch.path().join("hub").exists());
}

#[test]
fn each_setting_has_its_own() {
    let case = Case::new("llama_mha");
    for (spec, name) in [
        (QuantSpec::default(), "nf4-64-dq"),
        (QuantSpec { double_quant: false, ..QuantSpec::default() }, "nf4-64"),
        (QuantSpec { blocksize: 128, ..QuantSpec::default() }, "nf4-128-dq"),
    ] {
        let with = |cache| LoadOptions { quant: Some(spec), ..case.options(cache) };
        let (wanted, _) = case.load(&with(FourBitCache::Never));
        let (made, _) = case.load(&with(FourBitCache::Always));
        let (read, told) = case.load(&with(FourBitCache::Always));
        assert_eq!(told.quantized, 0);
        assert_eq!((&made, &read), (&wanted, &wanted), "{name}");
        assert!(case.names().iter().any(|found| found == name), "{name}");
    }
}

#[test]
fn a_source_that_changes_is_read_again() {
    let case = Case::new("llama_mha");
    let options = case.options(FourBitCache::Always);
    let (before, _) = case.load(&options);
    let shard = case.model.join("model.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    // A float in the middle of the weights becomes another one.
    let at = (bytes.len() / 2) & !3;
    bytes[at..at + 4].copy_from_slice(&3.5f32.to_le_bytes());
    std::fs::write(&shard, bytes).unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    OpenOptions::new().write(true).open(&shard).unwrap().set_modified(later).unwrap();
    let (after, told) = case.load(&options);
    assert!(told.quantized > 0);
    assert_ne!(after, before);
    assert_eq!(after, case.load(&case.options(FourBitCache::Never)).0);
    assert_eq!(case.names(), ["nf4-64-dq", "nf4-64-dq.lock"]);
}

#[test]
fn what_a_killed_process_leaves_is_no_cache() {
    let case = Case::new("llama_bf16_sharded");
    let options = case.options(FourBitCache::Always);
    let (wanted, _) = case.load(&options);
    let (dir, part) = (case.home().join("nf4-64-dq"), case.home().join("nf4-64-dq.part"));

    // Killed when all was written but the name.
    std::fs::rename(&dir, &part).unwrap();
    let (found, told) = case.load(&options);
    assert!(told.quantized > 0);
    assert_eq!(found, wanted);
    assert_eq!(case.names(), ["nf4-64-dq", "nf4-64-dq.lock"]);

    // Killed while a shard was written: a marker, a part.
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::create_dir(&part).unwrap();
    std::fs::write(part.join(".halfbyte-unfinished.json"), "{\"format\": 1, \"sou").unwrap();
    std::fs::write(part.join("model.safetensors.part"), "half").unwrap();
    let (found, _) = case.load(&options);
    assert_eq!(found, wanted);
    assert_eq!(case.names(), ["nf4-64-dq", "nf4-64-dq.lock"]);

    // A damaged cache is no cache.
    for (file, bytes) in [("manifest.json", &b"{"[..]), ("config.json", b""), ("model.safetensors", b"short")]
    {
        std::fs::write(dir.join(file), bytes).unwrap();
        let (found, told) = case.load(&options);
        assert!(told.quantized > 0, "{file}");
        assert_eq!(found, wanted, "{file}");
        assert_eq!(case.load(&options).1.quantized, 0, "{file}");
    }
}

#[test]
fn a_second_process_does_not_wait() {
    let case = Case::new("llama_mha");
    let options = case.options(FourBitCache::Always);
    let (wanted, _) = case.load(&options);
    std::fs::remove_dir_all(case.home().join("nf4-64-dq")).unwrap();
    let lock = OpenOptions::new().write(true).open(case.home().join("nf4-64-dq.lock")).unwrap();
    lock.lock().unwrap();
    let (found, told) = case.load(&options);
    assert_eq!(found, wanted);
    assert_eq!(told.quantized, 0);
    assert!(told.notes[0].contains("another process"), "{:?}", told.notes);
    assert_eq!(case.names(), ["nf4-64-dq.lock"]);
    lock.unlock().unwrap();
    assert!(case.load(&options).1.quantized > 0);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_note() {
    let case = Case::new("llama_mha");
    // A file where the cache's directory should be.
    std::fs::create_dir_all(case.scratch.path().join("hub")).unwrap();
    std::fs::write(case.scratch.path().join("hub/halfbyte"), "in the way").unwrap();
    let (found, told) = case.load(&case.options(FourBitCache::Always));
    assert_eq!(found, case.load(&case.options(FourBitCache::Never)).0);
    assert_eq!(told.notes.len(), 1, "{:?}", told.notes);
    assert!(told.notes[0].contains("no 4-bit cache"), "{:?}", told.notes);
}
