//! Reading Hugging Face checkpoints: safetensors, config.json, tokenizers, the Hub.
