//! What is in the cache already, and what is no Hub id.

use super::*;
use halfbyte_checkpoint::resolve;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

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
