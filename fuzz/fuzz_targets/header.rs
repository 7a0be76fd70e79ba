//! Any bytes as a safetensors file: no panic, and what is accepted covers the file exactly.

#![no_main]

use halfbyte_checkpoint::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse("fuzz.safetensors", bytes, bytes.len() as u64) else {
        return;
    };
    let mut at = header.data_start;
    for tensor in &header.tensors {
        assert_eq!(tensor.begin, at);
        assert_eq!(tensor.bytes() * 8, tensor.elements() as u64 * tensor.dtype.bits());
        at = tensor.end;
    }
    assert_eq!(at, bytes.len() as u64);
});
