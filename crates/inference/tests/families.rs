//! Every family against transformers: logits, greedy tokens, 4-bit checkpoints.

mod fixture;

use fixture::{DECODERS, Fixture, WHOLE, distance, exact, nf4};
use halfbyte_backend::Caps;
use halfbyte_inference::{Finish, Flow, GenerateOptions, Session, Settings, generate, logits};
use halfbyte_quant::QuantSpec;
use pollster::block_on;

/// Suffixes of the reference, and the quantization that each stands for.
fn variants() -> [(&'static str, Option<QuantSpec>); 3] {
    [("", None), (".nf4", nf4(false)), (".nf4dq", nf4(true))]
}

#[test]
fn logits_are_those_of_transformers() {
    for model in DECODERS {
        let fixture = Fixture::open(&format!("models/{model}"));
        for (suffix, quant) in variants() {
            let mut engine = fixture.engine(quant, WHOLE);
            let found = block_on(logits(&mut engine, 0, &fixture.input())).unwrap();
            let distance = distance(&found, &fixture.floats(&format!("logits{suffix}")));
            println!("{model}{suffix}: {distance:.1e}");
            assert!(distance < 2e-5, "{model}{suffix}: {distance:e}");
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for model in DECODERS {
        let fixture = Fixture::open(&format!("models/{model}"));
        let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
        for (suffix, quant) in variants() {
            let mut engine = fixture.engine(quant, Caps { rows: 10, outputs: 1 });
            let mut session = Session::new(0);
            let mut streamed = Vec::new();
            let mut on_token = |token| {
                streamed.push(token);
                Flow::Continue
            };
            let text =
                block_on(generate(&mut engine, &mut session, &fixture.input(), &options, &mut on_token))
                    .unwrap();
            assert_eq!(text.tokens, fixture.ids(&format!("greedy16{suffix}")), "{model}{suffix}");
            assert_eq!(text.finish, Finish::MaxTokens);
            assert_eq!(streamed, text.tokens);
        }
    }
}

#[test]
fn the_defaults_are_close_to_nf4_with_double_quantization() {
    for model in DECODERS {
        let fixture = Fixture::open(&format!("models/{model}"));
        let mut engine = fixture.load(fixture.blueprint(&Settings::default()), WHOLE);
        let found = block_on(logits(&mut engine, 0, &fixture.input())).unwrap();
        let distance = distance(&found, &fixture.floats("logits.nf4dq"));
        println!("{model}: {distance:.1e}");
        assert!(distance < 5e-3, "{model}: {distance:e}");
    }
}

#[test]
fn checkpoints_of_bitsandbytes_run_as_they_are() {
    for model in [
        "llama_nf4_dq",
        "llama_nf4",
        "llama_fp4_dq",
        "llama_gqa_tied_nf4_dq",
        "llama_nf4_dq_f16",
        "llama_nf4_dq_bf16_storage_bf16",
        "qwen2_nf4_dq_bf16",
        "qwen3_nf4_dq",
    ] {
        let fixture = Fixture::open(&format!("bnb_ckpt/{model}"));
        // The wish for another quantization changes nothing.
        let other = Some(QuantSpec { blocksize: 128, ..QuantSpec::default() });
        let mut engine = fixture.load(fixture.blueprint(&exact(other)), WHOLE);
        let found = block_on(logits(&mut engine, 0, &fixture.input())).unwrap();
        let distance = distance(&found, &fixture.floats("logits_f32_engine"));
        println!("{model}: {distance:.1e}");
        assert!(distance < 2e-5, "{model}: {distance:e}");
    }
}
