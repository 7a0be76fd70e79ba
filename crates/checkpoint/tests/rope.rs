//! Rotary scaling in every form that configurations have had.

use halfbyte_checkpoint::{ModelConfig, RopeKind, RopeScaling};
use serde_json::{Value, json};

fn config(mut json: Value) -> ModelConfig {
    json["model_type"] = json!("llama");
    json["max_position_embeddings"] = json!(4096);
    ModelConfig::parse("config.json", json.to_string().as_bytes()).unwrap()
}

fn rope(json: Value) -> RopeScaling {
    config(json).rope().unwrap()
}

fn refused(json: Value) -> String {
    config(json).rope().unwrap_err().to_string()
}

#[test]
fn nothing_said_is_the_plain_rotation() {
    let plain = RopeScaling { theta: 10_000.0, partial_rotary_factor: 1.0, kind: RopeKind::Default };
    assert_eq!(rope(json!({})), plain);
    assert_eq!(rope(json!({"rope_scaling": null})), plain);
    assert_eq!(rope(json!({"rope_parameters": {"rope_type": "default"}})), plain);
}

#[test]
fn the_old_and_the_new_form_say_the_same() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let old = rope(json!({"rope_theta": 500000.0, "rope_scaling": llama3}));
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(500000.0);
    assert_eq!(rope(json!({"rope_parameters": parameters})), old);
    assert_eq!(
        old.kind,
        RopeKind::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192
        }
    );
    assert_eq!(old.theta, 500_000.0);
    // The oldest form says `type`.
    let linear = rope(json!({"rope_scaling": {"type": "linear", "factor": 2}}));
    assert_eq!(linear.kind, RopeKind::Linear { factor: 2.0 });
    let dynamic = rope(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}));
    let original_max_position_embeddings = 4096;
    assert_eq!(dynamic.kind, RopeKind::Dynamic { factor: 2.0, original_max_position_embeddings });
}

#[test]
fn scaling_that_was_added_goes_first_if_its_base_is_known() {
    let saved = json!({"rope_type": "default", "rope_theta": 5000.0});
    let added = json!({"rope_type": "linear", "factor": 2.0});
    let (linear, theta) = (RopeKind::Linear { factor: 2.0 }, 7000.0);
    // As transformers 5 reads them.
    let both = rope(json!({"rope_parameters": saved, "rope_scaling": added, "rope_theta": theta}));
    assert_eq!((both.kind, both.theta), (linear.clone(), theta));
    let own = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": theta});
    let both = rope(json!({"rope_parameters": saved, "rope_scaling": own}));
    assert_eq!((both.kind, both.theta), (linear.clone(), theta));
    // Where transformers would go on with a base of 10000, whatever the model's was.
    let error = refused(json!({"rope_parameters": saved, "rope_scaling": added}));
    assert!(error.contains("rope_scaling is ") && error.contains("put it there"), "{error}");
    let nested = json!({"full_attention": saved, "sliding_attention": saved});
    let error = refused(json!({"rope_parameters": nested, "rope_scaling": added, "rope_theta": theta}));
    assert!(error.contains("put it there"), "{error}");

    // Said twice, or not at all.
    let same = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0});
    let both = rope(json!({"rope_parameters": same, "rope_scaling": added}));
    assert_eq!((both.kind, both.theta), (linear, 5000.0));
    for nothing in [json!(null), json!({})] {
        assert_eq!(rope(json!({"rope_parameters": saved, "rope_scaling": nothing})).theta, 5000.0);
    }
}

#[test]
fn yarn_has_its_defaults() {
    let parameters =
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "mscale": 0.7});
    let RopeKind::Yarn {
        factor,
        beta_fast,
        beta_slow,
        truncate,
        mscale,
        attention_factor,
        original_max_position_embeddings,
        ..
    } = rope(json!({"rope_parameters": parameters})).kind
    else {
        panic!("not yarn");
    };
    assert_eq!((factor, beta_fast, beta_slow, truncate), (4.0, 32.0, 1.0, true));
    assert_eq!((mscale, attention_factor, original_max_position_embeddings), (Some(0.7), None, 1024));
}

#[test]
fn phi_3s_factors_are_lists_and_its_length_is_at_the_top() {
    for name in ["longrope", "su"] {
        let scaling = rope(json!({
            "original_max_position_embeddings": 512,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"type": name, "short_factor": [1.0, 1.1], "long_factor": [1, 2.5]}
        }));
        assert_eq!(scaling.partial_rotary_factor, 0.75);
        assert_eq!(
            scaling.kind,
            RopeKind::LongRope {
                short_factor: vec![1.0, 1.1],
                long_factor: vec![1.0, 2.5],
                factor: None,
                attention_factor: None,
                original_max_position_embeddings: 512
            }
        );
    }
}

#[test]
fn gemma_3_of_old_has_a_base_for_sliding_layers() {
    let gemma = config(json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}));
    let full = gemma.rope_for("full_attention").unwrap();
    assert_eq!((full.theta, full.kind), (1e6, RopeKind::Linear { factor: 8.0 }));
    let sliding = gemma.rope_for("sliding_attention").unwrap();
    assert_eq!((sliding.theta, sliding.kind), (1e4, RopeKind::Default));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    #[rustfmt::skip]
    let table = [
        (json!({"rope_scaling": {"type": "mrope"}}), "rotary scaling of type \"mrope\" is not supported"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor is missing, expected a number"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "rope_scaling.factor is 0, expected a number above 0"),
        (json!({"rope_scaling": {"type": "linear", "factor": "2"}}), "rope_scaling.factor is \"2\""),
        (json!({"rope_scaling": "linear"}), "rope_scaling is \"linear\", expected an object"),
        (json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}), "rope_scaling.long_factor is missing"),
        (json!({"rope_scaling": {"type": "longrope", "short_factor": [-1.0], "long_factor": [1.0]}}), "short_factor is [-1.0], expected a list of numbers above 0"),
        (json!({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}), "high_freq_factor is 4, expected a number above low_freq_factor, which is 4"),
        (json!({"rope_theta": -1.0}), "rope_theta is -1.0, expected a number above 0"),
        (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor is 1.5, expected a number above 0 and at most 1"),
        (json!({"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}), "rope_parameters.full_attention is missing"),
    ];
    for (json, fragment) in table {
        let error = refused(json);
        assert!(error.contains(fragment), "{error}");
        assert!(error.starts_with("config.json: "), "{error}");
    }
}

#[test]
fn sections_name_their_place() {
    let config = config(json!({"text_config": {"hidden_size": 0, "model_type": "gemma3_text"}}));
    let text = config.section("text_config").unwrap().unwrap();
    assert_eq!(text.model_type, "gemma3_text");
    let error = text.usize("hidden_size").unwrap_err().to_string();
    assert!(error.contains("text_config.hidden_size is 0"), "{error}");
    assert!(config.section("vision_config").unwrap().is_none());
}
