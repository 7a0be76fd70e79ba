//! Two tiny trained models, embedded in whatever links this crate, so that an installed `halfbyte` runs
//! with no download: `stories`, a Llama of 3.2 million parameters that writes little stories, and
//! `sentiment`, a BERT classifier of 1.6 million. Text, tokenizers and weights were made for this
//! project; `stories/training.json` and `sentiment/training.json` say how, `README.md` what they can do.

#![forbid(unsafe_code)]

/// The files of one model in the layout of a Hugging Face repository.
#[derive(Debug, Clone, Copy)]
pub struct Bundled {
    /// Its name: `stories` or `sentiment`.
    pub name: &'static str,
    /// File names and contents.
    pub files: &'static [(&'static str, &'static [u8])],
}

macro_rules! files {
    ($folder:literal: $($file:literal),*) => {
        &[$(($file, include_bytes!(concat!("../", $folder, "/", $file)).as_slice())),*]
    };
}

/// A Llama of 3.2 million parameters (hidden 256, 4 layers, 8 heads over 4, vocabulary 1024, context
/// 512) in float16, trained on generated stories.
pub const STORIES: Bundled = Bundled {
    name: "stories",
    files: files!("stories":
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
};

/// A BERT classifier of 1.6 million parameters (hidden 192, 3 layers, 6 heads) in float16: labels
/// NEGATIVE and POSITIVE, trained on generated review sentences.
pub const SENTIMENT: Bundled = Bundled {
    name: "sentiment",
    files: files!("sentiment": "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
};

impl Bundled {
    /// The bundled model of this name.
    pub fn by_name(name: &str) -> Option<Bundled> {
        [STORIES, SENTIMENT].into_iter().find(|model| model.name == name)
    }

    /// The contents of one of its files.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_config_weights_and_tokenizer() {
        for model in [STORIES, SENTIMENT] {
            for file in ["config.json", "model.safetensors", "tokenizer.json"] {
                assert!(model.file(file).is_some_and(|bytes| bytes.len() > 100), "{}/{file}", model.name);
            }
            assert_eq!(Bundled::by_name(model.name).map(|found| found.name), Some(model.name));
        }
        assert!(Bundled::by_name("missing").is_none());
    }
}
