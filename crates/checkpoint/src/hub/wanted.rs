//! Which files of a repository are needed.

use crate::files::SENTENCEPIECE;
use crate::native::{SHARD_INDEX, SINGLE, SMALL};

/// The small files of a repository that are needed: a sentencepiece tokenizer only where there is no other.
pub(super) fn small(files: &[&str]) -> Vec<String> {
    let there = |file: &&str| files.contains(file);
    let mut sentencepiece = SENTENCEPIECE.iter().copied().filter(there).take(1);
    let other = (!there(&"tokenizer.json")).then(|| sentencepiece.next()).flatten();
    let wanted = ["config.json"].into_iter().chain(SMALL.iter().copied()).filter(there).chain(other);
    wanted.map(str::to_owned).collect()
}

/// In how many pieces the weights are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// In one file of this name.
    Single(&'static str),
    /// In the shards that the index names.
    Sharded,
}

impl Weights {
    /// The weights among a repository's files; the error says what is there instead.
    pub fn of(files: &[&str]) -> Result<Weights, String> {
        if files.contains(&SINGLE) {
            return Ok(Weights::Single(SINGLE));
        }
        if files.contains(&SHARD_INDEX) {
            return Ok(Weights::Sharded);
        }
        let with_ending = |ending: &str| files.iter().any(|file| file.ends_with(ending));
        Err(if with_ending(".gguf") {
            "it is a repository of GGUF files, llama.cpp's format; take the one with safetensors that it was converted from".to_string()
        } else if with_ending(".bin") || with_ending(".pt") || with_ending(".pth") {
            "it has PyTorch pickles only, which can run any code; look for a revision with safetensors (often refs/pr/1, --revision), or convert it in Python with save_pretrained".to_string()
        } else if with_ending("adapter_model.safetensors") {
            "it is an adapter (LoRA); merge it into its base model in Python with merge_and_unload and save_pretrained".to_string()
        } else {
            format!("it has neither {SINGLE} nor {SHARD_INDEX}, so it is no model that can be run")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tokenizer_is_wanted() {
        let all = [
            "config.json",
            "spiece.model",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "x.py",
        ];
        let without = |gone: &[&str]| -> Vec<String> {
            let files: Vec<&str> = all.into_iter().filter(|file| !gone.contains(file)).collect();
            small(&files)
        };
        assert_eq!(without(&[]), ["config.json", "tokenizer.json", "tokenizer_config.json"]);
        assert_eq!(without(&["tokenizer.json"]), ["config.json", "tokenizer_config.json", "tokenizer.model"]);
        assert_eq!(
            without(&["tokenizer.json", "tokenizer.model"]),
            ["config.json", "tokenizer_config.json", "spiece.model"]
        );
    }

    #[test]
    fn weights_are_found_or_explained() {
        let of = |files: &[&str]| Weights::of(files);
        assert_eq!(of(&["pytorch_model.bin", SINGLE]), Ok(Weights::Single(SINGLE)));
        assert_eq!(of(&["model-00001-of-00002.safetensors", SHARD_INDEX]), Ok(Weights::Sharded));
        for (file, fragment) in [
            ("model.Q4_K_M.gguf", "GGUF"),
            ("pytorch_model.bin", "pickles"),
            ("adapter_model.safetensors", "LoRA"),
            ("README.md", "neither"),
        ] {
            assert!(of(&[file]).unwrap_err().contains(fragment), "{file}");
        }
    }
}
