//! Mixtures of experts: every family and layout against a plain f64 rewrite, routing, and what can be wrong.

#![allow(clippy::cast_possible_truncation, reason = "token ids are small and f32 is what is compared")]

mod common;
#[path = "common/naive.rs"]
mod naive_model;

use common::{Tensors, all_logits, largest_difference, model_of, some_tokens, weights, write_folder};
use quant_models::eval::{WindowOptions, Windows, perplexity};
use quant_models::{
    Config, Decoder, Error, Generate, KeyValues, KvState, Observer, Role, Routing, Sampling, Text, generate,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// A configuration of a family with experts; `changes` are laid over it.
fn config(family: &str, changes: Value) -> Value {
    let mut base = match family {
        "mixtral" => json!({"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 24}),
        "qwen2_moe" => json!({"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20}),
        "qwen3_moe" => json!({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "norm_topk_prob": true, "head_dim": 8}),
        "deepseek" => json!({"n_routed_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 8,
            "n_shared_experts": 2, "first_k_dense_replace": 1, "num_hidden_layers": 3, "norm_topk_prob": false}),
        _ => panic!("{family} has no experts"),
    };
    base["model_type"] = json!(family);
    changes.as_object().unwrap().iter().for_each(|(key, value)| base[key] = value.clone());
    common::config(base)
}

const FAMILIES: [&str; 4] = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek"];

fn check(family: &str, changes: Value) {
    let json = config(family, changes);
    let tensors = weights(&json, 7);
    let parsed = Config::from_json(&json, Path::new("config.json")).unwrap();
    let tokens = some_tokens(37, 40, 3);
    let expected: Vec<f32> = naive_model::logits(&parsed, &tensors, &tokens).iter().map(|v| *v as f32).collect();
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    assert!(largest > 1.0, "the logits say something: {largest}");
    for tensors in [tensors.clone(), stacked(&tensors)] {
        let difference = largest_difference(&all_logits(&model_of(&json, &tensors), &tokens), &expected);
        assert!(difference < 2e-5 * largest, "{json}: logits up to {largest} differ by {difference}");
    }
}

/// Matrices of one stacked tensor, by expert and half.
type Stack = BTreeMap<(usize, u8), (Vec<usize>, Vec<f32>)>;

/// The same weights with all experts of a layer in two tensors, as transformers 5 holds them.
fn stacked(tensors: &Tensors) -> Tensors {
    let mut out = Tensors::new();
    let mut parts: BTreeMap<String, Stack> = BTreeMap::new();
    for (name, tensor) in tensors {
        let name = name.replace("block_sparse_moe", "mlp");
        let Some((front, rest)) = name.split_once(".experts.") else {
            out.insert(name, tensor.clone());
            continue;
        };
        let (index, part) = rest.split_once('.').unwrap();
        let (target, half) = match part {
            "w1.weight" | "gate_proj.weight" => ("gate_up_proj", 0),
            "w3.weight" | "up_proj.weight" => ("gate_up_proj", 1),
            _ => ("down_proj", 0),
        };
        let place = parts.entry(format!("{front}.experts.{target}")).or_default();
        place.insert((index.parse().unwrap(), half), tensor.clone());
    }
    for (name, parts) in parts {
        let experts = parts.keys().map(|(expert, _)| expert + 1).max().unwrap();
        let columns = parts.values().next().unwrap().0[1];
        let values: Vec<f32> = parts.into_values().flat_map(|(_, values)| values).collect();
        out.insert(name, (vec![experts, values.len() / experts / columns, columns], values));
    }
    out
}

#[test]
fn every_family_matches_the_plain_rewrite_in_both_layouts() {
    for family in FAMILIES {
        check(family, json!({}));
        check(family, json!({"num_experts_per_tok": 1}));
    }
    check("mixtral", json!({"num_experts_per_tok": 5}));
    check("mixtral", json!({"sliding_window": 6}));
    check("qwen2_moe", json!({"norm_topk_prob": true}));
    check("qwen2_moe", json!({"qkv_bias": false}));
    check("qwen2_moe", json!({"decoder_sparse_step": 2, "num_hidden_layers": 4}));
    check("qwen3_moe", json!({"norm_topk_prob": false, "mlp_only_layers": [1]}));
    check("qwen3_moe", json!({"head_dim": null, "attention_bias": true}));
    check("deepseek", json!({"norm_topk_prob": true, "n_shared_experts": null}));
    check("deepseek", json!({"first_k_dense_replace": 0, "moe_layer_freq": 2}));
}

#[test]
fn keys_say_which_layers_are_mixtures() {
    let layers = |family, changes| {
        let json = config(family, changes);
        Config::from_json(&json, Path::new("config.json")).unwrap().mixture.map(|mixture| mixture.layers)
    };
    assert_eq!(layers("deepseek", json!({})), Some(vec![false, true, true]));
    let stepped = json!({"decoder_sparse_step": 2, "num_hidden_layers": 4, "mlp_only_layers": [3]});
    assert_eq!(layers("qwen2_moe", stepped), Some(vec![false, true, false, false]));
    assert_eq!(layers("qwen3_moe", json!({"num_experts": 0})), None, "no experts, no mixture");
    assert_eq!(layers("deepseek", json!({"n_routed_experts": null})), None);
}

/// What the routing observer was shown of each layer, and what each slot saw.
#[derive(Default)]
struct Seen {
    layers: Vec<Chosen>,
    inputs: BTreeMap<String, Vec<f32>>,
}

struct Chosen {
    layer: usize,
    counts: Vec<u64>,
    logits: Vec<f32>,
    tokens: Vec<Vec<(usize, f32)>>,
    ids: Vec<usize>,
}

impl Observer for Seen {
    fn input(&mut self, slot: &str, features: usize, input: &[f32]) {
        assert!(input.len().is_multiple_of(features) && !input.is_empty(), "{slot} sees whole rows");
        self.inputs.insert(slot.to_owned(), input.to_vec());
    }
    fn routing(&mut self, routing: &Routing<'_>) {
        self.layers.push(Chosen {
            layer: routing.layer,
            counts: routing.counts(),
            logits: routing.logits.to_vec(),
            tokens: (0..routing.experts).map(|expert| routing.tokens_of(expert).collect()).collect(),
            ids: routing.ids.to_vec(),
        });
    }
}

#[test]
fn the_routing_that_is_observed_is_the_one_that_is_followed() {
    for (family, renormalized) in [("mixtral", true), ("qwen2_moe", false), ("qwen3_moe", true), ("deepseek", false)] {
        let json = config(family, json!({}));
        let model = model_of(&json, &weights(&json, 3));
        let mixture = model.config().mixture.clone().unwrap();
        let (a, b) = (some_tokens(20, 40, 1), some_tokens(7, 40, 2));
        let mut seen = Seen::default();
        model.hidden(&[&a, &b], Some(&mut seen)).unwrap();
        let layers: Vec<usize> = seen.layers.iter().map(|chosen| chosen.layer).collect();
        let expected: Vec<usize> = (0..mixture.layers.len()).filter(|layer| mixture.layers[*layer]).collect();
        assert_eq!(layers, expected, "the layers that are mixtures");
        for chosen in &seen.layers {
            let name = if family == "mixtral" { "block_sparse_moe" } else { "mlp" };
            let at = |part: &str| format!("model.layers.{}.{name}.{part}", chosen.layer);
            let rows = &seen.inputs[&at("gate")];
            assert_eq!(
                chosen.counts.iter().sum::<u64>(),
                27 * mixture.top_k as u64,
                "each token goes to top_k experts"
            );
            let mut gates = [0.0; 27];
            for (expert, tokens) in chosen.tokens.iter().enumerate() {
                assert_eq!(tokens.len() as u64, chosen.counts[expert]);
                let first = if family == "mixtral" { "w1" } else { "gate_proj" };
                let input = seen.inputs.get(&at(&format!("experts.{expert}.{first}")));
                let own: Vec<f32> = tokens.iter().flat_map(|(token, _)| rows[token * 32..][..32].to_vec()).collect();
                assert_eq!(input.cloned().unwrap_or_default(), own, "expert {expert} sees its tokens in rising order");
                tokens.iter().for_each(|(token, gate)| gates[*token] += gate);
            }
            for (token, logits) in chosen.logits.chunks(mixture.experts).enumerate() {
                let ids = &chosen.ids[token * mixture.top_k..][..mixture.top_k];
                let least = ids.iter().map(|id| logits[*id]).fold(f32::INFINITY, f32::min);
                let others = (0..mixture.experts).filter(|id| !ids.contains(id)).map(|id| logits[id]);
                assert!(others.fold(f32::NEG_INFINITY, f32::max) <= least, "the largest logits are chosen");
                assert!(ids.windows(2).all(|pair| logits[pair[0]] >= logits[pair[1]]), "likeliest first");
                let total: f32 = logits.iter().map(|l| l.exp()).sum();
                let share: f32 = ids.iter().map(|id| logits[*id].exp() / total).sum();
                let expected = if renormalized { 1.0 } else { share };
                assert!((gates[token] - expected).abs() < 1e-5, "gates sum to {} not {expected}", gates[token]);
            }
        }
    }
}

#[test]
fn texts_read_in_parts_or_with_others_are_routed_as_alone() {
    for family in FAMILIES {
        let json = config(family, json!({}));
        let model = model_of(&json, &weights(&json, 4));
        let texts = [some_tokens(5, 40, 1), some_tokens(17, 40, 2)];
        let hidden = model.hidden(&[&texts[0], &texts[1]], None).unwrap();
        let batch = model.logits(&hidden, 0..22).unwrap();
        let single = texts.iter().flat_map(|text| all_logits(&model, text)).collect::<Vec<_>>();
        assert!(largest_difference(&batch, &single) < 2e-5, "{family}: {}", largest_difference(&batch, &single));
        let mut cache = KvState::plain(model.config());
        let mut parts = Vec::new();
        for part in texts[1].chunks(3) {
            let hidden = model.extend(part, &mut cache, None).unwrap();
            parts.extend(model.logits(&hidden, 0..part.len()).unwrap());
        }
        assert!(largest_difference(&parts, &single[5 * 40..]) < 2e-5, "{family} read in parts");
    }
}

#[test]
fn slots_name_routers_experts_and_shared_experts() {
    let json = config("qwen2_moe", json!({"num_hidden_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}));
    let tensors = weights(&json, 5);
    let at = |part: &str| format!("model.layers.0.{part}");
    let model = model_of(&json, &tensors);
    let groups: Vec<Vec<(String, Role)>> = model.layers()[0]
        .groups()
        .iter()
        .map(|group| group.iter().map(|slot| (slot.name().to_owned(), slot.role())).collect())
        .collect();
    let named = |parts: &[(&str, Role)]| parts.iter().map(|(part, role)| (at(part), *role)).collect::<Vec<_>>();
    assert_eq!(
        groups[2..4],
        [
            named(&[
                ("mlp.gate", Role::Router),
                ("mlp.shared_expert_gate", Role::Router),
                ("mlp.shared_expert.gate_proj", Role::SharedExpert),
                ("mlp.shared_expert.up_proj", Role::SharedExpert),
            ]),
            named(&[("mlp.shared_expert.down_proj", Role::SharedExpert)]),
        ]
    );
    assert_eq!(
        groups[6..],
        [
            named(&[("mlp.experts.1.gate_proj", Role::Expert(1)), ("mlp.experts.1.up_proj", Role::Expert(1))]),
            named(&[("mlp.experts.1.down_proj", Role::Expert(1))]),
        ]
    );
    for tensors in [tensors.clone(), stacked(&tensors)] {
        let model = model_of(&json, &tensors);
        for slot in model.slots() {
            let (shape, values) = &tensors[&slot.origin().tensor];
            let columns = shape[shape.len() - 1];
            let stored = &values[slot.origin().rows.start * columns..slot.origin().rows.end * columns];
            assert_eq!(slot.weight().unwrap(), stored, "{} lies where it says", slot.name());
        }
    }
}

#[test]
fn missing_experts_and_routers_of_another_size_are_named() {
    for family in FAMILIES {
        let json = config(family, json!({}));
        let tensors = weights(&json, 6);
        let open = |tensors: &Tensors| {
            let folder = tempfile::tempdir().unwrap();
            write_folder(folder.path(), &json, tensors);
            Decoder::open(folder.path()).unwrap_err()
        };
        for tensors in [tensors.clone(), stacked(&tensors)] {
            for name in tensors.keys().filter(|name| name.contains("mlp") || name.contains("moe")) {
                let mut fewer = tensors.clone();
                fewer.remove(name);
                let error = open(&fewer);
                // Without its first tensor a layout is not recognized, and the first tensor of the usual one is named.
                let layer = &name[..name.find("layers.").unwrap() + 9];
                assert!(
                    matches!(&error, Error::MissingTensor { name, .. } if name.starts_with(layer)),
                    "{name}: {error}"
                );
                if name.contains("experts.1") || name.contains("shared") {
                    assert!(
                        matches!(&error, Error::MissingTensor { name: found, .. } if found == name),
                        "{name}: {error}"
                    );
                }
                let mut other = tensors.clone();
                let (shape, values) = other.get_mut(name).unwrap();
                shape[0] += 1;
                values.resize(shape.iter().product(), 0.0);
                let error = open(&other);
                assert!(matches!(&error, Error::WeightShape { name: found, .. } if found == name), "{name}: {error}");
            }
        }
    }
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    for (family, changes, key) in [
        ("mixtral", json!({"num_experts_per_tok": 6}), "num_experts_per_tok"),
        ("mixtral", json!({"num_experts_per_tok": 0}), "num_experts_per_tok"),
        ("mixtral", json!({"num_local_experts": 1000000}), "num_local_experts"),
        ("qwen2_moe", json!({"num_experts_per_tok": 7}), "num_experts_per_tok"),
        ("qwen2_moe", json!({"mlp_only_layers": [2]}), "mlp_only_layers"),
        ("qwen2_moe", json!({"mlp_only_layers": ["all"]}), "mlp_only_layers"),
        ("qwen2_moe", json!({"decoder_sparse_step": 0}), "decoder_sparse_step"),
        ("qwen3_moe", json!({"norm_topk_prob": "yes"}), "norm_topk_prob"),
        ("deepseek", json!({"scoring_func": "sigmoid"}), "scoring_func"),
        ("deepseek", json!({"topk_method": "group_limited_greedy"}), "topk_method"),
        ("deepseek", json!({"routed_scaling_factor": 16.0}), "routed_scaling_factor"),
        ("deepseek", json!({"first_k_dense_replace": -1}), "first_k_dense_replace"),
        ("deepseek", json!({"n_shared_experts": 16000, "moe_intermediate_size": 16000}), "n_shared_experts"),
    ] {
        let error = Config::from_json(&config(family, changes), Path::new("config.json")).unwrap_err();
        assert!(matches!(&error, Error::BadValue { key: found, .. } if found == key), "{key}: {error}");
    }
    for (family, key) in [
        ("mixtral", "num_local_experts"),
        ("qwen2_moe", "moe_intermediate_size"),
        ("qwen2_moe", "shared_expert_intermediate_size"),
        ("qwen3_moe", "num_experts"),
        ("deepseek", "num_experts_per_tok"),
    ] {
        let error = Config::from_json(&config(family, json!({key: null})), Path::new("config.json")).unwrap_err();
        assert!(matches!(&error, Error::MissingKey { key: found, .. } if found == key), "{key}: {error}");
    }
}

#[test]
fn it_is_evaluated_and_writes_like_any_other_model() {
    let json = config("qwen2_moe", json!({"vocab_size": 256}));
    let model = model_of(&json, &weights(&json, 8));
    let text = Text::Bytes.encode(b"a text of some bytes that a random model finds as likely as any other").unwrap();
    let windows = Windows::of_text(&text, WindowOptions::new(20)).unwrap();
    assert!(perplexity(&model, &windows, &mut |_| {}).unwrap().perplexity() > 10.0, "nothing was learned");
    let options = Generate { max_tokens: 9, sampling: Sampling::GREEDY, stop: vec![] };
    let mut cache = KvState::plain(model.config());
    let written = generate(&model, &text.ids[..30], &mut cache, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((written.len(), cache.len()), (9, 38), "the last byte is not yet in the cache");
}

/// Keys before and after the turn, values and positions of each layer.
struct Rows(Vec<(usize, Vec<usize>, [Vec<f32>; 3])>);

impl Observer for Rows {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}
    fn key_values(&mut self, rows: &KeyValues<'_>) {
        let parts = [rows.keys_before_turn, rows.keys, rows.values].map(<[f32]>::to_vec);
        self.0.push((rows.layer, rows.positions.to_vec(), parts));
    }
}

#[test]
fn keys_and_values_are_observed_before_and_after_the_turn() {
    let json = config("qwen3_moe", json!({}));
    let model = model_of(&json, &weights(&json, 9));
    let (a, b) = (some_tokens(6, 40, 1), some_tokens(3, 40, 2));
    let mut seen = Rows(Vec::new());
    model.hidden(&[&a, &b], Some(&mut seen)).unwrap();
    let mut cache = KvState::plain(model.config());
    let mut later = Rows(Vec::new());
    model.extend(&a[..4], &mut cache, None).unwrap();
    model.extend(&a[4..], &mut cache, Some(&mut later)).unwrap();
    let width = model.config().kv_geometry().key_width();
    assert_eq!(seen.0.len(), 2, "one call a layer");
    for ((layer, positions, [before, keys, values]), later) in seen.0.iter().zip(&later.0) {
        assert_eq!(positions[..], [0, 1, 2, 3, 4, 5, 0, 1, 2], "positions in each text");
        assert_eq!((*layer, before.len(), values.len()), (later.0, 9 * width, 9 * width));
        for (row, position) in positions.iter().enumerate() {
            let (before, keys) = (&before[row * width..][..width], &keys[row * width..][..width]);
            let mut turned = before.to_vec();
            model.config().rope.table(0, 9).turn(*position, model.config().head_dim, &mut turned);
            assert_eq!(turned, keys, "the turn is all that lies between them");
            assert_eq!(*position == 0, before == keys, "position 0 is not turned");
        }
        assert_eq!(later.1, [4, 5], "a cache continues the positions");
        assert!(largest_difference(&later.2[1], &keys[4 * width..6 * width]) < 1e-5, "and gives the same keys");
    }
}

#[test]
fn experts_applied_compressed_give_the_same_bits_together_and_one_by_one() {
    let json = config("qwen2_moe", json!({}));
    for apply in [quant_models::Apply::Direct, quant_models::Apply::Prepared] {
        let mut model = model_of(&json, &weights(&json, 7));
        let experts: Vec<String> = model
            .slots()
            .filter(|slot| matches!(slot.role(), Role::Expert(_)))
            .map(|slot| slot.name().to_owned())
            .collect();
        for (index, name) in experts.iter().enumerate() {
            let format: quant_core::Format = ["int4-g32-asym", "int8", "mxfp4"][index % 3].parse().unwrap();
            let slot = model.slot_mut(name).unwrap();
            let weight = slot.weight().unwrap();
            let tensor = quant_core::Shaped::new(&weight, &slot.shape()).unwrap();
            let packed = quant_core::PackedTensor::encode(format, &tensor).unwrap();
            slot.set_linear(std::sync::Arc::new(packed), apply).unwrap();
        }
        let tokens = some_tokens(37, 40, 3);
        let mut seen = 0;
        let mut observer = |_: &str, _: usize, _: &[f32]| seen += 1;
        let watched = model.hidden(&[&tokens], Some(&mut observer)).unwrap();
        let together = model.hidden(&[&tokens], None).unwrap();
        assert!(seen > experts.len() / 2, "the watched pass ran expert by expert");
        assert_eq!(model.logits(&watched, 0..37).unwrap(), model.logits(&together, 0..37).unwrap(), "{apply:?}");
    }
}
