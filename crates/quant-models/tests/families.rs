//! Every family and variant against a plain f64 rewrite of the model.

#![allow(clippy::cast_possible_truncation, reason = "token ids are small and f32 is what is compared")]

mod common;
#[path = "common/naive.rs"]
mod naive_model;

use common::{Tensors, all_logits, config, largest_difference, model_of, some_tokens, weights};
use quant_models::Config;
use serde_json::{Value, json};
use std::path::Path;

fn check(changes: Value) {
    let json = config(changes);
    let tensors = weights(&json, 7);
    let parsed = Config::from_json(&json, Path::new("config.json")).unwrap();
    let tokens = some_tokens(37, 40, 3);
    let found = all_logits(&model_of(&json, &tensors), &tokens);
    let expected: Vec<f32> = naive_model::logits(&parsed, &tensors, &tokens).iter().map(|v| *v as f32).collect();
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let difference = largest_difference(&found, &expected);
    assert!(largest > 1.0, "the logits say something: {largest}");
    assert!(difference < 2e-5 * largest, "{json}: logits up to {largest} differ by {difference}");
}

#[test]
fn llama_matches_the_plain_rewrite() {
    check(json!({}));
    check(json!({"tie_word_embeddings": true}));
    check(json!({"num_key_value_heads": 1}));
    check(json!({"num_key_value_heads": null}));
    check(json!({"head_dim": 6}));
    check(json!({"attention_bias": true, "mlp_bias": true}));
    check(json!({"partial_rotary_factor": 0.5}));
}

#[test]
fn the_other_families_match_the_plain_rewrite() {
    check(json!({"model_type": "mistral", "sliding_window": 5}));
    check(json!({"model_type": "mistral", "sliding_window": null}));
    check(json!({"model_type": "qwen2"}));
    check(json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1}));
    check(json!({"model_type": "qwen3", "head_dim": 10, "attention_bias": true}));
    check(json!({"model_type": "qwen3", "head_dim": 16, "use_sliding_window": true, "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"]}));
}

#[test]
fn every_activation_matches_its_formula() {
    for name in ["silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu"] {
        check(json!({"hidden_act": name}));
    }
}

#[test]
fn every_rotary_scaling_matches_the_plain_rewrite() {
    check(json!({"rope_theta": 500.0}));
    check(json!({"rope_scaling": {"type": "linear", "factor": 4.0}}));
    check(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16}));
    check(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}));
    check(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}));
    check(json!({"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}}));
}

/// Texts longer than the block of queries that attention works on, where masks meet block borders.
#[test]
fn long_texts_match_the_plain_rewrite_across_attention_blocks() {
    for window in [Value::Null, json!(100)] {
        let json = config(json!({"model_type": "mistral", "sliding_window": window, "num_hidden_layers": 1,
            "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}));
        let tensors = weights(&json, 1);
        let parsed = Config::from_json(&json, Path::new("config.json")).unwrap();
        let tokens = some_tokens(300, 40, 2);
        let found = all_logits(&model_of(&json, &tensors), &tokens);
        let expected: Vec<f32> = naive_model::logits(&parsed, &tensors, &tokens).iter().map(|v| *v as f32).collect();
        assert!(largest_difference(&found, &expected) < 2e-5, "window {window}");
    }
}

#[test]
fn grouped_heads_equal_their_expansion_to_one_head_each() {
    let grouped = config(json!({"num_attention_heads": 4, "num_key_value_heads": 2}));
    let tensors = weights(&grouped, 11);
    let mut expanded: Tensors = tensors.clone();
    for (name, (shape, values)) in &mut expanded {
        if name.contains("k_proj") || name.contains("v_proj") {
            let head = 8 * shape[1];
            *values = values.chunks(head).flat_map(|head| [head, head].concat()).collect();
            shape[0] *= 2;
        }
    }
    let tokens = some_tokens(20, 40, 5);
    let a = all_logits(&model_of(&grouped, &tensors), &tokens);
    let b = all_logits(&model_of(&config(json!({"num_key_value_heads": 4})), &expanded), &tokens);
    assert!(largest_difference(&a, &b) < 1e-5, "{}", largest_difference(&a, &b));
}
