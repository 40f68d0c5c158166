//! A model run layer by layer, and formats of activations.

mod common;

use common::{all_logits, config, largest_difference, random_model, some_tokens, weights, write_folder};
use quant_core::{Format, PackedTensor, Shaped, fake_quantize};
use quant_io::Checkpoint;
use quant_models::{Apply, Config, Decoder, Error, Layers, Observer, Role, Stream};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// A source that counts how often each tensor is read.
fn in_pieces(json: &serde_json::Value, texts: &[&[u32]]) -> (Vec<f32>, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), json, &weights(json, 3));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let layers = Layers::new(Config::from_folder(folder.path()).unwrap(), &checkpoint, Apply::Decoded);
    let mut stream = layers.embedding().unwrap().stream(texts).unwrap();
    for index in 0..layers.len() {
        stream = layers.layer(index).unwrap().forward(&stream, None).unwrap();
        // What is carried can be put away and taken up again.
        stream = stream.with_carried(stream.carried().unwrap()).unwrap();
    }
    let head = layers.head().unwrap();
    let pieces = head.logits(&head.hidden(&stream).unwrap(), 0..stream.tokens(), None).unwrap();
    let whole = Decoder::open(folder.path()).unwrap();
    let hidden = whole.hidden(texts, None).unwrap();
    (pieces, whole.logits(&hidden, 0..hidden.rows()).unwrap())
}

#[test]
fn pieces_give_the_bits_of_the_whole() {
    let (a, b) = (some_tokens(17, 40, 1), some_tokens(5, 40, 2));
    for changes in [
        json!({}),
        json!({"tie_word_embeddings": true}),
        json!({"model_type": "qwen3", "head_dim": 8}),
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8}),
    ] {
        let (pieces, whole) = in_pieces(&config(changes), &[&a, &b]);
        assert_eq!(pieces, whole, "bit for bit");
    }
}

#[test]
fn a_layer_leaves_its_input_as_it_is_so_that_it_can_be_run_again_with_other_weights() {
    let mut model = random_model(&config(json!({})), 4);
    let tokens = some_tokens(12, 40, 1);
    let checkpointed = model.clone();
    let layer = &mut model.layers_mut()[0];
    let stream = stream_of(&checkpointed, &tokens);
    let before = stream.values().unwrap();
    let first = layer.forward(&stream, None).unwrap().values().unwrap();
    let slot = layer.slot_mut("model.layers.0.mlp.down_proj").unwrap();
    let weight = slot.weight().unwrap();
    let packed = PackedTensor::encode(Format::INT4_G128, &Shaped::new(&weight, &slot.shape()).unwrap()).unwrap();
    slot.set_linear(Arc::new(packed), Apply::Decoded).unwrap();
    let second = layer.forward(&stream, None).unwrap().values().unwrap();
    assert_eq!(stream.values().unwrap(), before, "the stream is not changed");
    assert!(largest_difference(&first, &second) > 1e-3, "the new weight is used");
    let again = stream.with_values(before.clone()).unwrap();
    assert_eq!(layer.forward(&again, None).unwrap().values().unwrap(), second, "values can be kept elsewhere");
    let error = stream.with_values(vec![0.0; 3]).unwrap_err();
    assert!(matches!(error, Error::WeightShape { ref expected, .. } if *expected == [12, 32]), "{error}");
}

/// The stream that enters the first layer.
fn stream_of(model: &Decoder, tokens: &[u32]) -> Stream {
    let source = Empty(model.embedding().unwrap());
    let layers = Layers::new(model.config().clone(), &source, Apply::Decoded);
    layers.embedding().unwrap().stream(&[tokens]).unwrap()
}

/// A source that has an embedding and nothing else.
struct Empty(Vec<f32>);

impl quant_models::WeightSource for Empty {
    fn origin(&self) -> String {
        "memory".into()
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        (name == "model.embed_tokens.weight").then(|| vec![40, self.0.len() / 40])
    }
    fn tensor(&self, _name: &str) -> Result<Vec<f32>, Error> {
        Ok(self.0.clone())
    }
    fn linear(&self, _name: &str) -> Result<Option<Arc<dyn quant_core::Linear>>, Error> {
        Ok(None)
    }
}

#[test]
fn a_piece_that_is_not_there_is_an_error_that_names_it() {
    let source = Empty(vec![0.5; 40 * 32]);
    let parsed = Config::from_json(&config(json!({})), Path::new("config.json")).unwrap();
    let layers = Layers::new(parsed, &source, Apply::Decoded);
    let error = layers.layer(0).unwrap_err();
    assert!(
        matches!(&error, Error::MissingTensor { name, .. } if name == "model.layers.0.input_layernorm.weight"),
        "{error}"
    );
    let error = layers.layer(2).unwrap_err();
    assert_eq!(error.to_string(), "layer is 2 of 2, expected a layer of the model");
    let error = layers.head().unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "model.norm.weight"), "{error}");
}

#[test]
fn slots_of_a_group_see_the_same_input() {
    #[derive(Default)]
    struct Inputs(Vec<(String, Vec<f32>)>);
    impl Observer for Inputs {
        fn input(&mut self, slot: &str, _features: usize, input: &[f32]) {
            self.0.push((slot.to_owned(), input.to_vec()));
        }
    }
    let model = random_model(&config(json!({})), 5);
    let mut seen = Inputs::default();
    model.hidden(&[&some_tokens(9, 40, 1)], Some(&mut seen)).unwrap();
    let input = |name: &str| &seen.0.iter().find(|(slot, _)| slot == name).unwrap().1;
    for layer in model.layers() {
        let groups = layer.groups();
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 2, 1], "q k v, o, gate up, down");
        for group in &groups {
            assert!(group.iter().all(|slot| input(slot.name()) == input(group[0].name())), "one input a group");
        }
        assert_eq!(layer.slots().len(), 7, "all of them");
    }
    assert_eq!(model.layers()[1].slot("model.layers.1.mlp.up_proj").unwrap().role(), Role::FeedForward);
    assert_eq!(model.slot("lm_head").unwrap().origin().tensor, "lm_head.weight");
    assert!(matches!(model.layers()[1].slot("lm_head"), Err(Error::UnknownSlot { .. })), "the head is in no layer");
}

#[test]
fn norms_and_biases_can_be_scaled_against_the_linears_behind_them() {
    let model = random_model(&config(json!({"attention_bias": true})), 6);
    let tokens = some_tokens(20, 40, 1);
    let expected = all_logits(&model, &tokens);
    let mut other = model.clone();
    for layer in other.layers_mut() {
        let names: Vec<String> = layer.vectors().iter().map(|v| v.name().to_owned()).collect();
        let at = |part: &str| format!("model.layers.{}.{part}", layer.index());
        assert_eq!(names, [at("input_layernorm.weight"), at("post_attention_layernorm.weight")]);
        for norm in layer.vectors_mut() {
            norm.set(norm.values().iter().map(|g| g * 4.0).collect()).unwrap();
        }
        for slot in layer.slots_mut() {
            if slot.shape()[1] == 32 && !slot.name().ends_with("o_proj") {
                let weight = slot.weight().unwrap().iter().map(|w| w / 4.0).collect();
                slot.set_dense(weight).unwrap();
            }
        }
    }
    assert_eq!(all_logits(&other, &tokens), expected, "powers of two cancel exactly");
    let error = other.layers_mut()[0].vectors_mut()[0].set(vec![1.0; 3]).unwrap_err();
    assert!(matches!(&error, Error::WeightShape { name, .. } if name == "model.layers.0.input_layernorm.weight"));
    let slot = other.slot_mut("model.layers.0.self_attn.q_proj").unwrap();
    assert!(matches!(slot.set_bias(vec![0.0; 3]), Err(Error::WeightShape { .. })), "outputs of the slot");
    assert!(matches!(slot.set_bias(vec![f32::NAN; 32]), Err(Error::NonFiniteWeight { .. })), "finite");
    slot.set_bias(vec![3.0; 32]).unwrap();
    assert_ne!(all_logits(&other, &tokens), expected, "the bias is added");
}

#[test]
fn an_input_format_rounds_each_token_on_its_own() {
    let model = random_model(&config(json!({"num_hidden_layers": 1})), 7);
    let name = "model.layers.0.mlp.down_proj";
    let tokens = some_tokens(9, 40, 1);
    // Group, row, tensor-wide and second-level scales: all are found for a token alone.
    for format in [Format::INT8, Format::INT4_G128, Format::NVFP4, Format::FP8_E4M3, Format::MXFP8_E4M3] {
        let mut rounded = model.clone();
        let mut input = Vec::new();
        let mut observer = |slot: &str, _features: usize, x: &[f32]| {
            if slot == name {
                input = x.to_vec();
            }
        };
        rounded.slot_mut(name).unwrap().set_input_format(Some(format)).unwrap();
        let stream = stream_of(&rounded, &tokens);
        let out = rounded.layers()[0].forward(&stream, Some(&mut observer)).unwrap().values().unwrap();
        let plain = model.layers()[0].forward(&stream, None).unwrap().values().unwrap();
        let slot = model.slot(name).unwrap();
        let weight = slot.weight().unwrap();
        for (token, x) in input.chunks(48).enumerate() {
            let q = fake_quantize(format, &Shaped::new(x, &[1, 48]).unwrap()).unwrap();
            for (channel, w) in weight.chunks(48).enumerate() {
                // What rounding adds to the output is the weight times what it adds to the input.
                let expected: f32 = w.iter().zip(q.iter().zip(x)).map(|(w, (q, x))| w * (q - x)).sum();
                let found = out[token * 32 + channel] - plain[token * 32 + channel];
                assert!((found - expected).abs() < 2e-5, "{format} token {token}: {found} is not {expected}");
            }
        }
        assert!(largest_difference(&out, &plain) > 1e-4, "{format} rounds");
        let all = rounded.hidden(&[&tokens, &tokens[..3]], None).unwrap();
        let alone = rounded.hidden(&[&tokens[..3]], None).unwrap();
        let (all, alone) = (rounded.logits(&all, 9..12).unwrap(), rounded.logits(&alone, 0..3).unwrap());
        assert!(largest_difference(&all, &alone) < 1e-5, "{format}: other texts of the batch do not matter");
        rounded.slot_mut(name).unwrap().set_input_format(None).unwrap();
        assert_eq!(all_logits(&rounded, &tokens), all_logits(&model, &tokens), "taken away again");
    }
}

#[test]
fn an_input_format_that_cannot_hold_the_rows_is_refused() {
    let mut model = random_model(&config(json!({})), 7);
    let slot = model.slot_mut("lm_head").unwrap();
    let bad = "int4-g128".parse::<Format>().map(|format| Format { block: quant_core::Block::Group(0), ..format });
    let error = slot.set_input_format(Some(bad.unwrap())).unwrap_err();
    assert!(matches!(&error, Error::Linear { name, .. } if name == "lm_head"), "{error}");
    assert_eq!(slot.input_format(), None, "unchanged");
}
