//! What a plan needs: headers.

use super::*;
use halfbyte_checkpoint::CheckpointError;
use halfbyte_checkpoint::hub::{Found, find};

/// The headers of `org/name`.
fn outline(options: &HubOptions) -> Result<Checkpoint, CheckpointError> {
    match find("org/name", options, &mut ())? {
        Found::Away(away) => away.outline(),
        Found::Here(dir) => panic!("it is in {}", dir.display()),
    }
}

#[test]
fn a_plan_needs_headers_only() {
    let cache = tempfile::tempdir().unwrap();
    let hub = serve("llama_bf16_sharded");
    let checkpoint = outline(&options(&hub, cache.path())).unwrap();
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
}

#[test]
fn what_is_not_a_model_is_refused_as_when_it_is_downloaded() {
    let cache = tempfile::tempdir().unwrap();
    let weights = |name: &str| name.ends_with(".safetensors") || name.ends_with("index.json");
    let repository = repository("llama_bf16_sharded").without(weights).with("pytorch_model.bin", vec![0]);
    let hub = StandIn::start(vec![repository]).unwrap();
    let error = outline(&options(&hub, cache.path())).unwrap_err().to_string();
    assert!(error.contains("pickles"), "{error}");
}
