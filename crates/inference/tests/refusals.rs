//! What is not implemented, or does not fit together, is refused by name.

mod fixture;

use fixture::{Fixture, exact};
use halfbyte_checkpoint::ModelConfig;
use halfbyte_inference::{Settings, build, families};

/// The error of a fixture's model with some keys of its configuration changed.
fn refusal(model: &str, changes: serde_json::Value) -> String {
    let fixture = Fixture::open(&format!("models/{model}"));
    let mut json = fixture.checkpoint.config.json.clone();
    for (key, value) in changes.as_object().unwrap() {
        json.insert(key.clone(), value.clone());
    }
    let json = serde_json::to_vec(&json).unwrap();
    let config = ModelConfig::parse("config.json", &json).unwrap();
    let result = build(&config, &fixture.checkpoint.index, &exact(None));
    result.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn options_that_are_not_implemented_are_named() {
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0});
    for (model, changes, parts) in [
        (
            "llama_mha",
            serde_json::json!({"architectures": ["FalconForCausalLM"]}),
            ["FalconForCausalLM", "LlamaForCausalLM"],
        ),
        ("llama_mha", serde_json::json!({"hidden_act": "xielu"}), ["xielu", "silu"]),
        ("llama_mha", serde_json::json!({"rope_parameters": yarn}), ["yarn", "rotary"]),
        ("llama_mha", serde_json::json!({"rope_parameters": {"rope_type": "spiral"}}), ["spiral", "llama3"]),
        (
            "llama_mha",
            serde_json::json!({"quantization_config": {"quant_method": "gptq"}}),
            ["gptq", "16-bit"],
        ),
        ("llama_mha", serde_json::json!({"num_key_value_heads": 3}), ["3", "num_key_value_heads"]),
        ("mistral_sw8", serde_json::json!({"sliding_window": 0}), ["sliding_window", "at least 1"]),
        (
            "gemma2_softcap",
            serde_json::json!({"use_bidirectional_attention": true}),
            ["bidirectional", "causal"],
        ),
        (
            "gemma2_softcap",
            serde_json::json!({"layer_types": ["full_attention", "full_attention", "linear_attention"]}),
            ["linear_attention", "sliding_attention"],
        ),
        (
            "gemma2_softcap",
            serde_json::json!({"layer_types": ["full_attention"]}),
            ["1 layer_types", "3 layers"],
        ),
        (
            "gemma2_softcap",
            serde_json::json!({"final_logit_softcapping": -1.0}),
            ["final_logit_softcapping", "above 0"],
        ),
    ] {
        let message = refusal(model, changes);
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains('\n'), "{message}");
    }
    assert!(families::supported().count() >= 7);
}

#[test]
fn tensors_that_do_not_fit_are_named_with_both_shapes() {
    let message = refusal("llama_mha", serde_json::json!({"intermediate_size": 161}));
    for part in ["mlp.gate_proj.weight", "[160, 64]", "[161, 64]", "model.safetensors"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = refusal("llama_mha", serde_json::json!({"attention_bias": true}));
    assert!(message.contains("model.layers.0.self_attn.q_proj.bias"), "{message}");
    let message = refusal("llama_gqa_tied_llama3rope", serde_json::json!({"tie_word_embeddings": false}));
    assert!(message.contains("lm_head.weight"), "{message}");
    let message = refusal("llama_mha", serde_json::json!({"num_hidden_layers": 4}));
    assert!(message.contains("model.layers.3"), "{message}");
}

#[test]
fn a_context_beyond_the_model_is_refused() {
    let fixture = Fixture::open("models/llama_mha");
    for (context, fits) in [(None, true), (Some(128), true), (Some(129), false), (Some(0), false)] {
        let settings = Settings { context, ..exact(None) };
        let result = build(&fixture.checkpoint.config, &fixture.checkpoint.index, &settings);
        assert_eq!(result.is_ok(), fits, "{context:?}");
        if let Err(error) = result {
            assert!(error.to_string().contains("128"), "{error}");
        }
    }
}
