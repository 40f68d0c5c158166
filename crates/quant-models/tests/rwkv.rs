//! RWKV-6 and RWKV-7: against a plain f64 recurrence, against expected logits that are at hand, and in parts.

#![allow(clippy::cast_possible_truncation, reason = "token ids are small and f32 is what is compared")]

mod common;
#[path = "common/naive_rwkv.rs"]
mod naive_rwkv;

use common::{Noise, Tensors, all_logits, largest_difference, model_of, shared, some_tokens};
use quant_core::{Format, PackedTensor, Shaped};
use quant_models::eval::{WindowOptions, Windows, perplexity};
use quant_models::{
    Apply, Config, Decoder, Error, Family, Generate, KvState, Observer, Role, Sampling, Text, generate,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

fn config(family: &str, changes: Value) -> Value {
    let mut base =
        json!({"model_type": family, "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "head_size": 8});
    changes.as_object().unwrap().iter().for_each(|(key, value)| base[key] = value.clone());
    base
}

fn parsed(json: &Value) -> Config {
    Config::from_json(json, Path::new("config.json")).unwrap()
}

/// Low-rank tensors turned to `[out, in]`.
fn output_major(tensors: &Tensors) -> Tensors {
    let turned = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or_default();
        name.contains(".att.") && !name.ends_with(".weight") && last.ends_with(['1', '2'])
    };
    let turn = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
        let (mut shape, mut values) = (shape.clone(), values.clone());
        if turned(name) {
            let [rows, columns] = shape[shape.len() - 2..] else { panic!("{name} is no matrix") };
            let transpose = |matrix: &[f32]| -> Vec<f32> {
                (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| matrix[r * columns + c])
                    .collect()
            };
            values = values.chunks(rows * columns).flat_map(transpose).collect();
            let end = shape.len();
            shape.swap(end - 1, end - 2);
        }
        (name.clone(), (shape, values))
    };
    tensors.iter().map(turn).collect()
}

fn expect(json: &Value, tensors: &Tensors, model: &Decoder) {
    let tokens = some_tokens(33, 40, 3);
    let found = all_logits(model, &tokens);
    let expected: Vec<f32> = naive_rwkv::logits(&parsed(json), tensors, &tokens).iter().map(|v| *v as f32).collect();
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let difference = largest_difference(&found, &expected);
    println!("{json}: logits up to {largest} differ by {difference:.1e}");
    assert!(largest > 1.0, "the logits say something: {largest}");
    assert!(difference < 3e-5 * largest, "{json}: logits up to {largest} differ by {difference}");
}

#[test]
fn both_versions_match_the_plain_recurrence_in_either_layout() {
    for family in ["rwkv6", "rwkv7"] {
        for (changes, rank) in [
            (json!({}), 5),
            (json!({"head_size": 24, "num_hidden_layers": 1}), 7),
            (json!({"intermediate_size": 40}), 30),
            // The rank is the width, so that no shape tells the layout.
            (json!({"low_rank_layout": "input_major"}), 24),
        ] {
            let json = config(family, changes);
            let mut tensors = naive_rwkv::weights(&parsed(&json), rank, 5);
            if rank == 24 {
                for name in ["att.g", "att.time_decay_w"] {
                    square(&mut tensors, name);
                }
            }
            expect(&json, &tensors, &model_of(&json, &tensors));
            let mut turned = json.clone();
            turned["low_rank_layout"] = json!("output_major");
            expect(&json, &tensors, &model_of(&turned, &output_major(&tensors)));
        }
    }
}

/// Cuts the rank of a pair down to the width of 24.
fn square(tensors: &mut Tensors, pair: &str) {
    for layer in 0..3 {
        for half in ["1", "2"] {
            let name = format!("blocks.{layer}.{pair}{half}");
            if tensors.contains_key(&name) {
                tensors.insert(name, (vec![24, 24], Noise(layer).values(24 * 24, 0.3)));
            }
        }
    }
}

#[test]
fn vectors_may_be_stacked_and_of_any_shape() {
    let json = config("rwkv7", json!({}));
    let tensors = naive_rwkv::weights(&parsed(&json), 5, 6);
    let mut stacked = tensors.clone();
    for layer in 0..3 {
        let parts = ["r", "w", "k", "v", "a", "g"].map(|part| format!("blocks.{layer}.att.x_{part}"));
        let values = parts.iter().flat_map(|part| stacked.remove(part).unwrap().1).collect();
        stacked.insert(format!("blocks.{layer}.att.x_rwkvag"), (vec![6, 1, 24], values));
        stacked.get_mut(&format!("blocks.{layer}.att.w0")).unwrap().0 = vec![24];
        stacked.get_mut(&format!("blocks.{layer}.att.r_k")).unwrap().0 = vec![24];
    }
    let tokens = some_tokens(20, 40, 1);
    assert_eq!(all_logits(&model_of(&json, &stacked), &tokens), all_logits(&model_of(&json, &tensors), &tokens));
}

#[test]
fn any_cutting_of_a_text_gives_the_logits_of_the_whole() {
    for family in ["rwkv6", "rwkv7"] {
        let json = config(family, json!({}));
        let model = model_of(&json, &naive_rwkv::weights(&parsed(&json), 5, 7));
        let tokens = some_tokens(41, 40, 1);
        let whole = all_logits(&model, &tokens);
        let mut cache = KvState::plain(model.config());
        let empty = cache.bytes();
        for sizes in [&[1][..], &[2], &[7], &[40, 1], &[41], &[3, 1, 1, 9]] {
            cache.reset();
            let mut parts = Vec::new();
            let mut rest = tokens.as_slice();
            for size in sizes.iter().cycle() {
                let (part, after) = rest.split_at((*size).min(rest.len()));
                let hidden = model.extend(part, &mut cache, None).unwrap();
                parts.extend(model.logits(&hidden, 0..hidden.rows()).unwrap());
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            let difference = largest_difference(&whole, &parts);
            assert!(difference < 3e-5, "{family} cut at {sizes:?} differs by {difference}");
            assert_eq!((cache.len(), cache.bytes()), (41, empty), "the state does not grow");
            assert_eq!(cache.bytes(), 3 * 4 * (2 * 24 + 24 * 8), "two rows and a matrix a head in each layer");
        }
        assert!(cache.recurrent().iter().all(|state| state.matrices().iter().any(|v| *v != 0.0)), "states are filled");
    }
}

#[test]
fn texts_of_a_batch_do_not_see_each_other() {
    for family in ["rwkv6", "rwkv7"] {
        let json = config(family, json!({}));
        let model = model_of(&json, &naive_rwkv::weights(&parsed(&json), 5, 8));
        let texts: Vec<Vec<u32>> = [5, 17, 1, 9].iter().map(|n| some_tokens(*n, 40, *n as u64)).collect();
        let refs: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let hidden = model.hidden(&refs, None).unwrap();
        let batch = model.logits(&hidden, 0..32).unwrap();
        let single: Vec<f32> = texts.iter().flat_map(|text| all_logits(&model, text)).collect();
        assert!(largest_difference(&batch, &single) < 2e-5, "{}", largest_difference(&batch, &single));
    }
}

/// Inputs of linears and of multipliers by name.
#[derive(Default)]
struct Seen {
    inputs: BTreeMap<String, Vec<f32>>,
    multiplied: BTreeMap<String, Vec<f32>>,
}

impl Observer for Seen {
    fn input(&mut self, slot: &str, _features: usize, input: &[f32]) {
        self.inputs.insert(slot.to_owned(), input.to_vec());
    }
    fn multiplied(&mut self, multiplier: &str, elements: usize, input: &[f32]) {
        assert_eq!((elements, input.len()), (24, 11 * 24), "whole rows");
        self.multiplied.insert(multiplier.to_owned(), input.to_vec());
    }
}

#[test]
fn each_linear_and_each_multiplier_is_seen_and_can_be_replaced() {
    for (family, multipliers) in [("rwkv6", 8), ("rwkv7", 10)] {
        let json = config(family, json!({"num_hidden_layers": 2}));
        let model = model_of(&json, &naive_rwkv::weights(&parsed(&json), 5, 9));
        let tokens = some_tokens(11, 40, 2);
        let before = all_logits(&model, &tokens);
        let mut seen = Seen::default();
        model.hidden(&[&tokens], Some(&mut seen)).unwrap();
        let slots: Vec<String> = model.slots().map(|slot| slot.name().to_owned()).collect();
        assert_eq!(seen.inputs.len() + 1, slots.len(), "every slot but the head has seen its input");
        for layer in model.layers() {
            for group in layer.groups() {
                let input = |name: &str| &seen.inputs[name];
                assert!(group.iter().all(|slot| input(slot.name()) == input(group[0].name())), "one input a group");
            }
            let names: Vec<&str> = layer.multipliers().iter().map(|vector| vector.name()).collect();
            assert_eq!(names.len(), multipliers, "{names:?}");
            assert!(names.iter().all(|name| seen.multiplied.contains_key(*name)), "{names:?} are observed");
        }
        for name in &slots {
            let mut other = model.clone();
            let slot = other.slot_mut(name).unwrap();
            let packed = slot.weight().unwrap();
            let packed =
                PackedTensor::encode(Format::INT4_G128, &Shaped::new(&packed, &slot.shape()).unwrap()).unwrap();
            slot.set_linear(Arc::new(packed), Apply::Decoded).unwrap();
            assert!(largest_difference(&before, &all_logits(&other, &tokens)) > 1e-5, "{name} matters");
        }
        let all = model.layers().iter().flat_map(|layer| layer.multipliers().into_iter().chain(layer.vectors()));
        for name in all.map(|vector| vector.name().to_owned()).collect::<Vec<_>>() {
            let mut other = model.clone();
            for layer in other.layers_mut() {
                for found in [true, false] {
                    let vectors = if found { layer.multipliers_mut() } else { layer.vectors_mut() };
                    for vector in vectors.into_iter().filter(|vector| vector.name() == name) {
                        vector.set(vector.values().iter().map(|v| v * 1.5 + 0.05).collect()).unwrap();
                    }
                }
            }
            assert!(largest_difference(&before, &all_logits(&other, &tokens)) > 1e-5, "{name} matters");
        }
    }
}

/// Doubling a multiplier adds its `X` once more: the token shift is linear in `μ`.
#[test]
fn the_observed_input_of_a_multiplier_is_what_it_multiplies() {
    let json = config("rwkv7", json!({"num_hidden_layers": 1}));
    let mut model = model_of(&json, &naive_rwkv::weights(&parsed(&json), 5, 10));
    let tokens = some_tokens(11, 40, 2);
    let watch = |model: &Decoder| {
        let mut seen = Seen::default();
        model.hidden(&[&tokens], Some(&mut seen)).unwrap();
        seen
    };
    let before = watch(&model);
    for multiplier in model.layers_mut()[0].multipliers_mut() {
        if multiplier.name() == "blocks.0.att.x_r" {
            multiplier.set(multiplier.values().iter().map(|v| v + 1.0).collect()).unwrap();
        }
    }
    let after = watch(&model);
    let (x_before, x_after) = (&before.inputs["blocks.0.att.receptance"], &after.inputs["blocks.0.att.receptance"]);
    let added: Vec<f32> = x_after.iter().zip(x_before).map(|(a, b)| a - b).collect();
    assert!(largest_difference(&added, &before.multiplied["blocks.0.att.x_r"]) < 1e-5, "X of a token-shift multiplier");
}

#[test]
fn slots_say_where_their_weights_lie() {
    let json = config("rwkv6", json!({"num_hidden_layers": 1}));
    let tensors = naive_rwkv::weights(&parsed(&json), 5, 11);
    for (tensors, transposed) in [(tensors.clone(), true), (output_major(&tensors), false)] {
        let model = model_of(&json, &tensors);
        for slot in model.slots() {
            let origin = slot.origin();
            let (shape, values) = &tensors[&origin.tensor];
            let columns = shape[shape.len() - 1];
            let stored = &values[origin.rows.start * columns..origin.rows.end * columns];
            let weight = slot.weight().unwrap();
            let [outputs, inputs] = slot.shape();
            let at =
                |o: usize, i: usize| if origin.transposed { stored[i * columns + o] } else { stored[o * columns + i] };
            let expected: Vec<f32> =
                (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))).map(|(o, i)| at(o, i)).collect();
            assert_eq!(weight, expected, "{}", slot.name());
            assert_eq!(origin.transposed, transposed && slot.role() == Role::LowRank, "{}", slot.name());
        }
    }
}

#[test]
fn it_is_evaluated_and_writes_like_any_other_model() {
    let json = config("rwkv7", json!({"vocab_size": 256}));
    let model = model_of(&json, &naive_rwkv::weights(&parsed(&json), 5, 12));
    let text = Text::Bytes.encode(b"a text of some bytes that a random model finds as likely as any other").unwrap();
    let windows = Windows::of_text(&text, WindowOptions::new(20)).unwrap();
    assert!(perplexity(&model, &windows, &mut |_| {}).unwrap().perplexity() > 10.0, "nothing was learned");
    let options = Generate { max_tokens: 12, sampling: Sampling::GREEDY, stop: vec![] };
    let mut cache = KvState::plain(model.config());
    let written = generate(&model, &text.ids, &mut cache, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let whole = [text.ids.as_slice(), &written].concat();
    let logits = all_logits(&model, &whole);
    for (t, byte) in written.iter().enumerate() {
        let row = &logits[(text.len() + t - 1) * 256..][..256];
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(best - row[*byte as usize] < 1e-3, "byte {t} is the likeliest");
    }
}

#[test]
fn what_is_missing_or_of_the_wrong_size_is_named() {
    for family in ["rwkv6", "rwkv7"] {
        let json = config(family, json!({"num_hidden_layers": 2}));
        let tensors = naive_rwkv::weights(&parsed(&json), 5, 13);
        let open = |tensors: &Tensors| {
            let folder = tempfile::tempdir().unwrap();
            common::write_folder(folder.path(), &json, tensors);
            Decoder::open(folder.path()).unwrap_err()
        };
        for name in tensors.keys() {
            let mut fewer = tensors.clone();
            fewer.remove(name);
            let error = open(&fewer);
            assert!(matches!(&error, Error::MissingTensor { name: found, .. } if found == name), "{name}: {error}");
            let mut longer = tensors.clone();
            let (shape, values) = longer.get_mut(name).unwrap();
            let last = shape.len() - 1;
            shape[last] += 1;
            values.resize(shape.iter().product(), 0.0);
            let error = open(&longer);
            // A rank is what its two halves agree on, so either half may be the one that is named.
            let half = name.strip_suffix(['1', '2']).unwrap_or(name);
            assert!(
                matches!(&error, Error::WeightShape { name: found, .. } if found.starts_with(half)),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    for (changes, key) in [
        (json!({"head_size": 7}), "head_size"),
        (json!({"head_size": 0}), "head_size"),
        (json!({"head_size": null, "head_dim": 5}), "head_dim"),
        (json!({"low_rank_layout": "sideways"}), "low_rank_layout"),
        (json!({"group_norm_eps": 2.0}), "group_norm_eps"),
        (json!({"layer_norm_eps": -1.0}), "layer_norm_eps"),
        (json!({"layer_norm_epsilon": "small"}), "layer_norm_epsilon"),
        (json!({"num_hidden_layers": "many"}), "num_hidden_layers"),
    ] {
        let error = Config::from_json(&config("rwkv7", changes), Path::new("config.json")).unwrap_err();
        assert!(matches!(&error, Error::BadValue { key: found, .. } if found == key), "{key}: {error}");
    }
    let found = parsed(&config("rwkv6", json!({"hidden_size": 64})));
    assert_eq!((found.family, found.intermediate_size, found.heads), (Family::Rwkv6, 224, 8), "3.5 times the width");
    assert_eq!(parsed(&config("rwkv7", json!({}))).intermediate_size, 96, "4 times the width");
    let eps = |changes| parsed(&config("rwkv7", changes)).norm_eps;
    assert_eq!(
        [eps(json!({})), eps(json!({"layer_norm_eps": 1e-3})), eps(json!({"layer_norm_epsilon": 1e-4}))],
        [1e-5, 1e-3, 1e-4]
    );
    let mut cache = KvState::plain(&parsed(&config("rwkv7", json!({"head_size": 24}))));
    let json = config("rwkv7", json!({}));
    let model = model_of(&json, &naive_rwkv::weights(&parsed(&json), 5, 14));
    assert!(matches!(model.extend(&[1], &mut cache, None), Err(Error::Cache { .. })), "the state of another model");
    let mut cache = KvState::plain(&parsed(&common::config(json!({"num_hidden_layers": 3}))));
    assert!(matches!(model.extend(&[1], &mut cache, None), Err(Error::Cache { .. })), "the caches of another family");
}

/// The logits of rwkv.cpp after a prompt of three bytes.
#[test]
fn published_checkpoints_give_their_expected_logits() {
    let Some(data) = shared().map(|data| data.join("tiny-rwkv")).filter(|data| data.exists()) else { return };
    for (file, family, head_size) in [("tiny-rwkv7", "rwkv7", 64), ("tiny-rwkv6-1m", "rwkv6", 8)] {
        let folder = tempfile::tempdir().unwrap();
        let json = json!({"model_type": family, "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 12,
            "head_size": head_size, "low_rank_layout": "output_major"});
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        std::fs::copy(data.join(format!("{file}.safetensors")), folder.path().join("model.safetensors")).unwrap();
        let model = Decoder::open(folder.path()).unwrap();
        let expected = std::fs::read(data.join(format!("{file}.logits.bin"))).unwrap();
        let expected: Vec<f32> = expected.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let prompt = b"\"in".map(u32::from);
        let logits = all_logits(&model, &prompt);
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let difference = largest_difference(&logits[2 * 256..], &expected);
        println!("{file}: logits up to {largest:.2} differ by {difference:.1e}");
        assert!(difference < 1e-5 * largest, "{file}: logits up to {largest} differ by {difference}");
    }
}
