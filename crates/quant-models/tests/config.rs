//! Every way in which `config.json` can be wrong, and what it means when it is right.

mod common;

use common::config;
use quant_models::{Activation, Config, Error, Family, RopeScaling};
use serde_json::{Value, json};
use std::path::Path;

fn read(changes: Value) -> Result<Config, Error> {
    Config::from_json(&config(changes), Path::new("folder/config.json"))
}

#[test]
fn a_configuration_means_what_transformers_makes_of_it() {
    let llama = read(json!({"bos_token_id": 1, "eos_token_id": [2, 3], "num_key_value_heads": null})).unwrap();
    assert_eq!((llama.family, llama.heads, llama.kv_heads, llama.head_dim), (Family::Llama, 4, 4, 8));
    assert_eq!((llama.bos, llama.eos.as_slice()), (Some(1), &[2, 3][..]));
    assert!(!llama.tied_head && !llama.qkv_bias && !llama.output_bias && !llama.mlp_bias && !llama.qk_norm);
    assert_eq!(llama.activation, Activation::Silu);
    assert_eq!(llama.windows, [None, None]);
    assert_eq!(read(json!({"hidden_act": null})).unwrap().activation, Activation::Silu, "the default");

    let qwen2 = read(json!({"model_type": "qwen2", "sliding_window": 8})).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
    assert_eq!(qwen2.windows, [None, None], "the window is off unless use_sliding_window is set");
    let qwen3 = read(json!({"model_type": "qwen3"})).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias), (128, true, false), "that family's own default size");
    let mistral = read(json!({"model_type": "mistral", "sliding_window": 8, "attention_bias": true})).unwrap();
    assert_eq!((mistral.windows.as_slice(), mistral.qkv_bias), (&[Some(8), Some(8)][..], false));
    let both = json!({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}});
    let rope = read(both).unwrap().rope;
    assert_eq!((rope.theta, rope.scaling), (7.0, RopeScaling::Default), "the newer key wins");
    let yarn = read(json!({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 16}})).unwrap().rope;
    assert!(matches!(yarn.scaling, RopeScaling::Yarn { factor: 4.0, original_positions: 16, .. }), "{yarn:?}");
}

#[test]
fn end_tokens_of_the_generation_config_are_added() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config(json!({"eos_token_id": 2})).to_string()).unwrap();
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [2, 7]}"#).unwrap();
    assert_eq!(Config::from_folder(folder.path()).unwrap().eos, [2, 7]);
}

#[test]
fn missing_keys_are_named_with_their_file() {
    for key in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    ] {
        for absent in [true, false] {
            let mut json = config(json!({}));
            if absent {
                json.as_object_mut().unwrap().remove(key);
            } else {
                json[key] = Value::Null;
            }
            let error = Config::from_json(&json, Path::new("folder/config.json")).unwrap_err();
            assert!(matches!(&error, Error::MissingKey { key: found, .. } if found == key), "{key}: {error}");
            assert_eq!(error.to_string(), format!("folder/config.json: the key `{key}` is missing"));
        }
    }
    let error = read(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})).unwrap_err();
    assert!(matches!(&error, Error::MissingKey { key, .. } if key == "rope_scaling.low_freq_factor"), "{error}");
}

#[test]
fn wrong_values_are_named_with_what_would_be_right() {
    let cases = [
        (json!({"model_type": "mamba"}), "model_type", "one of llama, mistral, qwen2, qwen3"),
        (json!({"model_type": 7}), "model_type", "a string"),
        (json!({"hidden_size": "wide"}), "hidden_size", "a whole number"),
        (json!({"hidden_size": 0}), "hidden_size", "from 1 to"),
        (json!({"hidden_size": -1}), "hidden_size", "from 1 to"),
        (json!({"hidden_size": 32.5}), "hidden_size", "a whole number"),
        (json!({"hidden_size": u64::MAX}), "hidden_size", "from 1 to"),
        (json!({"vocab_size": 1_u64 << 40}), "vocab_size", "from 1 to 16777216"),
        (json!({"num_hidden_layers": 1_000_000}), "num_hidden_layers", "from 1 to 4096"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads", "a divisor of num_attention_heads, which is 4"),
        (
            json!({"num_attention_heads": 5, "num_key_value_heads": 5}),
            "num_attention_heads",
            "a divisor of hidden_size",
        ),
        (json!({"num_attention_heads": 32, "num_key_value_heads": 32}), "num_attention_heads", "even size"),
        (json!({"head_dim": 7}), "head_dim", "even size"),
        (json!({"head_dim": 16_000_000}), "num_attention_heads", "in all"),
        (json!({"hidden_act": "mish"}), "hidden_act", "one of silu"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps", "above zero"),
        (json!({"rms_norm_eps": 2.0}), "rms_norm_eps", "below 1"),
        (json!({"rms_norm_eps": 1e-60}), "rms_norm_eps", "an f32 above 0"),
        (json!({"rope_theta": -1.0}), "rope_theta", "above zero"),
        (json!({"rope_theta": 1.0}), "rope_theta", "above 1"),
        (json!({"rope_parameters": {"rope_theta": 0.5}}), "rope_parameters.rope_theta", "above 1"),
        (json!({"rope_scaling": 3}), "rope_scaling", "an object"),
        (json!({"rope_scaling": {"type": "longrope"}}), "rope_scaling.type", "one of default"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0}}), "rope_scaling.factor", "above zero"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                "original_max_position_embeddings": 16}}),
            "rope_scaling.high_freq_factor",
            "more than low_freq_factor",
        ),
        (json!({"rope_scaling": {"type": "yarn", "beta_fast": 1.0}}), "rope_scaling.beta_fast", "more than beta_slow"),
        (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor", "a share of the head size 8"),
        (json!({"partial_rotary_factor": 0.4}), "partial_rotary_factor", "even number"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings", "true or false"),
        (json!({"bos_token_id": 40}), "bos_token_id", "below vocab_size, which is 40"),
        (json!({"eos_token_id": "</s>"}), "eos_token_id", "a token id or a list"),
        (json!({"model_type": "mistral", "sliding_window": 0}), "sliding_window", "from 1"),
        (
            json!({"model_type": "mistral", "sliding_window": 4, "layer_types": ["full_attention"]}),
            "layer_types",
            "2 entries",
        ),
        (
            json!({"model_type": "mistral", "sliding_window": 4, "layer_types": ["full_attention", "linear"]}),
            "layer_types",
            "full_attention or sliding_attention",
        ),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4, "max_window_layers": "all"}),
            "max_window_layers",
            "a whole number",
        ),
    ];
    for (changes, key, expected) in cases {
        let error = read(changes.clone()).unwrap_err();
        assert!(matches!(&error, Error::BadValue { key: found, .. } if found == key), "{changes}: {error}");
        let text = error.to_string();
        assert!(text.starts_with("folder/config.json: ") && text.contains(expected), "{text}");
        assert!(!text.contains('\n') && text.len() < 250, "one line: {text}");
    }
}

#[test]
fn files_that_are_no_configuration_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Config::from_folder(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("config.json")), "{error}");
    for text in ["", "{", "{\"model_type\": \"llama\",}", "\u{feff}{}", &"[".repeat(100_000)] {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let error = Config::from_folder(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::Json { path, .. } if path.ends_with("config.json")), "{error}");
    }
    std::fs::write(folder.path().join("config.json"), "[1, 2]").unwrap();
    let error = Config::from_folder(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::BadValue { expected, .. } if expected == "a JSON object"), "{error}");
}

#[test]
fn no_value_under_any_key_makes_reading_or_rotating_panic() {
    let strange = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(1e-300),
        json!(1e300),
        json!(u64::MAX),
        json!(0.5),
        json!(""),
        json!("linear"),
        json!([]),
        json!([1, "x", null]),
        json!({}),
        json!({"rope_type": "yarn", "factor": 1e300, "beta_fast": 1e300, "beta_slow": 1e-300}),
        json!({"rope_type": "yarn", "factor": 1e-300, "original_max_position_embeddings": 1}),
        json!({"rope_type": "dynamic", "factor": 1e-300, "original_max_position_embeddings": 1}),
        json!({"type": "llama3", "factor": 1e300, "low_freq_factor": 1e-300, "high_freq_factor": 1e300,
            "original_max_position_embeddings": 1}),
    ];
    let base = json!({"rope_scaling": null, "rope_parameters": null, "head_dim": null, "bos_token_id": null,
        "eos_token_id": null, "sliding_window": 4, "use_sliding_window": true, "layer_types": null, "attention_bias": null,
        "mlp_bias": null, "max_window_layers": null, "partial_rotary_factor": null});
    let (mut accepted, mut refused) = (0, 0);
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let mut whole = config(base.clone());
        whole["model_type"] = json!(family);
        for key in whole.as_object().unwrap().keys().cloned().collect::<Vec<_>>() {
            for value in &strange {
                let mut changed = whole.clone();
                changed[&key] = value.clone();
                match Config::from_json(&changed, Path::new("config.json")) {
                    Ok(config) => {
                        accepted += 1;
                        let table = config.rope.table(0, 3);
                        let mut head = vec![1.0; config.head_dim];
                        table.turn(2, config.head_dim, &mut head);
                    }
                    Err(error) => {
                        refused += 1;
                        assert!(error.to_string().contains("config.json"), "{key}: {error}");
                    }
                }
            }
        }
    }
    assert!(accepted > 100 && refused > 500, "{accepted} accepted, {refused} refused");
}
