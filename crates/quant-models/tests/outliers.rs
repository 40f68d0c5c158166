//! Injected outliers: the same logits, larger ranges.

#![allow(clippy::cast_possible_truncation, reason = "made-up numbers are small")]

mod common;
#[path = "common/naive_rwkv.rs"]
mod naive_rwkv;

use common::{all_logits, largest_difference, model_of, some_tokens, weights};
use quant_models::{Config, Decoder, Error, KeyValues, Observer, OutlierSite, Outliers};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn transformer(changes: Value) -> Decoder {
    let json = common::config(changes);
    model_of(&json, &weights(&json, 5))
}

fn rwkv(family: &str) -> Decoder {
    let json =
        json!({"model_type": family, "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "head_size": 8});
    let config = Config::from_json(&json, Path::new("config.json")).unwrap();
    model_of(&json, &naive_rwkv::weights(&config, 5, 5))
}

fn models() -> Vec<Decoder> {
    let experts = json!({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 20, "model_type": "qwen2_moe"});
    vec![
        transformer(json!({"attention_bias": true, "mlp_bias": true})),
        transformer(json!({"num_key_value_heads": 1, "partial_rotary_factor": 0.5})),
        transformer(json!({"model_type": "qwen2"})),
        transformer(json!({"model_type": "qwen3", "head_dim": 16})),
        transformer(experts),
        rwkv("rwkv6"),
        rwkv("rwkv7"),
    ]
}

/// The largest magnitude of each channel, by the name of what was watched.
#[derive(Default)]
struct Ranges(BTreeMap<String, Vec<f32>>);

impl Ranges {
    fn of(model: &Decoder, tokens: &[u32]) -> Self {
        let mut seen = Self::default();
        model.hidden(&[tokens], Some(&mut seen)).unwrap();
        seen
    }
    fn add(&mut self, name: String, width: usize, rows: &[f32]) {
        let ranges = self.0.entry(name).or_insert_with(|| vec![0.0; width]);
        for row in rows.chunks(width) {
            ranges.iter_mut().zip(row).for_each(|(range, x)| *range = range.max(x.abs()));
        }
    }
}

impl Observer for Ranges {
    fn input(&mut self, slot: &str, features: usize, input: &[f32]) {
        self.add(slot.to_owned(), features, input);
    }
    fn key_values(&mut self, rows: &KeyValues<'_>) {
        self.add(format!("keys {}", rows.layer), rows.geometry.key_width(), rows.keys);
        self.add(format!("values {}", rows.layer), rows.geometry.value_width(), rows.values);
    }
}

#[test]
fn powers_of_two_change_no_bit_of_the_logits_of_any_family() {
    use OutlierSite::{Inner, Keys, Norms, Values};
    let tokens = some_tokens(25, 40, 1);
    for model in models() {
        let before = all_logits(&model, &tokens);
        let sites: &[OutlierSite] =
            if model.config().rwkv.is_some() { &[Norms, Inner] } else { &[Norms, Inner, Values, Keys] };
        for site in sites {
            let mut hard = model.clone();
            let outliers = Outliers { site: *site, channels: 3, factor: 32.0, seed: 7 };
            assert!(!outliers.inject(&mut hard).unwrap().is_empty(), "something was scaled");
            assert_eq!(all_logits(&hard, &tokens), before, "{:?} {site:?}: not a bit differs", model.config().family);
            let changed = model.slots().zip(hard.slots()).filter(|(a, b)| a.weight().unwrap() != b.weight().unwrap());
            assert!(changed.count() > 0 || *site == Keys, "{site:?} changes weights");
            let mut odd = model.clone();
            Outliers { factor: 1.7, ..outliers }.inject(&mut odd).unwrap();
            let difference = largest_difference(&all_logits(&odd, &tokens), &before);
            assert!(difference > 0.0 && difference < 3e-5, "{site:?}: other factors round, by {difference}");
        }
    }
}

#[test]
fn the_chosen_channels_grow_by_the_factor_and_no_others() {
    let tokens = some_tokens(25, 40, 1);
    let at = |part: &str| format!("model.layers.1.{part}");
    for (site, raised, watched) in [
        (OutlierSite::Norms, at("input_layernorm.weight"), at("self_attn.k_proj")),
        (OutlierSite::Norms, at("post_attention_layernorm.weight"), at("mlp.up_proj")),
        (OutlierSite::Inner, at("mlp.up_proj"), at("mlp.down_proj")),
        (OutlierSite::Values, at("self_attn.v_proj"), "values 1".into()),
        (OutlierSite::Keys, at("self_attn.k_proj"), "keys 1".into()),
    ] {
        let model = transformer(json!({"model_type": "qwen2"}));
        let mut hard = model.clone();
        let injected = Outliers { site, channels: 2, factor: 64.0, seed: 3 }.inject(&mut hard).unwrap();
        let elements = &injected.iter().find(|found| found.name == raised).unwrap().elements;
        let (before, after) = (Ranges::of(&model, &tokens), Ranges::of(&hard, &tokens));
        assert_eq!(
            elements.len(),
            if site == OutlierSite::Keys { 4 } else { 2 },
            "a pair of a key head is one channel"
        );
        for (channel, (before, after)) in before.0[&watched].iter().zip(&after.0[&watched]).enumerate() {
            let factor = if elements.contains(&channel) { 64.0 } else { 1.0 };
            assert_eq!(before * factor, *after, "{site:?}: channel {channel} of {watched}");
        }
    }
}

#[test]
fn the_same_seed_draws_the_same_channels_alone_or_in_the_whole_model() {
    let outliers = Outliers { site: OutlierSite::Norms, channels: 4, factor: 8.0, seed: 9 };
    let model = transformer(json!({}));
    let whole = outliers.inject(&mut model.clone()).unwrap();
    let alone: Vec<_> = model.layers().iter().flat_map(|l| outliers.inject_layer(&mut l.clone()).unwrap()).collect();
    assert_eq!(whole, alone);
    assert_ne!(
        whole,
        Outliers { seed: 10, ..outliers }.inject(&mut model.clone()).unwrap(),
        "another seed, other channels"
    );
    assert_ne!(whole[0].elements, whole[2].elements, "another layer, other channels");
}

#[test]
fn what_cannot_be_scaled_is_refused_and_changes_nothing() {
    let model = transformer(json!({}));
    let tokens = some_tokens(9, 40, 1);
    let before = all_logits(&model, &tokens);
    let good = Outliers { site: OutlierSite::Inner, channels: 1, factor: 2.0, seed: 0 };
    for (bad, name) in [
        (Outliers { channels: 0, ..good }, "channels"),
        (Outliers { channels: 49, ..good }, "channels"),
        (Outliers { factor: 0.0, ..good }, "factor"),
        (Outliers { factor: f32::NAN, ..good }, "factor"),
        (Outliers { factor: f32::INFINITY, ..good }, "factor"),
    ] {
        let mut hard = model.clone();
        let error = bad.inject(&mut hard).unwrap_err();
        assert!(matches!(&error, Error::BadSetting { name: found, .. } if *found == name), "{error}");
        assert_eq!(all_logits(&hard, &tokens), before, "unchanged");
    }
    let mut hard = model.clone();
    let mut overflow = Outliers { factor: 1e30, ..good };
    overflow.inject(&mut hard).unwrap();
    let once = all_logits(&hard, &tokens);
    overflow.factor = 1e38;
    let error = overflow.inject(&mut hard).unwrap_err();
    assert!(matches!(&error, Error::NonFiniteWeight { name, .. } if name == "model.layers.0.mlp.up_proj"), "{error}");
    assert_eq!(all_logits(&hard, &tokens), once, "unchanged");
    let error = Outliers { site: OutlierSite::Values, ..good }.inject(&mut rwkv("rwkv7")).unwrap_err();
    assert_eq!(error.to_string(), "site is Values, expected a site that the family has");
}
