//! Models of the repository, what transformers computes from them, and the devices that they run on.

#![allow(dead_code, reason = "each test uses a part of it")]

use halfbyte::{
    CausalLm, Checkpoint, ComputeDtype, DeviceMap, KvType, LoadOptions, ModelSource, QuantSpec, Silent,
};
use halfbyte_checkpoint::ModelConfig;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Decoders of `tests/fixtures/models` whose families are supported.
pub const MODELS: &[&str] = &[
    "llama_mha",
    "llama_gqa_tied_llama3rope",
    "llama_bias_linearrope",
    "llama_f16",
    "llama_bf16_sharded",
    "mistral_sw8",
    "qwen2_bias",
    "qwen3_qknorm",
    "phi3_fused",
    "gemma2_softcap",
    "gemma3_text",
    "mixtral_moe",
    "qwen3_moe",
];

/// What a GPU may differ in float32: less than the smallest error of meaning that the mutants of
/// `crates/inference/tests/mutants.rs` make, 5e-5, so that each of them would fail here too. Software Vulkan
/// differs by 2e-6 at most.
pub const GPU_TOLERANCE: f64 = 5e-5;

/// A folder of the repository.
pub fn path(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// Runs the test called `test` once more in a process of its own, with `env` beside this one's environment. What it
/// is to do there it learns from `env`.
pub fn in_own_process(test: &str, env: &[(&str, &str)]) {
    let outcome = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&outcome.stdout);
    println!("{text}");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(text.contains("1 passed"), "{test} did not run");
}

/// Where a model runs, and how near to transformers' float32 it must be.
pub struct Setup {
    pub name: &'static str,
    pub device_map: DeviceMap,
    /// The largest `‖found - wanted‖ / ‖wanted‖` with a float32 KV cache.
    pub tolerance: f64,
    /// Devices that must hold a part of the model.
    pub devices: &'static [&'static str],
}

/// The CPU; with the feature `wgpu` also the first GPU, and both in one generation. A machine without an
/// adapter fails these tests: Mesa's software Vulkan is enough.
pub fn setups() -> Vec<Setup> {
    let mut setups =
        vec![Setup { name: "cpu", device_map: "cpu".parse().unwrap(), tolerance: 2e-5, devices: &["cpu"] }];
    if cfg!(feature = "wgpu") {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("map.json");
        let map = r#"{"": "wgpu:0", "model.embed_tokens": "cpu", "model.layers.0": "cpu"}"#;
        std::fs::write(&file, map).unwrap();
        setups.push(Setup {
            name: "wgpu",
            device_map: "wgpu:0".parse().unwrap(),
            tolerance: GPU_TOLERANCE,
            devices: &["wgpu:0"],
        });
        setups.push(Setup {
            name: "cpu and wgpu",
            device_map: file.to_str().unwrap().parse().unwrap(),
            tolerance: GPU_TOLERANCE,
            devices: &["cpu", "wgpu:0"],
        });
    }
    setups
}

/// Options for texts that are compared: what `float16`, the default, computes is near, and another processor's text may
/// be another.
pub fn float32() -> LoadOptions {
    LoadOptions { kv_cache: KvType::F32, compute_dtype: ComputeDtype::Float32, ..LoadOptions::default() }
}

impl Setup {
    /// Options that lose nothing but what `quant` loses.
    pub fn exact(&self, quant: Option<QuantSpec>) -> LoadOptions {
        LoadOptions { quant, device_map: self.device_map.clone(), chunk: 64, outputs: 64, ..float32() }
    }

    /// The defaults, with logits for many positions at once.
    pub fn defaults(&self) -> LoadOptions {
        LoadOptions { device_map: self.device_map.clone(), chunk: 64, outputs: 64, ..LoadOptions::default() }
    }
}

/// A fixture model and its reference.
pub struct Fixture {
    pub name: String,
    folder: PathBuf,
    expected: Vec<u8>,
}

impl Fixture {
    pub fn open(name: &str) -> Self {
        Self::in_folder("tests/fixtures/models", name)
    }

    /// A checkpoint that bitsandbytes wrote.
    pub fn quantized(name: &str) -> Self {
        Self::in_folder("tests/fixtures/bnb_ckpt", name)
    }

    fn in_folder(folder: &str, name: &str) -> Self {
        Self::with(folder, name, &format!("{folder}/{name}/expected.safetensors"))
    }

    /// A model of `tests/fixtures/models`, with the reference of long texts.
    pub fn long(name: &str) -> Self {
        Self::with("tests/fixtures/models", name, "tests/fixtures/long_windows.safetensors")
    }

    fn with(folder: &str, name: &str, expected: &str) -> Self {
        let expected = std::fs::read(path(expected)).unwrap();
        Self { name: name.into(), folder: path(folder).join(name), expected }
    }

    pub fn source(&self) -> ModelSource {
        ModelSource::Named(self.folder.to_str().unwrap().into())
    }

    /// The same without tokens that end a text, as the reference was generated.
    pub fn endless(&self) -> ModelSource {
        let mut checkpoint = Checkpoint::open(&self.folder).unwrap();
        checkpoint.generation.eos_token_ids.clear();
        ModelSource::Checkpoint(Rc::new(checkpoint))
    }

    /// [`endless`](Self::endless), and as if made for so many positions: plain rotation knows no end.
    pub fn made_for(&self, positions: usize) -> ModelSource {
        let mut checkpoint = Checkpoint::open(&self.folder).unwrap();
        checkpoint.generation.eos_token_ids.clear();
        let config = std::fs::read(self.folder.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        config["max_position_embeddings"] = positions.into();
        checkpoint.config = ModelConfig::parse("config.json", config.to_string().as_bytes()).unwrap();
        ModelSource::Checkpoint(Rc::new(checkpoint))
    }

    pub fn load(&self, options: &LoadOptions) -> CausalLm {
        CausalLm::load(&self.source(), options, &mut Silent)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// A float tensor of the reference, flat.
    pub fn floats(&self, key: &str) -> Vec<f32> {
        self.words(key, Dtype::F32).map(f32::from_le_bytes).collect()
    }

    /// A tensor of token ids.
    pub fn ids(&self, key: &str) -> Vec<u32> {
        self.words(key, Dtype::I32).map(u32::from_le_bytes).collect()
    }

    fn words(&self, key: &str, dtype: Dtype) -> impl Iterator<Item = [u8; 4]> {
        let file = SafeTensors::deserialize(&self.expected).unwrap();
        let tensor = file.tensor(key).unwrap_or_else(|_| panic!("{} has no {key}", self.name));
        assert_eq!(tensor.dtype(), dtype, "{key}");
        tensor.data().as_chunks::<4>().0.to_vec().into_iter()
    }
}

/// `‖found - wanted‖ / ‖wanted‖`
pub fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let mut sums = (0.0, 0.0);
    for (&found, &wanted) in found.iter().zip(wanted) {
        sums.0 += (f64::from(found) - f64::from(wanted)).powi(2);
        sums.1 += f64::from(wanted).powi(2);
    }
    let distance = (sums.0 / sums.1).sqrt();
    assert!(distance.is_finite());
    distance
}
