//! Any bytes as a sentencepiece model: no panic, and what is accepted encodes and decodes.

#![no_main]

use halfbyte_checkpoint::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_sentencepiece("tokenizer.model", bytes) else {
        return;
    };
    for text in ["The fox  sat.", "<s>é狐\0", "▁ x"] {
        if let Ok(ids) = tokenizer.encode(text, true) {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            assert!(tokenizer.decode(&ids, false).is_ok());
        }
    }
});
