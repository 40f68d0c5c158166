//! Replacing and watching linears.

mod common;

use common::{Noise, all_logits, config, largest_difference, random_model, some_tokens};
use quant_core::{Footprint, Format, Linear, PackedTensor, Shaped};
use quant_models::{Apply, Decoder, Error};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

fn names(model: &Decoder) -> Vec<String> {
    model.slots().map(|slot| slot.name().to_owned()).collect()
}

#[test]
fn slots_have_the_names_and_shapes_of_the_hugging_face_layout() {
    let model = random_model(&config(json!({"num_hidden_layers": 1})), 1);
    let found: Vec<(String, [usize; 2])> = model.slots().map(|s| (s.name().to_owned(), s.shape())).collect();
    let expected = [
        ("model.layers.0.self_attn.q_proj", [32, 32]),
        ("model.layers.0.self_attn.k_proj", [16, 32]),
        ("model.layers.0.self_attn.v_proj", [16, 32]),
        ("model.layers.0.self_attn.o_proj", [32, 32]),
        ("model.layers.0.mlp.gate_proj", [48, 32]),
        ("model.layers.0.mlp.up_proj", [48, 32]),
        ("model.layers.0.mlp.down_proj", [32, 48]),
        ("lm_head", [40, 32]),
    ];
    assert_eq!(found, expected.map(|(name, shape)| (name.to_owned(), shape)), "in the order they are computed");
}

#[test]
fn putting_the_same_weights_back_changes_no_bit() {
    let model = random_model(&config(json!({"attention_bias": true})), 2);
    let tokens = some_tokens(30, 40, 1);
    let mut other = model.clone();
    for name in names(&model) {
        let weight = model.slot(&name).unwrap().weight().unwrap();
        other.slot_mut(&name).unwrap().set_dense(weight).unwrap();
    }
    assert_eq!(all_logits(&model, &tokens), all_logits(&other, &tokens), "bit for bit");
}

/// A weight that is kept as it is, to be told from a packed one.
#[derive(Debug)]
struct Stored(Vec<f32>, [usize; 2]);

impl Linear for Stored {
    fn in_features(&self) -> usize {
        self.1[1]
    }
    fn out_features(&self) -> usize {
        self.1[0]
    }
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        for (x, y) in x.chunks(self.1[1]).zip(y.chunks_mut(self.1[0])) {
            for (w, y) in self.0.chunks(self.1[1]).zip(y) {
                *y = w.iter().zip(x).map(|(w, x)| w * x).sum();
            }
        }
        Ok(())
    }
    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        Ok(self.0.clone())
    }
    fn footprint(&self) -> Footprint {
        Footprint { elements: self.0.len() as u64, codes: 4 * self.0.len() as u64, ..Footprint::default() }
    }
}

#[test]
fn a_decoded_linear_equals_its_dense_values_bit_for_bit_and_a_direct_one_to_rounding() {
    let model = random_model(&config(json!({})), 3);
    let tokens = some_tokens(30, 40, 2);
    let expected = all_logits(&model, &tokens);
    let with = |apply| {
        let mut other = model.clone();
        for name in names(&model) {
            let slot = other.slot_mut(&name).unwrap();
            let stored = Stored(slot.weight().unwrap(), slot.shape());
            slot.set_linear(Arc::new(stored), apply).unwrap();
            assert!(slot.linear().is_some(), "the slot knows its weight is compressed");
        }
        all_logits(&other, &tokens)
    };
    assert_eq!(with(Apply::Decoded), expected, "bit for bit");
    assert_eq!(with(Apply::Prepared), expected, "it has no faster arrangement and is decoded");
    let difference = largest_difference(&with(Apply::Direct), &expected);
    assert!(difference > 0.0, "the linear's own product was used");
    assert!(difference < 2e-5, "{difference}");
}

#[test]
fn a_packed_tensor_gives_the_logits_of_its_decoded_values() {
    let model = random_model(&config(json!({})), 4);
    let tokens = some_tokens(30, 40, 3);
    let (mut decoded, mut direct, mut dense) = (model.clone(), model.clone(), model.clone());
    let mut prepared = model.clone();
    for name in names(&model).iter().filter(|name| *name != "lm_head") {
        let slot = model.slot(name).unwrap();
        let weight = slot.weight().unwrap();
        let packed = PackedTensor::encode(Format::INT8, &Shaped::new(&weight, &slot.shape()).unwrap()).unwrap();
        dense.slot_mut(name).unwrap().set_dense(packed.decode()).unwrap();
        let packed: Arc<dyn Linear> = Arc::new(packed);
        decoded.slot_mut(name).unwrap().set_linear(Arc::clone(&packed), Apply::Decoded).unwrap();
        direct.slot_mut(name).unwrap().set_linear(Arc::clone(&packed), Apply::Direct).unwrap();
        prepared.slot_mut(name).unwrap().set_linear(packed, Apply::Prepared).unwrap();
        assert!(prepared.slot(name).unwrap().linear().is_some(), "the compressed weight is kept");
    }
    let expected = all_logits(&dense, &tokens);
    assert_eq!(all_logits(&decoded, &tokens), expected, "bit for bit");
    for other in [&direct, &prepared] {
        let difference = largest_difference(&all_logits(other, &tokens), &expected);
        assert!(difference < 5e-5, "but for the order of sums: {difference}");
    }
    let bits = |model| all_logits(model, &tokens).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(bits(&prepared) != bits(&direct), "another way to multiply");
    assert!(largest_difference(&all_logits(&model, &tokens), &expected) > 1e-3, "eight bits are not all");
}

#[test]
fn observers_see_exactly_what_each_slot_multiplies() {
    let model = random_model(&config(json!({"num_hidden_layers": 2})), 5);
    let (first, second) = (some_tokens(9, 40, 4), some_tokens(5, 40, 5));
    let mut seen: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut order = Vec::new();
    let mut observer = |slot: &str, features: usize, input: &[f32]| {
        assert_eq!(input.len(), 14 * features, "all tokens of both texts at once");
        order.push(slot.to_owned());
        seen.insert(slot.to_owned(), input.to_vec());
    };
    let hidden = model.hidden(&[&first, &second], Some(&mut observer)).unwrap();
    let logits = model.logits_observed(&hidden, 0..14, Some(&mut observer)).unwrap();
    assert_eq!(order, names(&model), "every slot once, in the order of `slots`");

    // What was seen, put through the weights by hand, is what came out.
    let head = model.slot("lm_head").unwrap();
    let weight = head.weight().unwrap();
    for (x, logits) in seen["lm_head"].chunks(32).zip(logits.chunks(40)) {
        for (w, logit) in weight.chunks(32).zip(logits) {
            let expected: f32 = w.iter().zip(x).map(|(w, x)| w * x).sum();
            assert!((expected - logit).abs() < 1e-4, "{expected} and {logit}");
        }
    }
    let at = |part: &str| &seen[&format!("model.layers.0.{part}")];
    assert_eq!(at("self_attn.q_proj"), at("self_attn.v_proj"), "query and value read the same norm");
    assert_eq!(at("mlp.gate_proj"), at("mlp.up_proj"), "gate and up read the same norm");
    assert_ne!(at("mlp.gate_proj"), at("self_attn.q_proj"), "feed-forward reads another one");
    let plain = model.logits(&model.hidden(&[&first, &second], None).unwrap(), 0..14).unwrap();
    assert_eq!(plain, logits, "watching changes nothing");
}

#[test]
fn observers_see_the_same_rows_with_and_without_a_cache() {
    let model = random_model(&config(json!({})), 6);
    let tokens = some_tokens(12, 40, 6);
    let gather = |run: &mut dyn FnMut(&mut dyn quant_models::Observer)| {
        let mut seen: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        run(&mut |slot: &str, _: usize, input: &[f32]| seen.entry(slot.to_owned()).or_default().extend(input));
        seen
    };
    let whole = gather(&mut |observer| drop(model.hidden(&[&tokens], Some(observer)).unwrap()));
    let mut cache = quant_models::KvState::plain(model.config());
    let parts = gather(&mut |observer| {
        for part in tokens.chunks(5) {
            model.extend(part, &mut cache, Some(&mut *observer)).unwrap();
        }
    });
    for (name, rows) in &whole {
        assert!(largest_difference(rows, &parts[name]) < 1e-5, "{name}");
    }
}

#[test]
fn a_tied_head_follows_the_embedding_until_it_is_replaced() {
    let mut model = random_model(&config(json!({"tie_word_embeddings": true})), 7);
    assert_eq!(model.slot("lm_head").unwrap().weight().unwrap(), model.embedding().unwrap(), "tied");
    let other = Noise(3).values(40 * 32, 0.1);
    model.set_embedding(other.clone()).unwrap();
    assert_eq!(model.slot("lm_head").unwrap().weight().unwrap(), other, "still tied");
    model.slot_mut("lm_head").unwrap().set_dense(vec![0.0; 40 * 32]).unwrap();
    assert_eq!(model.embedding().unwrap(), other, "the embedding keeps its values");
    assert!(all_logits(&model, &[1, 2]).iter().all(|v| *v == 0.0), "the head has its own");
}

#[test]
fn what_does_not_fit_a_slot_is_refused_and_changes_nothing() {
    let mut model = random_model(&config(json!({})), 8);
    let name = "model.layers.1.mlp.down_proj";
    let before = model.slot(name).unwrap().weight().unwrap();
    let wrong = PackedTensor::encode(Format::INT8, &Shaped::new(&before, &[48, 32]).unwrap()).unwrap();
    let slot = model.slot_mut(name).unwrap();
    let error = slot.set_linear(Arc::new(wrong), Apply::Decoded).unwrap_err();
    assert!(
        matches!(&error, Error::WeightShape { name: n, expected, found } if n == name && expected == &[32, 48] && found == &[48, 32]),
        "{error}"
    );
    let error = slot.set_dense(vec![0.0; 7]).unwrap_err();
    assert!(matches!(&error, Error::WeightShape { found, .. } if found == &[7]), "{error}");
    let mut damaged = before.clone();
    damaged[5] = f32::NAN;
    let error = slot.set_dense(damaged.clone()).unwrap_err();
    assert!(matches!(error, Error::NonFiniteWeight { index: 5, .. }), "{error}");
    let error = slot.set_linear(Arc::new(Stored(damaged, [32, 48])), Apply::Decoded).unwrap_err();
    assert!(matches!(error, Error::NonFiniteWeight { index: 5, .. }), "{error}");
    assert_eq!(model.slot(name).unwrap().weight().unwrap(), before, "the slot is as it was");

    let error = model.slot_mut("model.layers.2.mlp.down_proj").unwrap_err();
    assert!(matches!(error, Error::UnknownSlot { .. }), "{error}");
    assert!(matches!(model.set_embedding(vec![0.0]), Err(Error::WeightShape { .. })), "too short");
}

/// A weight that cannot be used at all.
#[derive(Debug)]
struct Broken;

impl Linear for Broken {
    fn in_features(&self) -> usize {
        32
    }
    fn out_features(&self) -> usize {
        32
    }
    fn matmul(&self, x: &[f32], _: &mut [f32]) -> Result<(), quant_core::Error> {
        Err(quant_core::Error::Features { in_features: 32, found: x.len() })
    }
    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        Err(quant_core::Error::SizeOverflow { shape: vec![32, 32] })
    }
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
}

#[test]
fn the_error_of_a_linear_names_its_slot() {
    let mut model = random_model(&config(json!({})), 9);
    let name = "model.layers.0.self_attn.o_proj";
    let error = model.slot_mut(name).unwrap().set_linear(Arc::new(Broken), Apply::Decoded).unwrap_err();
    assert!(matches!(&error, Error::Linear { name: n, .. } if n == name), "{error}");
    model.slot_mut(name).unwrap().set_linear(Arc::new(Broken), Apply::Direct).unwrap();
    let error = model.hidden(&[&[1]], None).unwrap_err();
    assert!(matches!(&error, Error::Linear { name: n, .. } if n == name), "{error}");
}
