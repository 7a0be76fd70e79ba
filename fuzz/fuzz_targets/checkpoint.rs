//! Any bytes as a `config.json` (up to the first zero byte) and weights (after it): every reader of a
//! checkpoint returns, and returned weights hold together.

#![no_main]

use halfbyte_checkpoint::quant_state::{quantized_weights, read_quantized};
use halfbyte_checkpoint::{Checkpoint, ModelFiles};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (config, weights) = match bytes.iter().position(|&byte| byte == 0) {
        Some(zero) => (&bytes[..zero], &bytes[zero + 1..]),
        None => (&br#"{"model_type": "llama"}"#[..], bytes),
    };
    let files = ModelFiles::from_bytes("fuzz", config.to_vec(), weights.to_vec(), None, None);
    let Ok(checkpoint) = Checkpoint::new(files) else {
        return;
    };
    let _ = checkpoint.config.rope();
    let _ = checkpoint.config.rope_for("sliding_attention");
    let _ = checkpoint.config.quantization();
    let _ = checkpoint.config.labels();
    for tensor in checkpoint.index.iter() {
        assert!(checkpoint.bytes_of(tensor).is_ok());
    }
    for weight in quantized_weights(&checkpoint.index) {
        if let Ok(Some(weight)) = read_quantized(&checkpoint, weight) {
            assert_eq!(weight.data.dequantize().len(), weight.shape.iter().product::<usize>());
        }
    }
});
