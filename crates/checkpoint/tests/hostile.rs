//! Damaged and hostile files, built here: each has one clear error and none panics.

use halfbyte_checkpoint::{Checkpoint, Header, ModelConfig, ModelFiles, ShardIndex, TensorIndex};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// A safetensors file of this JSON and this many bytes of data.
fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data, 0xAB);
    bytes
}

/// A file of tensors `(name, dtype, shape, begin, end)`.
fn tensors(entries: &[(&str, &str, &str, i64, i64)], data: usize) -> Vec<u8> {
    let entries: Vec<String> = entries
        .iter()
        .map(|(name, dtype, shape, begin, end)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    file(&format!("{{{}}}", entries.join(",")), data)
}

fn parse(bytes: &[u8]) -> Result<Header, String> {
    Header::parse("evil.safetensors", bytes, bytes.len() as u64).map_err(|error| error.to_string())
}

#[test]
fn every_hostile_file_has_its_error() {
    let good = tensors(&[("a", "F32", "[2]", 0, 8)], 8);
    let with_length = |length: u64| {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    #[rustfmt::skip]
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "0 bytes, too few"),
        ("seven bytes", vec![1; 7], "7 bytes, too few"),
        ("header over the file", with_length(5_000), "claims to end at byte 5008, but the file has"),
        ("header over the limit", with_length(100_000_001), "more than the format's limit"),
        ("header of u64::MAX", with_length(u64::MAX), "claims 18446744073709551615 bytes"),
        ("truncated data", good[..good.len() - 1].to_vec(), "are not inside the 7 bytes of data"),
        ("truncated JSON", with_length(20), "EOF while parsing"),
        ("no header", with_length(0), "does not begin with '{'"),
        ("not JSON", file("hello world", 0), "does not begin with '{'"),
        ("an array", file("[1, 2]", 0), "does not begin with '{'"),
        ("invalid UTF-8", { let mut b = file("{\"a\": 1}", 0); b[10] = 0xff; b }, "its header"),
        ("text after the JSON", file("{} x", 0), "trailing characters"),
        ("nested without end", file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0), "its header"),
        ("entry is a number", file(r#"{"a":1}"#, 0), "expected an object with dtype"),
        ("no dtype", file(r#"{"a":{"shape":[],"data_offsets":[0,0]}}"#, 0), "missing field `dtype`"),
        ("no shape", file(r#"{"a":{"dtype":"F32","data_offsets":[0,0]}}"#, 0), "missing field `shape`"),
        ("no offsets", file(r#"{"a":{"dtype":"F32","shape":[]}}"#, 0), "missing field `data_offsets`"),
        ("shape twice", file(r#"{"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,4]}}"#, 4), "shape occurs twice"),
        ("three offsets", file(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4,8]}}"#, 8), "its header"),
        ("unknown dtype", tensors(&[("a", "F128", "[1]", 0, 16)], 16), "its dtype F128 is unknown"),
        ("dtype in small letters", tensors(&[("a", "f32", "[1]", 0, 4)], 4), "its dtype f32 is unknown"),
        ("wrong dtype", tensors(&[("a", "F16", "[2]", 0, 8)], 8), "it has 8 bytes, but F16 [2] needs 4"),
        ("wrong shape", tensors(&[("a", "F32", "[3]", 0, 8)], 8), "it has 8 bytes, but F32 [3] needs 12"),
        ("negative dimension", tensors(&[("a", "F32", "[-2]", 0, 8)], 8), "[-2] has an impossible dimension"),
        ("fractional dimension", tensors(&[("a", "F32", "[2.0]", 0, 8)], 8), "its header"),
        ("dimension beyond 64 bits", tensors(&[("a", "F32", "[36893488147419103232]", 0, 8)], 8), "impossible dimension"),
        ("product overflows", tensors(&[("a", "F32", "[4294967296, 4294967296]", 0, 0)], 0), "overflows"),
        ("product overflows before a 0", tensors(&[("a", "F32", "[4294967296, 4294967296, 0]", 0, 0)], 0), "overflows"),
        ("bits overflow", tensors(&[("a", "F32", "[2305843009213693952]", 0, 0)], 0), "overflow"),
        ("half a byte", tensors(&[("a", "F4", "[3]", 0, 2)], 2), "do not fill whole bytes"),
        ("negative offset", tensors(&[("a", "F32", "[2]", -8, 0)], 8), "offsets [-8, 0] are not inside"),
        ("reversed offsets", tensors(&[("a", "F32", "[2]", 8, 0)], 8), "offsets [8, 0] are not inside"),
        ("offset over the file", tensors(&[("a", "F32", "[4]", 0, 16)], 8), "offsets [0, 16] are not inside the 8 bytes"),
        ("offset of i64::MAX", tensors(&[("a", "U8", "[9223372036854775807]", 0, i64::MAX)], 8), "9223372036854775807 elements of U8 overflow"),
        ("overlap", tensors(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[2]", 4, 12)], 12), "b begins at data byte 4 and overlaps a, which ends at 8"),
        ("same bytes twice", tensors(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[2]", 0, 8)], 8), "overlaps"),
        ("a hole", tensors(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[1]", 12, 16)], 16), "b begins at data byte 12 and leaves a hole after a"),
        ("a hole at the start", tensors(&[("a", "F32", "[1]", 4, 8)], 8), "leaves a hole after the header"),
        ("bytes after the last", tensors(&[("a", "F32", "[2]", 0, 8)], 9), "its tensors end at byte"),
        ("data without tensors", file("{}", 4), "its tensors end at byte 10, but the file has 14"),
        ("name twice", tensors(&[("a", "F32", "[1]", 0, 4), ("a", "F32", "[1]", 4, 8)], 8), "tensor a occurs twice"),
        ("escape codes in a name", tensors(&[("\\u001b[2J\\n", "F32", "[3]", 0, 8)], 8), "tensor \\u{1b}[2J\\u{a}: it has"),
        ("a long name", tensors(&[(&"n".repeat(9999), "F32", "[3]", 0, 8)], 8), "…: it has 8 bytes"),
        ("metadata is a list", file(r#"{"__metadata__":[1]}"#, 0), "its header"),
    ];
    for (name, bytes, fragment) in table {
        let error = parse(&bytes).expect_err(name);
        assert!(error.starts_with("evil.safetensors is not a usable"), "{name}: {error}");
        assert!(error.contains(fragment), "{name}: {error}");
        assert_eq!(error.lines().count(), 1, "{name}");
        assert!(error.len() < 600, "{name}: {} bytes of error", error.len());
        assert!(!error.contains(char::is_control), "{name}");
    }
}

#[test]
fn odd_but_valid_files_are_read() {
    #[rustfmt::skip]
    let table: Vec<(&str, Vec<u8>, usize)> = vec![
        ("no tensors", file("{}", 0), 0),
        ("padding after the JSON", file("{}        ", 0), 0),
        ("metadata", file(r#"{"__metadata__":{"format":"pt"}}"#, 0), 0),
        ("no metadata", file(r#"{"__metadata__":null}"#, 0), 0),
        ("names in any order", tensors(&[("b", "F32", "[1]", 4, 8), ("a", "F32", "[1]", 0, 4)], 8), 2),
        ("a scalar", tensors(&[("a", "F64", "[]", 0, 8)], 8), 1),
        ("empty tensors", tensors(&[("a", "F32", "[0, 7]", 0, 0), ("b", "U8", "[1]", 0, 1), ("c", "F32", "[0]", 1, 1)], 1), 3),
        ("sub-byte types", tensors(&[("a", "F4", "[3, 2]", 0, 3), ("b", "F6_E2M3", "[4]", 3, 6)], 6), 2),
        ("fields that are not known", file(r#"{"a":{"dtype":"U8","note":{"x":[1]},"shape":[1],"data_offsets":[0,1]}}"#, 1), 1),
    ];
    for (name, bytes, count) in table {
        let header = parse(&bytes).expect(name);
        assert_eq!(header.tensors.len(), count, "{name}");
        let reference = safetensors::SafeTensors::read_metadata(&bytes);
        // The reference reader takes all of these but unknown fields and a null.
        if let Ok((_, metadata)) = reference {
            assert_eq!(metadata.tensors().len(), count, "{name}");
        }
    }
}

#[test]
fn a_short_prefix_is_refused_not_read_past() {
    let bytes = tensors(&[("a", "F32", "[2]", 0, 8)], 8);
    let needed = Header::prefix_len("f", &bytes[..8], bytes.len() as u64).unwrap() as usize;
    assert!(Header::parse("f", &bytes[..needed], bytes.len() as u64).is_ok());
    let error = Header::parse("f", &bytes[..needed - 1], bytes.len() as u64).unwrap_err();
    assert!(error.to_string().contains("are there"), "{error}");
}

fn header(file: &str, name: &str) -> Header {
    let bytes = tensors(&[(name, "F32", "[1]", 0, 4)], 4);
    Header::parse(file, &bytes, bytes.len() as u64).unwrap()
}

#[test]
fn indexes_and_shards_that_do_not_fit() {
    let parse = |json: Value| ShardIndex::parse("index.json", json.to_string().as_bytes());
    let error = |json: Value| parse(json).unwrap_err().to_string();
    assert!(error(json!({})).contains("no weight_map"));
    assert!(error(json!({"weight_map": {}})).contains("no weight_map"));
    assert!(error(json!({"weight_map": {"a": 1}})).contains("shard of tensor a is not a text"));
    assert!(error(json!({"weight_map": {"a": "../../etc/passwd.safetensors"}})).contains("do not trust"));
    assert!(
        ShardIndex::parse("index.json", b"{").unwrap_err().to_string().contains("index.json is not valid")
    );

    let shards = parse(json!({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})).unwrap();
    let lacking = vec![header("1.safetensors", "a"), header("2.safetensors", "other")];
    let error = TensorIndex::sharded(&shards, lacking).unwrap_err().to_string();
    assert!(error.contains("says that tensor b is in 2.safetensors, but it is not"), "{error}");
    let swapped = vec![header("1.safetensors", "b"), header("2.safetensors", "a")];
    assert!(TensorIndex::sharded(&shards, swapped).is_err());
    let few = TensorIndex::sharded(&shards, vec![header("1.safetensors", "a")]);
    assert!(few.unwrap_err().to_string().contains("names 2 shards, but 1 are here"));

    let twice = TensorIndex::new(vec![header("x", "a"), header("y", "a")]);
    assert!(twice.unwrap_err().to_string().contains("tensor a is also in x"));
}

#[test]
fn a_missing_tensor_names_the_files_and_what_is_near() {
    let index = TensorIndex::new(vec![
        header("1.safetensors", "model.layers.0.mlp.up_proj.weight"),
        header("2.safetensors", "model.norm.weight"),
    ])
    .unwrap();
    let error = index.get("model.layers.0.mlp.up_prj.weight").unwrap_err().to_string();
    assert!(
        error.contains(
            "tensor model.layers.0.mlp.up_prj.weight is not in 1.safetensors … 2.safetensors (2 shards)"
        ),
        "{error}"
    );
    assert!(error.contains("did you mean model.layers.0.mlp.up_proj.weight?"), "{error}");
    let error = index.get("embeddings.word_embeddings").unwrap_err().to_string();
    assert!(error.contains("another kind of model"), "{error}");
}

/// File names with their contents.
type Files<'a> = Vec<(&'a str, &'a [u8])>;

#[test]
fn directories_that_are_no_model() {
    let write = |dir: &Path, files: &[(&str, &[u8])]| {
        for (name, bytes) in files {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    };
    let config: &[u8] = br#"{"architectures": ["LlamaForCausalLM"]}"#;
    let index: &[u8] = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let escape: &[u8] = br#"{"weight_map": {"a": "../x.safetensors"}}"#;
    let shard = tensors(&[("a", "F32", "[1]", 0, 4)], 4);
    #[rustfmt::skip]
    let table: Vec<(&str, Files, &str)> = vec![
        ("empty", vec![], "the directory is empty"),
        ("only a config", vec![("config.json", config)], "has no model.safetensors or model.safetensors.index.json: give the directory"),
        ("pickle", vec![("config.json", config), ("pytorch_model.bin", b"x")], "pytorch_model.bin is a PyTorch pickle"),
        ("GGUF", vec![("llama.Q4_0.gguf", b"GGUF")], "llama.Q4_0.gguf is a GGUF file"),
        ("another name", vec![("config.json", config), ("weights.safetensors", b"x")], "rename it to model.safetensors"),
        ("no config", vec![("model.safetensors", &shard)], "has no config.json"),
        ("no shards", vec![("config.json", config), ("model.safetensors.index.json", index)], "the shard model-00001-of-00002.safetensors and 1 more of 2 is missing"),
        ("one shard missing", vec![("config.json", config), ("model.safetensors.index.json", index), ("model-00001-of-00002.safetensors", &shard)], "the shard model-00002-of-00002.safetensors of 2 is missing"),
        ("shard outside", vec![("config.json", config), ("model.safetensors.index.json", escape)], "do not trust"),
        ("empty weights", vec![("config.json", config), ("model.safetensors", b"")], "0 bytes, too few"),
        ("pointer of Git LFS", vec![("config.json", config), ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")], "is a Git LFS pointer"),
        ("config is a list", vec![("config.json", b"[]"), ("model.safetensors", &shard)], "config.json is not valid: it is not a JSON object"),
        ("config is cut", vec![("config.json", b"{\"model_ty"), ("model.safetensors", &shard)], "config.json is not valid: EOF"),
        ("config of nothing", vec![("config.json", b"{}"), ("model.safetensors", &shard)], "architectures is missing"),
        ("generation config is text", vec![("config.json", config), ("model.safetensors", &shard), ("generation_config.json", b"hot")], "generation_config.json is not valid"),
    ];
    for (name, files, fragment) in table {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files);
        let error = Checkpoint::open(dir.path()).expect_err(name).to_string();
        assert!(error.contains(fragment), "{name}: {error}");
        assert!(error.contains(&*dir.path().to_string_lossy()), "{name}: {error}");
        assert_eq!(error.lines().count(), 1, "{name}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = ModelFiles::open(&dir.path().join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("cannot read"), "{error}");
}

#[test]
fn configurations_out_of_range() {
    let config = |mut json: Value| {
        json["model_type"] = json!("llama");
        ModelConfig::parse("config.json", json.to_string().as_bytes()).unwrap()
    };
    let size =
        |key: &str, value: Value| config(json!({ key: value })).usize(key).map_err(|error| error.to_string());
    assert_eq!(size("hidden_size", json!(4096)), Ok(4096));
    assert_eq!(size("pad_token_id", json!(0)), Ok(0));
    #[rustfmt::skip]
    let table = [
        ("hidden_size", json!(0), "hidden_size is 0, expected an integer from 1 to 1048576"),
        ("hidden_size", json!(1 << 21), "hidden_size is 2097152, expected an integer"),
        ("hidden_size", json!(-1), "is -1, expected"),
        ("hidden_size", json!(64.5), "is 64.5, expected"),
        ("hidden_size", json!("64"), "is \"64\", expected"),
        ("hidden_size", json!(null), "is missing, expected"),
        ("hidden_size", json!(vec![1; 100]), "is a list of 100 values, expected"),
        ("num_hidden_layers", json!(10_001), "from 1 to 10000"),
        ("num_attention_heads", json!(0), "from 1 to"),
        ("vocab_size", json!((1u64 << 24) + 1), "from 1 to 16777216"),
        ("anything", json!(u64::MAX), "is 18446744073709551615, expected an integer from 0 to 2147483648"),
    ];
    for (key, value, fragment) in table {
        let error = size(key, value).unwrap_err();
        assert!(error.starts_with(&format!("config.json: {key} is ")), "{error}");
        assert!(error.contains(fragment), "{error}");
    }
    assert!(
        config(json!({"eps": "small"})).f64("eps").unwrap_err().to_string().contains("expected a number")
    );
    assert!(config(json!({"tie": 1})).bool_or("tie", false).is_err());
    assert!(config(json!({"act": 1})).str("act").is_err());
    assert!(config(json!({"id2label": {"0": "a", "2": "b"}})).labels().is_err());
    assert!(config(json!({"num_labels": 1u64 << 30})).labels().is_err());
    assert!(config(json!({"eos_token_id": [1, "x"]})).token_ids("eos_token_id").is_err());
    assert_eq!(
        config(json!({"eos_token_id": [128001, 128009]})).token_ids("eos_token_id").unwrap(),
        [128001, 128009]
    );
    let unknown =
        ModelConfig::parse("config.json", br#"{"model_type": "llama", "dtype": "float7"}"#).unwrap_err();
    assert!(unknown.to_string().contains("dtype is \"float7\""), "{unknown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes);
        let _ = ShardIndex::parse("index.json", &bytes);
        let _ = ModelConfig::parse("config.json", &bytes);
    }

    #[test]
    fn mutated_headers_never_panic_and_what_is_accepted_holds(
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in 0usize..8,
    ) {
        let mut bytes = tensors(
            &[("a", "F32", "[2, 3]", 0, 24), ("b", "BF16", "[4]", 24, 32), ("c", "U8", "[0]", 32, 32)],
            32,
        );
        for (at, byte) in &mutations {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        bytes.truncate(bytes.len() - cut);
        if let Ok(header) = parse(&bytes) {
            let mut at = header.data_start;
            for tensor in &header.tensors {
                prop_assert_eq!(tensor.begin, at);
                prop_assert_eq!(tensor.bytes() * 8, tensor.elements() as u64 * tensor.dtype.bits());
                at = tensor.end;
            }
            prop_assert_eq!(at, bytes.len() as u64);
            // Nothing is accepted that the reference reader refuses, but for a null in place of metadata.
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
        }
    }
}
