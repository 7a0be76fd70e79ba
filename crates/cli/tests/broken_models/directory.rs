//! Directories that hold something else.

use crate::case::{Case, become_directory, case};
use crate::command::Copy;

/// Of `tests/fixtures/models/llama_mha`: one file, float32, no tokenizer.
pub const DIRECTORY: &[Case] = &[
    case(
        "an empty directory",
        |m| {
            for entry in std::fs::read_dir(m.path()).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        },
        &["model.safetensors", "empty"],
    ),
    case("weights as a pickle", |m| become_file(m, "pytorch_model.bin"), &["pytorch_model.bin", "pickle"]),
    case("weights as GGUF", |m| become_file(m, "model-q4_0.gguf"), &["model-q4_0.gguf", "GGUF"]),
    case(
        "weights by another name",
        |m| {
            m.remove("expected.safetensors");
            become_file(m, "weights.safetensors");
        },
        &["weights.safetensors", "model.safetensors"],
    ),
    case(
        "a directory for the weights",
        |m| become_directory(m, "model.safetensors"),
        &["model.safetensors", "directory"],
    ),
    case("a directory for the config", |m| become_directory(m, "config.json"), &["config.json", "directory"]),
    #[cfg(unix)]
    case("weights that link to themselves", |m| become_loop(m, "model.safetensors"), &["model.safetensors"]),
    #[cfg(unix)]
    case("a config that links to itself", |m| become_loop(m, "config.json"), &["config.json"]),
    #[cfg(unix)]
    case(
        "weights that link to nothing",
        |m| {
            m.remove("model.safetensors");
            std::os::unix::fs::symlink("gone", m.file("model.safetensors")).unwrap();
        },
        &["model.safetensors"],
    ),
];

fn become_file(model: &Copy, name: &str) {
    std::fs::rename(model.file("model.safetensors"), model.file(name)).unwrap();
}

#[cfg(unix)]
fn become_loop(model: &Copy, name: &str) {
    model.remove(name);
    std::os::unix::fs::symlink(name, model.file(name)).unwrap();
}
