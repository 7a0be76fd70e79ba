//! They give the ids and texts that the sentencepiece library gives, and transformers where it agrees.
//!
//! `tests/fixtures/scripts/sentencepiece_models.py` made the models and asked both. Where they differ, the library is followed,
//! with which the models were trained; transformers for what the library does not know: special tokens within a text.

use super::{bare, configured, folder, streamed};
use serde_json::Value;

const KINDS: [&str; 7] = ["llama", "extended", "plain", "gemma", "t5", "suffix", "xlmr"];

fn expected(kind: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(kind).join("expected.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

/// The ids that are right for a case, without a frame.
fn followed(case: &Value, variant: &str) -> Vec<u32> {
    ids(case["followed"].get(variant).unwrap_or(&case["spm_ids"]))
}

#[test]
fn ids_are_the_librarys() {
    for kind in KINDS {
        let (tokenizer, expected) = (bare(kind), expected(kind));
        let mut wrong = Vec::new();
        let mut check = |text: &str, right: Vec<u32>| {
            let given = tokenizer.encode(text, false).unwrap();
            if given != right {
                wrong.push(format!("{text:?}: {given:?} instead of {right:?}"));
            }
        };
        let cases = list(&expected["cases"]);
        let noise = list(&expected["noise"]);
        assert!(cases.len() > 100 && noise.len() >= 150, "{kind}");
        for case in cases {
            check(case["text"].as_str().unwrap(), followed(case, "bare"));
        }
        // The library knows no control symbols in a text.
        for case in noise
            .iter()
            .filter(|case| kind != "plain" || !case["text"].as_str().unwrap().contains("<|user|>"))
        {
            check(case["text"].as_str().unwrap(), ids(&case["spm_ids"]));
        }
        assert!(wrong.is_empty(), "{kind}, {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
fn texts_are_the_librarys() {
    for kind in KINDS {
        let (tokenizer, expected) = (bare(kind), expected(kind));
        let unknown = expected["special"]["unk"].as_u64().unwrap() as u32;
        let cases = list(&expected["cases"]).iter().map(|case| (ids(&case["spm_ids"]), &case["spm_text"]));
        let runs = list(&expected["bytes"]).iter().map(|case| (ids(&case["ids"]), &case["spm_text"]));
        let mut checked = 0;
        // The library writes what is unknown as " ⁇ ", transformers not at all.
        for (ids, text) in cases.chain(runs).filter(|(ids, _)| !ids.contains(&unknown)) {
            let text = text.as_str().unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{kind}: {ids:?}");
            assert_eq!(streamed(&tokenizer, &ids, true), text, "{kind}: {ids:?}");
            checked += 1;
        }
        assert!(checked > 100, "{kind}: {checked}");
    }
}

/// Where transformers 5 is known to differ from the library.
fn differs(kind: &str, text: &str) -> bool {
    match kind {
        // It puts runs of spaces together by merges, and finds only those symbols of the user that are called special.
        "gemma" => text.contains("   ") || text.contains("<table>"),
        // Its charsmap replaces a cluster of characters by what only the first of them becomes.
        "t5" | "xlmr" => text.contains(['\u{308}', 'ｶ']),
        // It takes a space of the text for the one that goes before a text.
        _ => text.split('>').any(|segment| segment.starts_with([' ', '▁'])),
    }
}

#[test]
fn transformers_agrees_but_for_known_differences() {
    let mut agreed = 0;
    for kind in ["llama", "gemma", "t5", "xlmr"] {
        let expected = expected(kind);
        for (variant, config) in expected["variants"].as_object().unwrap() {
            let tokenizer = configured(kind, config);
            for case in list(&expected["cases"]) {
                let text = case["text"].as_str().unwrap();
                let given = tokenizer.encode(text, false).unwrap();
                assert_eq!(given, followed(case, variant), "{kind}, {variant}: {text:?}");
                let framed = tokenizer.encode(text, true).unwrap();
                let theirs = &case["hf"][variant];
                if framed == ids(&theirs["ids"]) {
                    agreed += 1;
                } else {
                    assert!(
                        differs(kind, text),
                        "{kind}, {variant}: {text:?} is {framed:?}, transformers' {}",
                        theirs["ids"]
                    );
                }
                for (skip, theirs_text) in [(false, &theirs["text"]), (true, &theirs["text_no_special"])] {
                    let ids = ids(&theirs["ids"]);
                    let (decoded, theirs_text) =
                        (tokenizer.decode(&ids, skip).unwrap(), theirs_text.as_str().unwrap());
                    // Of T5's and XLM-R's spaces at the beginning the library takes all away, transformers one.
                    let spaces = if matches!(kind, "t5" | "xlmr") { ' ' } else { '\0' };
                    let (ours, right) =
                        (decoded.trim_start_matches(spaces), theirs_text.trim_start_matches(spaces));
                    assert_eq!(ours, right, "{kind}, {variant}, {skip}: {text:?} {ids:?}");
                    assert_eq!(
                        streamed(&tokenizer, &ids, skip),
                        decoded,
                        "{kind}, {variant}, {skip}: {text:?} {ids:?}"
                    );
                }
            }
        }
    }
    assert!(agreed > 800, "{agreed}");
}

#[test]
fn names_ids_and_sizes_are_the_models() {
    for (kind, bos, eos) in [("llama", Some(1), Some(2)), ("gemma", Some(2), Some(1)), ("t5", None, Some(1))]
    {
        let (tokenizer, expected) = (bare(kind), expected(kind));
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (bos, eos), "{kind}");
        assert_eq!(tokenizer.vocab_size() as u64, expected["pieces"].as_u64().unwrap(), "{kind}");
    }
    let llama = bare("llama");
    assert_eq!(llama.token(0).as_deref(), Some("<unk>"));
    assert_eq!(llama.token_id("<0x0A>"), Some(13));
    assert_eq!(llama.token(620), None);
    let error = llama.check_vocab(600).unwrap_err().to_string();
    assert!(error.contains("ids up to 619 but the model embeds 600"), "{error}");
}
