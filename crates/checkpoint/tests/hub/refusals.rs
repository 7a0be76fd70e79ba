//! What the Hub refuses, and what is no model.

use super::*;
use halfbyte_checkpoint::resolve;
use halfbyte_hub_stand_in::{Access, TOKEN_WITHOUT_ACCESS};

fn gated(access: Access) -> StandIn {
    StandIn::start(vec![repository("llama_f16").with_access(access)]).unwrap()
}

#[test]
fn a_gated_model_names_its_page_and_opens_with_a_token() {
    let hub = gated(Access::Gated);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&hub, cache.path());
    options.token = Some(TOKEN_WITHOUT_ACCESS.into());
    let error = resolve("org/name", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("has no access (403)"), "{error}");
    assert!(error.contains(&format!("accept the model's licence at {}/org/name", hub.endpoint())), "{error}");
    assert_eq!(error.lines().count(), 1);

    options.token = Some(TOKEN.to_string());
    same_tensors(&resolve("org/name", &options, &mut ()).unwrap(), "llama_f16");
}

#[test]
fn a_private_model_is_as_if_it_were_not_there() {
    let hub = gated(Access::Private);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&hub, cache.path());
    options.token = Some(TOKEN_WITHOUT_ACCESS.into());
    let error = resolve("org/name", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("no such model") && error.contains("(404)"), "{error}");
    options.token = Some("hf_expired".into());
    let error = resolve("org/name", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("does not accept the token (401)") && !error.contains("hf_expired"), "{error}");
    options.token = Some(TOKEN.into());
    same_tensors(&resolve("org/name", &options, &mut ()).unwrap(), "llama_f16");
}

#[test]
fn refusals_say_what_to_do_and_never_the_token() {
    let hub = serve("llama_f16");
    let cache = tempfile::tempdir().unwrap();
    let options = options(&hub, cache.path());
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

    let pickles = repository("llama_f16").without(|name| name.ends_with(".safetensors"));
    let hub = StandIn::start(vec![pickles.with("pytorch_model.bin", vec![0; 9])]).unwrap();
    let error = refusal("org/name", &super::options(&hub, cache.path()));
    assert!(error.contains("pickles"), "{error}");
    assert!(hub.requests().iter().all(|request| request.file.is_none()), "nothing of it is fetched");
}
