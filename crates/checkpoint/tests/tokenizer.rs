//! The bundled tokenizers reproduce what Python's `tokenizers` made, and streams say what decoding says.

use halfbyte_checkpoint::{ChatMessage, Checkpoint, FileBytes, Tokenizer, TokenizerFiles};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Checkpoint::open(&model(name)).unwrap().tokenizer().unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(model(name).join("expected.json")).unwrap()).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> (String, Vec<String>) {
    let mut stream = tokenizer.decode_stream(skip_special);
    let mut pieces = Vec::new();
    for &id in ids {
        pieces.extend(stream.push(id).unwrap());
    }
    pieces.extend(stream.finish().unwrap());
    (pieces.concat(), pieces)
}

#[test]
fn recorded_cases_reproduce() {
    for name in ["stories", "sentiment"] {
        let tokenizer = tokenizer(name);
        let expected = expected(name);
        let cases = expected["tokenizer_cases"].as_array().unwrap();
        assert!(cases.len() >= 6, "{name}");
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let encoded = tokenizer.encode(text, true).unwrap();
            assert_eq!(encoded, ids(&case["ids"]), "{name}: {text}");
        }
    }
}

#[test]
fn byte_level_text_comes_back_whole_and_streams_the_same() {
    let tokenizer = tokenizer("stories");
    for case in expected("stories")["tokenizer_cases"].as_array().unwrap() {
        let ids = ids(&case["ids"]);
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), format!("<s>{text}"));
        let (all, pieces) = streamed(&tokenizer, &ids, true);
        assert_eq!(all, text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
        assert_eq!(streamed(&tokenizer, &ids, false).0, format!("<s>{text}"));
    }
    // A fox is four bytes, and no token of this small vocabulary has all of them.
    let fox = tokenizer.encode("🦊", false).unwrap();
    assert!(fox.len() > 1);
    assert_eq!(streamed(&tokenizer, &fox, true).1, ["🦊"]);
    // Cut short, what is there shows at the end.
    let (text, pieces) = streamed(&tokenizer, &fox[..fox.len() - 1], true);
    assert!(text.contains('\u{fffd}') && pieces.len() == 1, "{text:?}");
}

#[test]
fn endless_noise_is_given_out() {
    let tokenizer = tokenizer("stories");
    // The first byte of a fox, over and over: never a character.
    let first = tokenizer.encode("🦊", false).unwrap()[0];
    let mut stream = tokenizer.decode_stream(true);
    let pieces = (0..200).filter(|_| stream.push(first).unwrap().is_some()).count();
    assert_eq!(pieces, 3);
}

#[test]
fn words_stream_one_by_one() {
    let tokenizer = tokenizer("stories");
    let ids = tokenizer.encode("Once there was a fox.", true).unwrap();
    let (_, pieces) = streamed(&tokenizer, &ids, true);
    assert_eq!(&pieces[..4], ["Once", " there", " was", " a"]);
}

#[test]
fn a_leading_space_is_dropped_at_the_start_only() {
    // SentencePiece's way: "▁" is a space, the first of which is dropped; bytes fall back to <0xNN>.
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": {"▁a": 0, "▁fox": 1, "<0xE2>": 2, "<0x98>": 3, "<0x83>": 4, "!": 5}, "merges": []}
    });
    let tokenizer = Tokenizer::from_bytes("tokenizer.json", json.to_string().as_bytes()).unwrap();
    let ids = [0, 1, 2, 3, 4, 5, 0];
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a fox☃! a");
    let (all, pieces) = streamed(&tokenizer, &ids, true);
    assert_eq!(all, "a fox☃! a");
    assert_eq!(pieces, ["a", " fox", "☃", "!", " a"]);
    // A snowman that breaks off cannot panic, whatever follows it.
    for broken in [[2, 3, 0, 1], [2, 2, 3, 4], [4, 4, 5, 2]] {
        streamed(&tokenizer, &broken, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_ids_stream_as_they_decode(ids in proptest::collection::vec(0u32..1100, 0..60)) {
        // 1024 ids are known; those beyond are left out by both.
        let tokenizer = tokenizer_of_stories();
        for skip in [true, false] {
            prop_assert_eq!(streamed(tokenizer, &ids, skip).0, tokenizer.decode(&ids, skip).unwrap());
        }
    }

    #[test]
    fn any_text_comes_back(text in "\\PC{0,40}") {
        let tokenizer = tokenizer_of_stories();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn mutated_tokenizers_are_errors_or_work(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut json = std::fs::read(model("sentiment").join("tokenizer.json")).unwrap();
        let at = at.index(json.len());
        json[at] = byte;
        if let Ok(tokenizer) = Tokenizer::from_bytes("tokenizer.json", &json) {
            let _ = tokenizer.encode("Café NAÏVE!", true);
        }
    }
}

fn tokenizer_of_stories() -> &'static Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(|| tokenizer("stories"))
}

#[test]
fn special_tokens_and_sizes() {
    let stories = tokenizer("stories");
    assert_eq!((stories.bos_id(), stories.eos_id()), (Some(1), Some(2)));
    assert_eq!(stories.vocab_size(), 1024);
    assert!(stories.check_vocab(1024).is_ok());
    let error = stories.check_vocab(1000).unwrap_err().to_string();
    assert!(error.contains("ids up to 1023 but the model embeds 1000 (ids up to 999)"), "{error}");
    assert_eq!(tokenizer("sentiment").bos_id(), None);
}

fn with_config(config: Value, template: Option<&str>) -> Result<Tokenizer, String> {
    let json = std::fs::read(model("stories").join("tokenizer.json")).unwrap();
    let files = TokenizerFiles {
        tokenizer: Some(FileBytes::new("tokenizer.json", json)),
        config: Some(FileBytes::new("tokenizer_config.json", config.to_string().into_bytes())),
        chat_template: template.map(|text| FileBytes::new("chat_template.jinja", text.as_bytes().to_vec())),
        ..TokenizerFiles::default()
    };
    Tokenizer::from_files("m", &files).map_err(|error| error.to_string())
}

#[test]
fn chat_templates_are_found_in_all_their_places() {
    let turn = [ChatMessage::new("user", "Hi")];
    let rendered = |config: Value, template: Option<&str>| {
        let tokenizer = with_config(config, template).unwrap();
        tokenizer.apply_chat_template(&turn, true).map_err(|error| error.to_string())
    };
    let source =
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}";
    let text = "<s>[user]Hi</s>";
    assert_eq!(
        rendered(
            json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": source}),
            None
        )
        .unwrap(),
        text
    );
    let named = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": [
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]});
    assert_eq!(rendered(named, None).unwrap(), text);
    let file = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "no"});
    assert_eq!(rendered(file, Some(source)).unwrap(), text);

    let error = rendered(json!({}), None).unwrap_err();
    assert!(error.contains("the model has none"), "{error}");
    let error = with_config(json!({"chat_template": 7}), None).unwrap_err();
    assert!(error.contains("neither a text nor a list"), "{error}");
}

#[test]
fn added_tokens_of_the_configuration_are_known() {
    let added =
        |id: u32| json!({"added_tokens_decoder": {id.to_string(): {"content": "<|end|>", "special": true}}});
    let tokenizer = with_config(added(1024), None).unwrap();
    assert_eq!(tokenizer.token_id("<|end|>"), Some(1024));
    assert_eq!(tokenizer.vocab_size(), 1025);
    assert_eq!(tokenizer.encode("<|end|>", false).unwrap(), [1024]);
    assert_eq!(tokenizer.decode(&[1024], true).unwrap(), "");
    let error = with_config(added(5000), None).unwrap_err();
    assert!(error.contains("the id 5000, but after tokenizer.json it would be 1024"), "{error}");
}

#[test]
fn other_tokenizer_formats_are_named() {
    let files =
        TokenizerFiles { other: Some("sentencepiece.bpe.model".to_string()), ..TokenizerFiles::default() };
    let error = Tokenizer::from_files("org/m", &files).unwrap_err().to_string();
    assert!(error.contains("tokenizer is sentencepiece.bpe.model; convert it"), "{error}");
}
