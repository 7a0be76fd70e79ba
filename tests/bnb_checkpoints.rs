//! Checkpoints that bitsandbytes wrote, through the library, on every kind of device: they stay in 4 bits and
//! give what a float32 engine makes of the same packed weights.

mod reference;

use halfbyte::{Encoded, SequenceClassifier, Silent};
use reference::{Fixture, distance, setups};

/// Every decoder of `tests/fixtures/bnb_ckpt`: with and without double quantization, NF4 and FP4, stored in
/// bytes and in bf16, from float32 and 16-bit models.
const DECODERS: &[&str] = &[
    "llama_nf4_dq",
    "llama_nf4",
    "llama_fp4_dq",
    "llama_gqa_tied_nf4_dq",
    "llama_nf4_dq_f16",
    "llama_nf4_dq_bf16_storage_bf16",
    "qwen2_nf4_dq_bf16",
    "qwen3_nf4_dq",
];

#[test]
fn decoders_give_the_logits_of_their_own_packed_weights() {
    for setup in setups() {
        for name in DECODERS {
            let fixture = Fixture::quantized(name);
            // Whatever the caller asks for, a checkpoint keeps its own format.
            let mut model = fixture.load(&setup.exact(None));
            for device in setup.devices {
                assert!(model.loaded().blocks_on(device) > 0, "{name} has nothing on {device}");
            }
            let found = model.logits(&fixture.ids("input_ids")).unwrap();
            let distance = distance(&found, &fixture.floats("logits_f32_engine"));
            println!("{name} on {}: {distance:.1e}", setup.name);
            assert!(distance < setup.tolerance, "{name} on {}: {distance:e}", setup.name);
        }
    }
}

#[test]
fn a_classifier_with_a_quantized_head_gives_its_logits() {
    let fixture = Fixture::quantized("bert_cls_nf4_dq");
    let (ids, mask, types) =
        (fixture.ids("input_ids"), fixture.ids("attention_mask"), fixture.ids("token_type_ids"));
    let padded = ids.len() / 3;
    let text = |row: usize| {
        let kept = (row * padded..(row + 1) * padded).filter(|&at| mask[at] == 1);
        let (ids, types) = kept.map(|at| (ids[at], types[at])).unzip();
        Encoded { ids, types }
    };
    let texts: Vec<Encoded> = (0..3).map(text).collect();
    for setup in setups().into_iter().filter(|setup| setup.devices.len() == 1) {
        let mut model = SequenceClassifier::load(&fixture.source(), &setup.exact(None), &mut Silent).unwrap();
        let found = model.logits(&texts).unwrap().concat();
        let distance = distance(&found, &fixture.floats("logits_f32_engine"));
        println!("bert_cls_nf4_dq on {}: {distance:.1e}", setup.name);
        assert!(distance < setup.tolerance, "on {}: {distance:e}", setup.name);
    }
}
