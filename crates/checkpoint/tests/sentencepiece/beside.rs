//! What the files beside a sentencepiece model say: frames, added tokens, spaces, templates.

use super::written::*;
use super::{bare, configured, files, model};
use halfbyte_checkpoint::{ChatMessage, FileBytes, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn a_frame_is_the_configurations() {
    let text = bare("llama").encode("the fox", false).unwrap();
    let framed = |config: Value| {
        let ids = configured("llama", &config).encode("the fox", true).unwrap();
        let at = ids.windows(text.len()).position(|window| window == text).unwrap();
        (ids[..at].to_vec(), ids[at + text.len()..].to_vec())
    };
    // As transformers 4 did, and as Llama was trained, where nothing is said.
    assert_eq!(framed(json!({})), (vec![1], vec![]));
    assert_eq!(framed(json!({"add_bos_token": null})), (vec![1], vec![]));
    assert_eq!(framed(json!({"add_bos_token": false})), (vec![], vec![]));
    assert_eq!(framed(json!({"add_bos_token": false, "add_eos_token": true})), (vec![], vec![2]));
    assert_eq!(framed(json!({"add_eos_token": true})), (vec![1], vec![2]));
    // Names that are empty are none, as in LLaMA's first conversions; a name that is not there is no frame.
    assert_eq!(framed(json!({"bos_token": "", "eos_token": "", "add_eos_token": true})), (vec![1], vec![2]));
    assert_eq!(framed(json!({"bos_token": {"content": "</s>"}})), (vec![2], vec![]));
    assert_eq!(framed(json!({"bos_token": "<none>"})), (vec![], vec![]));
    // T5's ends only.
    assert_eq!(framed(json!({"tokenizer_class": "T5TokenizerFast", "extra_ids": 0})), (vec![], vec![2]));
    // A pair has the frame twice, the second of another segment.
    let llama = bare("llama");
    let (ids, segments, cut) = llama.encode_pair("the fox", Some("the fox"), 100).unwrap();
    assert_eq!(ids, [&[1][..], &text, &[1], &text].concat());
    assert_eq!(segments.iter().filter(|&&segment| segment == 1).count(), text.len() + 1);
    assert!(!cut);
    let (ids, _, cut) = llama.encode_pair("the fox", None, 2).unwrap();
    assert_eq!((ids, cut), (vec![1, text[0]], true));
}

#[test]
fn added_tokens_have_the_ids_that_are_listed() {
    let token = |content: &str, special: bool| json!({"content": content, "special": special});
    let tokenizer = configured(
        "llama",
        // One behind the pieces, one with a gap, one in place of a piece, one that is a piece.
        &json!({"added_tokens_decoder": {
            "620": token("<|im|>", true), "625": token("<|far|>", false), "400": token("<|in|>", true), "268": token("▁the", true),
            "1": token("<s>", true),
        }}),
    );
    assert_eq!(tokenizer.vocab_size(), 626);
    let ids = tokenizer.encode("a<|im|>a<|far|><|in|>", false).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id > 600 || id == 400).collect::<Vec<_>>(), [&620, &625, &400]);
    assert_eq!(tokenizer.decode(&[620, 625, 400, 622], true).unwrap(), "<|far|>");
    assert_eq!(tokenizer.decode(&[620, 625, 400, 622], false).unwrap(), "<|im|><|far|><|in|>");
    assert_eq!((tokenizer.token(622), tokenizer.token_id("▁the")), (None, Some(268)));
    // The piece that gave way is no piece any more.
    let gone = bare("llama").token(400).unwrap();
    assert_eq!(tokenizer.token_id(&gone), None);
    assert_eq!(bare("llama").token_id(&gone), Some(400));
}

#[test]
fn older_models_list_added_tokens_apart() {
    let file = |name: &str, value: Value| Some(FileBytes::new(name, value.to_string().into_bytes()));
    let files = TokenizerFiles {
        added_tokens: file(
            "added_tokens.json",
            json!({"[PAD]": 620, "<|user|>": 621, "bad": -1, "worse": "x"}),
        ),
        special_tokens: file(
            "special_tokens_map.json",
            json!({"bos_token": "<s>", "pad_token": "[PAD]", "additional_special_tokens": ["<|none|>"]}),
        ),
        ..files(model("llama"), &json!({}))
    };
    let tokenizer = Tokenizer::from_files("m", &files).unwrap();
    assert_eq!(tokenizer.vocab_size(), 622);
    assert_eq!((tokenizer.token_id("[PAD]"), tokenizer.token_id("<|user|>")), (Some(620), Some(621)));
    assert_eq!((tokenizer.token_id("<|none|>"), tokenizer.token_id("bad")), (None, None));
    assert_eq!(tokenizer.decode(&[620, 621], true).unwrap(), "<|user|>");
    // What the newer file says counts alone.
    let newer = json!({"added_tokens_decoder": {"620": {"content": "<new>", "special": true}}});
    let files = TokenizerFiles {
        config: file("tokenizer_config.json", newer),
        added_tokens: files.added_tokens,
        sentencepiece: files.sentencepiece,
        ..TokenizerFiles::default()
    };
    let tokenizer = Tokenizer::from_files("m", &files).unwrap();
    assert_eq!((tokenizer.token_id("<new>"), tokenizer.token_id("[PAD]")), (Some(620), None));
}

#[test]
fn symbols_of_the_user_are_text_unless_called_special() {
    let turn = "<start_of_turn>user\nthe fox<end_of_turn>\n";
    let gemma = bare("gemma");
    let ids = gemma.encode(turn, false).unwrap();
    assert_eq!(gemma.decode(&ids, true).unwrap(), turn);
    let special = json!({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]});
    let chat = configured("gemma", &special);
    assert_eq!(chat.encode(turn, false).unwrap(), ids);
    assert_eq!(chat.decode(&ids, true).unwrap(), "user\nthe fox\n");
    assert_eq!(chat.decode(&ids, false).unwrap(), turn);
}

#[test]
fn templates_work_as_with_other_tokenizers() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% endfor %}"});
    let tokenizer = configured("llama", &config);
    assert!(tokenizer.has_chat_template());
    let text = tokenizer.apply_chat_template(&[ChatMessage::new("user", "the fox")], true).unwrap();
    assert_eq!(text, "<s>[INST] the fox [/INST]");
    let ids = tokenizer.encode(&text, false).unwrap();
    assert_eq!(ids[0], 1);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "[INST] the fox [/INST]");
}

#[test]
fn a_json_tokenizer_goes_first() {
    let json = std::fs::read(super::folder("../../../models/stories").join("tokenizer.json")).unwrap();
    let files = TokenizerFiles {
        tokenizer: Some(FileBytes::new("tokenizer.json", json)),
        ..files(b"broken".to_vec(), &json!({}))
    };
    assert_eq!(Tokenizer::from_files("m", &files).unwrap().vocab_size(), 1024);
}

#[test]
fn spans_are_the_texts_own() {
    for kind in ["llama", "plain", "t5", "suffix"] {
        let tokenizer = bare(kind);
        let text = "  The fox  sat \u{ad}under the ßé🦊 tree ";
        let spanned = tokenizer.encode_spans(text, 1000).unwrap();
        assert_eq!(spanned.ids, tokenizer.encode(text, true).unwrap(), "{kind}");
        let spans: Vec<_> = spanned.spans.into_iter().flatten().collect();
        assert!(
            spans.windows(2).all(|pair| pair[0].start <= pair[1].start && pair[0].end <= pair[1].end),
            "{kind} {spans:?}"
        );
        // Every word of letters that no rule changes is covered by the tokens that lie in it.
        for word in ["The", "fox", "sat", "under", "tree"] {
            let at = text.find(word).unwrap();
            let covered = spans.iter().filter(|span| span.start < at + word.len() && span.end > at);
            let start = covered.clone().map(|span| span.start).min();
            let end = covered.map(|span| span.end).max();
            let blank = |text: &str| text.chars().all(|c| c.is_whitespace() || c == '\u{ad}');
            assert!(
                start.is_some_and(|start| start <= at && blank(&text[start..at])),
                "{kind} {word} {spans:?}"
            );
            assert!(end.is_some_and(|end| blank(&text[at + word.len()..end])), "{kind} {word} {spans:?}");
        }
    }
}

#[test]
fn a_file_by_hand_is_cut_as_its_scores_say() {
    // All but the last, which the library refuses, were asked of it, too.
    let ids = |parts: &[Vec<u8>], text: &str| {
        let tokenizer = Tokenizer::from_sentencepiece("m", &parts.concat()).unwrap();
        tokenizer.encode(text, false).unwrap()
    };
    let bpe = trainer(&[number(3, 2)]);
    let more = |parts: &[Vec<u8>]| [small(), vec![bpe.clone()], parts.to_vec()].concat();
    // "▁ab" is made of "▁" and "ab", the better-scored pair.
    assert_eq!(ids(&more(&[]), "ab"), [7]);
    assert_eq!(ids(&more(&[]), "abab"), [7, 6]);
    // What is unknown in a row is one.
    assert_eq!(ids(&more(&[]), "axyb"), [3, 4, 0, 5]);
    // "ba" scores best: it is merged first, wherever it is.
    assert_eq!(ids(&more(&[piece("ba", 1.0, NORMAL)]), "abab"), [3, 4, 8, 5]);
    // Of one score the leftmost goes first.
    assert_eq!(ids(&more(&[piece("aa", 1.0, NORMAL)]), "aaa"), [3, 8, 4]);
    // A symbol of the user is not merged with others.
    assert_eq!(ids(&more(&[piece("aba", 0.0, USER_DEFINED)]), "abab"), [3, 8, 5]);
    let merged = [piece("bb", 0.0, USER_DEFINED), piece("bba", 9.0, NORMAL)];
    assert_eq!(ids(&more(&merged), "bba"), [3, 8, 4]);
    // Unigram: what is unknown is worse than the worst piece by 10, and a symbol of the user better than its letters.
    let more = |parts: &[Vec<u8>]| [small(), parts.to_vec()].concat();
    assert_eq!(ids(&more(&[piece("c", 5.0, NORMAL), piece("cx", -30.0, NORMAL)]), "cxc"), [3, 9, 8]);
    let defined = |score: f32| {
        more(&[piece("xy", -50.0, USER_DEFINED), piece("x", score, NORMAL), piece("y", score, NORMAL)])
    };
    assert_eq!(ids(&defined(0.04), "xy"), [3, 8]);
    assert_eq!(ids(&defined(0.06), "xy"), [3, 9, 10]);
    // A byte that is written out is text.
    assert_eq!(ids(&more(&[piece("<0x61>", 0.0, BYTE)]), "<0x61>"), [3, 0]);
}

#[test]
fn a_large_vocabulary_loads_at_once() {
    // As many pieces as Gemma has: words of three letters behind a space, each made of the one that is a letter shorter.
    let letter = |digit: u32| char::from_u32(0x4e00 + digit).unwrap();
    let mut pieces = vec![piece("<unk>", 0.0, UNKNOWN), piece("<s>", 0.0, CONTROL), piece("▁", -9.0, NORMAL)];
    let mut rank = 0.0f32;
    let mut add = |text: String| {
        rank += 1.0;
        pieces.push(piece(&text, -10.0 - rank * 1e-5, NORMAL));
    };
    (0..64).for_each(|a| add(letter(a).to_string()));
    (0..64).for_each(|a| add(format!("▁{}", letter(a))));
    (0..64 * 64).for_each(|ab| add(format!("▁{}{}", letter(ab / 64), letter(ab % 64))));
    (0..64 * 64 * 64)
        .for_each(|n| add(format!("▁{}{}{}", letter(n / 4096), letter(n / 64 % 64), letter(n % 64))));
    let count = pieces.len();
    pieces.extend([trainer(&[number(3, 2)]), rules(&[number(4, 0)])]);
    for method in [1, 2] {
        let bytes = [pieces.concat(), trainer(&[number(3, method)])].concat();
        let start = Instant::now();
        let tokenizer = Tokenizer::from_sentencepiece("m", &bytes).unwrap();
        let loaded = start.elapsed();
        let text: String = (0..2000)
            .map(|n| format!(" {}{}{}", letter(n % 64), letter(n / 64 % 64), letter(n % 7)))
            .collect();
        let start = Instant::now();
        let ids = tokenizer.encode(&text[1..], false).unwrap();
        println!(
            "method {method}: {count} pieces in {loaded:?}, {} bytes in {:?}",
            text.len(),
            start.elapsed()
        );
        assert_eq!((tokenizer.vocab_size(), ids.len()), (count, 2000));
        // Some 200 ms as tests are compiled; loose, since the machine may be busy.
        assert!(loaded < Duration::from_secs(10), "{loaded:?}");
    }
}
