//! Servers and connections that misbehave.

use super::*;
use halfbyte_checkpoint::resolve;
use halfbyte_hub_stand_in::{Fault, Rule, Site};

const MODEL: &str = "gpt2";
const WEIGHTS: &str = "model.safetensors";

/// Downloads `org/name` from a hub with these faults; the error is one line.
fn with_faults(rules: Vec<Rule>) -> (StandIn, Bars, Result<Checkpoint, String>) {
    let hub = serve(MODEL);
    rules.into_iter().for_each(|rule| hub.misbehave(rule));
    let cache = tempfile::tempdir().unwrap();
    let mut bars = Bars::default();
    let result =
        resolve("org/name", &options(&hub, cache.path()), &mut bars).map_err(|error| error.to_string());
    match &result {
        Ok(checkpoint) => same_tensors(checkpoint, MODEL),
        Err(error) => {
            assert_eq!(error.lines().count(), 1, "{error}");
            assert!(!error.contains(TOKEN), "{error}");
        }
    }
    (hub, bars, result)
}

fn weights_len() -> u64 {
    std::fs::metadata(fixture(MODEL).join(WEIGHTS)).unwrap().len()
}

fn cdn(fault: Fault) -> Rule {
    Rule::new(fault, WEIGHTS).at(Site::Cdn)
}

#[test]
fn what_came_before_a_cut_is_not_sent_again() {
    let (hub, _, result) = with_faults(vec![cdn(Fault::Cut(70_000)).times(2)]);
    result.unwrap();
    let asked: Vec<_> = hub.requests().into_iter().filter(|request| request.site == Site::Cdn).collect();
    let from: Vec<u64> = asked.iter().map(|request| request.range.unwrap().0).collect();
    assert_eq!(from, [0, 70_000, 140_000]);
    assert_eq!(asked.iter().map(|request| request.sent).sum::<u64>(), weights_len());
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let (hub, _, result) = with_faults(vec![cdn(Fault::Stall(50_000)).times(1)]);
    result.unwrap();
    let asked: Vec<_> = hub.requests().into_iter().filter(|request| request.site == Site::Cdn).collect();
    assert_eq!(asked.last().unwrap().range.unwrap().0, 50_000);
}

#[test]
fn a_slow_server_is_not_a_silent_one() {
    let (hub, _, result) = with_faults(vec![cdn(Fault::Slow(weights_len()))]);
    result.unwrap();
    assert_eq!(hub.requests().iter().filter(|request| request.site == Site::Cdn).count(), 1);
}

#[test]
fn a_server_that_trickles_is_asked_again_and_not_for_ever() {
    let (hub, _, result) = with_faults(vec![cdn(Fault::Slow(100)).times(1)]);
    result.unwrap();
    let asked: Vec<_> = hub.requests().into_iter().filter(|request| request.site == Site::Cdn).collect();
    assert_eq!(asked.len(), 2);
    assert!(asked[1].range.unwrap().0 > 0, "what trickled is kept");

    let (_, _, result) = with_faults(vec![cdn(Fault::Slow(100))]);
    let error = result.unwrap_err();
    assert!(error.contains("sends next to nothing (model.safetensors: only "), "{error}");
}

#[test]
fn limits_are_waited_for_as_long_as_the_hub_asks() {
    let start = std::time::Instant::now();
    let (_, bars, result) = with_faults(vec![Rule::new(Fault::Status(429, Some(1)), "resolve").times(1)]);
    result.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(bars.notes.iter().any(|note| note.contains("(429): going on in 1 s")), "{:?}", bars.notes);

    // An hour is an error now rather than later.
    let (hub, _, result) = with_faults(vec![Rule::new(Fault::Status(429, Some(3600)), "api")]);
    let error = result.unwrap_err();
    assert!(error.contains("limits requests (429); wait 3600 seconds"), "{error}");
    assert_eq!(hub.requests().len(), 1);
}

#[test]
fn server_errors_pass_or_are_said() {
    let (_, _, result) = with_faults(vec![
        Rule::new(Fault::Status(500, None), "api").times(1),
        Rule::new(Fault::Status(503, None), "resolve").times(1),
        cdn(Fault::Status(502, None)).times(1),
    ]);
    result.unwrap();
    let (hub, _, result) = with_faults(vec![cdn(Fault::Status(500, None))]);
    let error = result.unwrap_err();
    assert!(error.contains("in trouble (500); try again later"), "{error}");
    assert_eq!(hub.requests().iter().filter(|request| request.status == 500).count(), 5);
}

#[test]
fn damaged_bytes_are_fetched_again_and_never_kept() {
    let (_, bars, result) = with_faults(vec![cdn(Fault::Corrupt(1234)).times(1)]);
    result.unwrap();
    assert!(bars.notes.iter().any(|note| note.contains("arrived damaged: once more")), "{:?}", bars.notes);
    // A small file's hash is git's.
    let (_, _, result) = with_faults(vec![Rule::new(Fault::Corrupt(3), "config.json").times(1)]);
    result.unwrap();

    let hub = serve(MODEL);
    hub.misbehave(cdn(Fault::Corrupt(1234)));
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("org/name", &options(&hub, cache.path()), &mut ()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors arrived damaged twice (its hash is"), "{error}");
    let snapshot = cache.path().join("models--org--name/snapshots").join(hub.commit("org/name"));
    assert!(!snapshot.join(WEIGHTS).exists() && snapshot.join("config.json").exists());
    let blobs = std::fs::read_dir(cache.path().join("models--org--name/blobs")).unwrap();
    let large: Vec<_> = blobs.map(Result::unwrap).filter(|one| one.file_name().len() == 64).collect();
    assert!(large.is_empty(), "{large:?}");
}

#[test]
fn lies_about_sizes_are_named() {
    for rules in [
        vec![cdn(Fault::Truncated(100))],
        vec![Rule::new(Fault::Lies(1000), WEIGHTS).at(Site::Hub)],
        // What was fetched before is longer than what is there now.
        vec![cdn(Fault::Cut(weights_len() - 10)).times(1), cdn(Fault::Truncated(100))],
    ] {
        let (_, _, result) = with_faults(rules);
        let error = result.unwrap_err();
        let said = error.contains("the Hub says that model.safetensors has")
            && error.contains(&weights_len().to_string());
        assert!(said || error.contains("shorter on the server than the Hub says"), "{error}");
    }
}

#[test]
fn a_server_without_ranges_is_enough() {
    let (_, _, result) = with_faults(vec![cdn(Fault::Cut(1000)).times(1), cdn(Fault::NoRanges)]);
    result.unwrap();
}

#[test]
fn a_link_that_has_expired_is_asked_for_again() {
    let (hub, _, result) =
        with_faults(vec![cdn(Fault::Cut(1000)).times(1), cdn(Fault::Status(403, None)).times(1)]);
    // After the cut the Hub is asked for a new link; a refusal of that one is the Hub's.
    assert!(result.unwrap_err().contains("no access (403)"));
    assert!(hub.requests().iter().any(|one| one.method == "GET" && one.path.contains("/resolve/")));
    let (_, _, result) = with_faults(vec![cdn(Fault::Status(403, None)).times(1)]);
    result.unwrap();
}

#[test]
fn a_server_that_speaks_no_tls_is_said_to() {
    let hub = serve(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let endpoint = hub.endpoint().replace("http://", "https://");
    let options = HubOptions { endpoint: Some(endpoint), ..options(&hub, cache.path()) };
    let error = resolve("org/name", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("no secure connection to https://") && error.contains("SSL_CERT_FILE"), "{error}");
}
