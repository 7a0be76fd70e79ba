//! Damaged and hostile files are refused in one line, and none makes the program panic, hang or take memory.

use super::written::*;
use super::{files, model};
use halfbyte_checkpoint::{Checkpoint, FileBytes, ModelFiles, Tokenizer, TokenizerFiles};
use proptest::prelude::*;
use serde_json::json;
use std::time::{Duration, Instant};

fn read(bytes: &[u8]) -> Result<Tokenizer, String> {
    Tokenizer::from_sentencepiece("tokenizer.model", bytes).map_err(|error| error.to_string())
}

fn refused(parts: &[Vec<u8>], said: &str) {
    let error = read(&parts.concat()).unwrap_err();
    assert!(error.starts_with("tokenizer.model: ") && error.contains(said), "{said}: {error}");
    assert!(!error.contains('\n') && error.len() < 400, "{error}");
}

fn with(more: &[Vec<u8>]) -> Vec<Vec<u8>> {
    [small(), more.to_vec()].concat()
}

#[test]
fn what_is_wrong_is_said() {
    let bpe = trainer(&[number(3, 2)]);
    assert!(read(&with(std::slice::from_ref(&bpe)).concat()).is_ok());
    refused(&[], "it has no pieces");
    refused(std::slice::from_ref(&bpe), "it has no pieces");
    refused(&[b"{\"json\": 1}".to_vec()], "wire type");
    refused(&[b"IQ== 0\nIg== 1\n".to_vec()], "a tiktoken vocabulary");
    refused(&[b"version https://git-lfs.github.com/spec/v1\n".to_vec()], "git lfs pull");
    refused(&with(&[piece("", -1.0, NORMAL)]), "piece 8: it is empty");
    refused(&with(&[piece("a", -1.0, NORMAL)]), "piece a is there twice, as 4 and 8");
    refused(&with(&[piece("</s>", -1.0, NORMAL)]), "piece </s> is there twice, as 2 and 8");
    refused(&with(&[piece("x", f32::NAN, NORMAL)]), "piece 8: its score is NaN");
    refused(&with(&[piece("x", f32::INFINITY, NORMAL)]), "piece 8: its score is inf");
    refused(&with(&[piece("x", -1.0, 7)]), "piece 8: its type is 7");
    refused(&with(&[piece("x", -1.0, UNKNOWN)]), "pieces 0 and 8 both stand for what is unknown");
    refused(&small()[1..], "no piece stands for what is unknown");
    refused(&with(&[bytes(1, &bytes(1, b"\xff\xfe"))]), "piece 8: it is not UTF-8");
    refused(&with(&[number(1, 5)]), "piece 8: a number where bytes should be");
    refused(&with(&[bytes(1, &[bytes(1, b"x"), number(2, 1)].concat())]), "piece 8: its score is no number");
    refused(&with(&[trainer(&[number(3, 3)])]), "a WORD model");
    refused(&with(&[trainer(&[number(3, 9)])]), "model_type is 9");
    refused(&with(&[trainer(&[number(3, u64::MAX >> 1)])]), "trainer_spec: no number of 32 bits");
    refused(&with(&[bpe, trainer(&[number(35, 1)])]), "no piece <0x00> for one");
    refused(&with(&[trainer(&[number(35, 1)]), piece("<0x00>", 0.0, NORMAL)]), "no piece <0x00> for one");
    refused(&with(&[bytes(5, &bytes(2, b"abcdefgh"))]), "denormalizer_spec");
    refused(&with(&[rules(&[bytes(2, b"ab")])]), "its charsmap is cut off");
    refused(
        &with(&[rules(&[bytes(2, b"\xff\xff\xff\xffabcd")])]),
        "its charsmap has a trie of 4294967295 bytes in 4",
    );
    // A length of 2^64 - 1 bytes, one of a gigabyte, and a message that says it is longer than what it is in.
    refused(
        &with(&[[vec![0x0a], varint(u64::MAX)].concat()]),
        "wants 18446744073709551615 more bytes and has 0",
    );
    refused(
        &with(&[[vec![0x0a], varint(1 << 30), vec![1, 2]].concat()]),
        "wants 1073741824 more bytes and has 2",
    );
    refused(
        &with(&[bytes(1, &[vec![0x0a], varint(9), b"x".to_vec()].concat())]),
        "piece 8: at byte 2 it wants 9",
    );
    // A name that would write to a terminal.
    let escape = piece("\u{1b}[2J", -1.0, NORMAL);
    refused(&with(&[escape.clone(), escape]), "piece \\u{1b}[2J is there twice");
}

#[test]
fn files_of_another_model_are_said() {
    let refused = |config: serde_json::Value, said: &str| {
        let error = Tokenizer::from_files("m", &files(model("llama"), &config)).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.model: ") && error.contains(said), "{error}");
    };
    let added = |id: &str, content: &str| json!({"added_tokens_decoder": {id: {"content": content, "special": true}}});
    refused(added("7", "<s>"), "give token <s> the id 7, but it is 1 in the vocabulary");
    refused(
        added("4294967295", "<x>"),
        "give token <x> the id 4294967295, but the vocabulary has 620 pieces",
    );
    refused(json!({"extra_ids": 4_000_000_000u32}), "4000000000 extra_ids are too many");
    refused(json!({"extra_ids": u64::MAX}), "extra_ids");
    // A vocabulary that the model does not embed.
    let checkpoint = |vocab_size: usize| {
        let config = json!({"model_type": "llama", "vocab_size": vocab_size}).to_string();
        let header = b"{}";
        let weights = [&(header.len() as u64).to_le_bytes()[..], header].concat();
        let mut files = ModelFiles::from_bytes("m", config.into_bytes(), weights, None, None);
        files.tokenizer = TokenizerFiles {
            sentencepiece: Some(FileBytes::new("m/tokenizer.model", model("llama"))),
            ..TokenizerFiles::default()
        };
        Checkpoint::new(files).unwrap()
    };
    assert!(checkpoint(620).has_tokenizer());
    assert_eq!(checkpoint(620).tokenizer().unwrap().vocab_size(), 620);
    let error = checkpoint(619).tokenizer().unwrap_err().to_string();
    assert!(error.contains("ids up to 619 but the model embeds 619"), "{error}");
}

#[test]
fn a_file_cut_off_anywhere_is_refused_or_works() {
    let whole = model("plain");
    let mut refusals = 0;
    for length in (0..whole.len()).step_by(7) {
        match read(&whole[..length]) {
            Ok(tokenizer) => drop(tokenizer.encode("The fox sat", true).unwrap()),
            Err(error) => {
                assert!(!error.contains('\n'), "{error}");
                refusals += 1;
            }
        }
    }
    assert!(refusals > 400, "{refusals}");
}

/// A trie that leads in circles on "a", and replaces it each time by a long text.
fn circular_charsmap(replacement: usize) -> Vec<u8> {
    // The root's children are at 0x200, "a"'s at 0x200 ^ 0x61 ^ 0x61, which is where it came from.
    let mut units = [0u32; 0x400];
    units[0] = 0x200 << 10;
    units[0x261] = 0x61 | 1 << 8 | 0x61 << 10;
    units[0x200] = 1 << 31;
    let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    [&(trie.len() as u32).to_le_bytes()[..], &trie, "b".repeat(replacement).as_bytes(), b"\0"].concat()
}

#[test]
fn nothing_takes_long() {
    let start = Instant::now();
    // A replacement of a megabyte for each letter.
    refused(&with(&[rules(&[bytes(2, &circular_charsmap(1 << 20))])]), "a replacement of 1048576 bytes");
    let circular = with(&[rules(&[bytes(2, &circular_charsmap(3))])]).concat();
    let tokenizer = read(&circular).unwrap();
    assert!(!tokenizer.encode(&"a".repeat(20_000), false).unwrap().is_empty());
    // Pieces of a megabyte, which a text agrees with almost to the end; and one that is in the text.
    for kind in [NORMAL, USER_DEFINED] {
        for method in [1, 2] {
            let long = "b".repeat(1 << 20);
            let parts = with(&[
                piece(&long, -1.0, kind),
                piece(&format!("{long}c"), -1.0, kind),
                trainer(&[number(3, method)]),
            ]);
            let tokenizer = read(&parts.concat()).unwrap();
            assert_eq!(tokenizer.encode(&long[..2000], false).unwrap().len(), 2001);
        }
    }
    // Ids that are scattered as widely as may be.
    let scattered: serde_json::Map<_, _> = (0..500)
        .map(|index| ((70_000u32 + index * 131_000).to_string(), json!({"content": format!("<{index}>")})))
        .collect();
    let config = json!({"added_tokens_decoder": scattered});
    assert!(Tokenizer::from_files("m", &files(model("llama"), &config)).is_err());
    // Loose: the machine may be busy.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

const TEXTS: [&str; 3] = ["The fox sat  under a 🦊 tree.", "<s>é狐 ½ﬁ", "a\0\n<0x41> ▁x"];

/// What was accepted works, whatever it says.
fn use_it(tokenizer: &Tokenizer) {
    for text in TEXTS {
        if let Ok(ids) = tokenizer.encode(text, true) {
            let decoded = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(super::streamed(tokenizer, &ids, false), decoded, "{ids:?}");
            let spans = tokenizer.encode_spans(text, 100).unwrap();
            assert!(spans.spans.iter().flatten().all(|span| text.get(span.clone()).is_some()), "{spans:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_refused_or_work(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(tokenizer) = read(&bytes) {
            use_it(&tokenizer);
        }
    }

    #[test]
    fn mutated_files_are_refused_or_work(
        kind in prop::sample::select(vec!["llama", "extended", "plain", "gemma", "t5", "suffix"]),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = model(kind);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(tokenizer) = read(&bytes) {
            use_it(&tokenizer);
        }
    }

    #[test]
    fn any_pieces_are_refused_or_work(
        pieces in proptest::collection::vec(("[ab▁é🦊<>]{1,4}", any::<f32>(), 1u64..8), 0..12),
        method in 0u64..4,
        flags in proptest::collection::vec((3u64..6, 0u64..2), 0..3),
        space_behind in 0u64..2,
    ) {
        let mut parts = small();
        parts.extend(pieces.iter().map(|(text, score, kind)| piece(text, *score, *kind)));
        parts.push(trainer(&[number(3, method), number(24, space_behind)]));
        parts.push(rules(&flags.iter().map(|&(field, flag)| number(field, flag)).collect::<Vec<_>>()));
        if let Ok(tokenizer) = read(&parts.concat()) {
            use_it(&tokenizer);
        }
    }

    #[test]
    fn any_configuration_is_refused_or_works(
        class in prop::sample::select(vec!["LlamaTokenizer", "T5Tokenizer", ""]),
        id in prop::sample::select(vec![0u32, 1, 5, 300, 619, 620, 700, 66_000, 66_156, u32::MAX]),
        content in "[<>|as▁ 🦊]{0,4}",
        flags in any::<[Option<bool>; 6]>(),
    ) {
        let config = json!({
            "tokenizer_class": class, "legacy": flags[0], "add_bos_token": flags[1], "add_eos_token": flags[2],
            "add_prefix_space": flags[3], "bos_token": content, "eos_token": {"content": content}, "extra_ids": id,
            "additional_special_tokens": [content, 7, {"content": "▁a"}],
            "added_tokens_decoder": {id.to_string(): {
                "content": content, "special": flags[4], "rstrip": flags[5], "lstrip": flags[0], "single_word": flags[3]
            }, "x": 5, "7": "y"},
        });
        if let Ok(tokenizer) = Tokenizer::from_files("m", &files(model("llama"), &config)) {
            use_it(&tokenizer);
        }
    }
}
