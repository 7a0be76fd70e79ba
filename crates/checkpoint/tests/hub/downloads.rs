//! Downloads that go well.

use super::*;
use halfbyte_checkpoint::resolve;
use halfbyte_hub_stand_in::{Fault, Rule, Site};

const SHARDED: &str = "llama_bf16_sharded";

#[test]
fn a_sharded_model_is_downloaded_once_then_cached_then_offline() {
    let hub = serve(SHARDED);
    let commit = hub.commit("org/name");
    let cache = tempfile::tempdir().unwrap();
    let options = options(&hub, cache.path());

    let mut bars = Bars::default();
    let checkpoint = resolve("org/name", &options, &mut bars).unwrap();
    assert_eq!(checkpoint.name, "org/name");
    same_tensors(&checkpoint, SHARDED);
    let downloaded: Vec<&str> = bars.files.keys().map(String::as_str).collect();
    assert_eq!(
        downloaded,
        [
            "config.json",
            "generation_config.json",
            "model-00001-of-00004.safetensors",
            "model-00002-of-00004.safetensors",
            "model-00003-of-00004.safetensors",
            "model-00004-of-00004.safetensors",
            "model.safetensors.index.json",
        ]
    );
    let mut shards = 0;
    for (file, (first, last, total)) in &bars.files {
        let size = std::fs::metadata(fixture(SHARDED).join(file)).unwrap().len();
        assert_eq!((*first, *last, *total), (0, size, size), "{file}");
        shards += if file.ends_with(".safetensors") { size } else { 0 };
    }
    assert_eq!(bars.all, (shards, shards));

    // Each byte came once, and nothing that is not needed.
    let bodies: Vec<_> = hub.requests().into_iter().filter(|one| one.method == "GET").collect();
    for request in bodies.iter().filter(|one| one.file.is_some()) {
        let file = request.file.as_deref().unwrap();
        assert!(bars.files.contains_key(file), "{file}");
        assert_eq!(request.sent, bars.files[file].2, "{file}");
    }
    assert_eq!(bodies.len(), 1 + bars.files.len());

    // As Python leaves it: one reference, to the commit; names are links to blobs; nothing unfinished.
    let model = cache.path().join("models--org--name");
    let references = model.join("refs");
    assert_eq!(std::fs::read_to_string(references.join("main")).unwrap(), commit);
    assert_eq!(std::fs::read_dir(references).unwrap().count(), 1);
    for file in bars.files.keys() {
        let link = model.join("snapshots").join(&commit).join(file);
        #[cfg(unix)]
        assert!(std::fs::read_link(&link).unwrap().starts_with("../../blobs"), "{file}");
        assert!(link.is_file());
    }
    let blobs: Vec<_> =
        std::fs::read_dir(model.join("blobs")).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(blobs.len(), bars.files.len());
    assert!(blobs.iter().all(|name| [40, 64].contains(&name.len())), "{blobs:?}");

    hub.forget();
    let mut bars = Bars::default();
    resolve("org/name", &options, &mut bars).unwrap();
    let paths: Vec<String> = hub.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/models/org/name/revision/main"]);
    assert!(bars.files.is_empty());

    hub.forget();
    let offline = HubOptions { offline: true, ..options.clone() };
    same_tensors(&resolve("org/name", &offline, &mut ()).unwrap(), SHARDED);
    let commit = HubOptions { revision: Some(commit), ..offline.clone() };
    same_tensors(&resolve("org/name", &commit, &mut ()).unwrap(), SHARDED);
    assert!(hub.requests().is_empty());

    // The Hub is gone: the cache stands in.
    let gone = HubOptions { endpoint: Some(nobody()), ..options };
    same_tensors(&resolve("org/name", &gone, &mut ()).unwrap(), SHARDED);

    // A shard is gone too: the cache is not complete.
    std::fs::remove_file(blob(
        cache.path(),
        commit.revision.as_ref().unwrap(),
        "model-00002-of-00004.safetensors",
    ))
    .unwrap();
    let error = resolve("org/name", &offline, &mut ()).unwrap_err().to_string();
    assert!(error.contains("org/name: offline, and the cache"), "{error}");
    assert!(error.contains("run it once without --offline"), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let hub = serve(SHARDED);
    let cache = tempfile::tempdir().unwrap();
    resolve("org/name", &options(&hub, cache.path()), &mut ()).unwrap();
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.site == Site::Cdn));
    for request in requests {
        let wanted = (request.site == Site::Hub).then_some(TOKEN);
        assert_eq!(request.token.as_deref(), wanted, "{request:?}");
    }
}

#[test]
fn a_renamed_repository_is_followed_with_its_token() {
    let hub = serve("gpt2");
    hub.rename("old/name", "org/name");
    let cache = tempfile::tempdir().unwrap();
    same_tensors(&resolve("old/name", &options(&hub, cache.path()), &mut ()).unwrap(), "gpt2");
    let on_hub = hub.requests().into_iter().filter(|request| request.site == Site::Hub);
    assert!(on_hub.into_iter().all(|request| request.token.is_some()));
}

#[test]
fn shards_are_fetched_several_at_a_time() {
    let hub = serve(SHARDED);
    // Each shard alone would take 0.3 s.
    let size = std::fs::metadata(fixture(SHARDED).join("model-00001-of-00004.safetensors")).unwrap().len();
    hub.misbehave(Rule::new(Fault::Slow(size * 3), ".safetensors").at(Site::Cdn));
    let cache = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    resolve("org/name", &options(&hub, cache.path()), &mut ()).unwrap();
    assert!(start.elapsed() < Duration::from_millis(1000), "{:?}", start.elapsed());
}

#[test]
fn a_download_that_another_process_began_goes_on() {
    let hub = serve("gpt2");
    let cache = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("gpt2").join("model.safetensors")).unwrap();
    let options = options(&hub, cache.path());
    // The first process is cut off, again and again.
    hub.misbehave(Rule::new(Fault::Cut(30_000), "model.safetensors").at(Site::Cdn).times(1));
    hub.misbehave(Rule::new(Fault::Cut(0), "model.safetensors").at(Site::Cdn));
    let error = resolve("org/name", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("goes on where it was"), "{error}");
    hub.behave();
    hub.forget();

    let mut bars = Bars::default();
    same_tensors(&resolve("org/name", &options, &mut bars).unwrap(), "gpt2");
    let asked: Vec<_> = hub.requests().into_iter().filter(|request| request.site == Site::Cdn).collect();
    assert_eq!(asked.len(), 1);
    let from = asked[0].range.unwrap().0;
    assert!((1..=30_000).contains(&from), "{from}");
    assert_eq!(asked[0].sent, whole.len() as u64 - from);
    assert_eq!(bars.files["model.safetensors"], (from, whole.len() as u64, whole.len() as u64));
}

#[test]
fn of_two_at_once_one_downloads_and_the_other_uses_it() {
    let hub = serve("gpt2");
    let size = std::fs::metadata(fixture("gpt2").join("model.safetensors")).unwrap().len();
    hub.misbehave(Rule::new(Fault::Slow(size), "model.safetensors").at(Site::Cdn));
    let cache = tempfile::tempdir().unwrap();
    let notes: Vec<Vec<String>> = std::thread::scope(|scope| {
        let options = options(&hub, cache.path());
        let download = || {
            let options = options.clone();
            scope.spawn(move || {
                let mut bars = Bars::default();
                same_tensors(&resolve("org/name", &options, &mut bars).unwrap(), "gpt2");
                bars.notes
            })
        };
        let both = [download(), download()];
        both.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let waited = notes.iter().flatten().filter(|note| note.contains("model.safetensors: waiting"));
    assert_eq!(waited.count(), 1, "{notes:?}");
    let sent =
        hub.requests().iter().filter(|request| request.site == Site::Cdn).map(|one| one.sent).sum::<u64>();
    assert_eq!(sent, size);
}

#[test]
fn other_revisions_are_noted_beside_main() {
    let hub = StandIn::start(vec![repository("gpt2").with_revision("refs/pr/1")]).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { revision: Some("refs/pr/1".into()), ..options(&hub, cache.path()) };
    resolve("org/name", &options, &mut ()).unwrap();
    let reference = cache.path().join("models--org--name/refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), hub.commit("org/name"));
}
