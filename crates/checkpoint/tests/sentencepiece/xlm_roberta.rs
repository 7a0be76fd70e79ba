//! `sentencepiece.bpe.model` of XLM-R, whose ids are fairseq's. That they are transformers' is in `library.rs`.

use super::written::*;
use super::{bare, configured, files, model};
use halfbyte_checkpoint::{FileBytes, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};

fn class() -> Value {
    json!({"tokenizer_class": "XLMRobertaTokenizer"})
}

/// The file alone, of a model of this type and class.
fn named(config: Option<Value>, model_type: Option<&str>) -> TokenizerFiles {
    TokenizerFiles {
        sentencepiece: Some(FileBytes::new("m/sentencepiece.bpe.model", model("xlmr"))),
        config: config.map(|config| FileBytes::new("tokenizer_config.json", config.to_string().into_bytes())),
        model_type: model_type.map(str::to_string),
        other: Some("sentencepiece.bpe.model".to_string()),
        ..TokenizerFiles::default()
    }
}

#[test]
fn ids_are_fairseqs() {
    let (tokenizer, plain) = (configured("xlmr", &class()), bare("xlmr"));
    let symbols = ["<s>", "<pad>", "</s>", "<unk>"].map(|token| tokenizer.token_id(token));
    assert_eq!(symbols, [Some(0), Some(1), Some(2), Some(3)]);
    let pieces = plain.vocab_size() as u32;
    assert_eq!(tokenizer.token_id("<mask>"), Some(pieces + 1));
    assert_eq!(tokenizer.vocab_size() as u32, pieces + 2);
    for id in 3..pieces {
        assert_eq!(tokenizer.token(id + 1), plain.token(id));
    }
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(0), Some(2)));
}

#[test]
fn texts_and_pairs_are_framed_as_transformers_frames_them() {
    let tokenizer = configured("xlmr", &class());
    let text = tokenizer.encode("the fox", false).unwrap();
    assert_eq!(tokenizer.encode("the fox", true).unwrap(), [&[0], &text[..], &[2]].concat());
    let (ids, segments, cut) = tokenizer.encode_pair("the fox", Some("the fox"), 100).unwrap();
    assert_eq!(ids, [&[0], &text[..], &[2, 2], &text, &[2]].concat());
    assert!(segments.iter().all(|&segment| segment == 0) && !cut);
    let (ids, _, cut) = tokenizer.encode_pair("the fox", Some("the fox"), 6).unwrap();
    assert_eq!((ids.len(), cut), (6, true));
}

#[test]
fn a_mask_takes_the_space_before_it() {
    let tokenizer = configured("xlmr", &class());
    let mask = tokenizer.token_id("<mask>").unwrap();
    let [the, sat] = ["the", "sat"].map(|word| tokenizer.encode(word, false).unwrap());
    for text in ["the <mask> sat", "the<mask>sat", "the   <mask> sat"] {
        assert_eq!(tokenizer.encode(text, false).unwrap(), [&the[..], &[mask], &sat].concat(), "{text}");
    }
}

#[test]
fn the_class_or_the_models_type_says_whose_ids_they_are() {
    let vocabulary = configured("xlmr", &class()).vocab_size();
    for files in [
        named(Some(class()), None),
        named(Some(json!({"tokenizer_class": "XLMRobertaTokenizerFast"})), Some("bert")),
        named(Some(json!({"model_max_length": 512})), Some("xlm-roberta")),
        named(None, Some("xlm-roberta")),
    ] {
        assert_eq!(Tokenizer::from_files("m", &files).unwrap().vocab_size(), vocabulary, "{files:?}");
    }
    // Others have this file with other ids: CamemBERT, mBART, NLLB, XGLM.
    for files in [
        named(None, None),
        named(None, Some("camembert")),
        named(Some(json!({"tokenizer_class": "CamembertTokenizer"})), Some("xlm-roberta")),
    ] {
        let error = Tokenizer::from_files("org/m", &files).unwrap_err().to_string();
        assert!(error.contains("tokenizer is sentencepiece.bpe.model; convert it"), "{error}");
    }
}

#[test]
fn a_file_that_is_not_xlm_rs_is_refused() {
    let refused = |bytes: Vec<u8>, part: &str| {
        let error = Tokenizer::from_files("m", &files(bytes, &class())).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(model("t5"), "its pieces begin with <pad>, </s>, <unk> instead of <unk>, <s>, </s>");
    refused(piece("<unk>", 0.0, UNKNOWN), "its pieces begin with <unk> instead of");
    let twice = [small(), vec![piece("<pad>", 0.0, NORMAL)]].concat().concat();
    refused(twice, "piece <pad> is there twice, as 1 and 9");
}
