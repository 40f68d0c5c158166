//! Loading weights, and what can be wrong with them.

mod common;

use common::{all_logits, config, model_of, safetensors, some_tokens, weights, write_folder};
use quant_models::{Apply, Config, Decoder, Error, WeightSource};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

fn refused(changes: Value, damage: impl Fn(&mut common::Tensors)) -> Error {
    let json = config(changes);
    let mut tensors = weights(&json, 1);
    damage(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &json, &tensors);
    Decoder::open(folder.path()).unwrap_err()
}

#[test]
fn every_missing_tensor_is_named() {
    let changes = json!({"model_type": "qwen3", "attention_bias": true});
    let all: Vec<String> = weights(&config(changes.clone()), 1).into_keys().collect();
    assert_eq!(all.len(), 3 + 2 * (7 + 4 + 2 + 2), "weights, biases, norms and head norms");
    for name in all {
        let error = refused(changes.clone(), |tensors| drop(tensors.remove(&name)));
        assert!(matches!(&error, Error::MissingTensor { name: found, .. } if *found == name), "{error}");
    }
}

#[test]
fn every_wrong_shape_is_named_with_the_right_one() {
    let changes = json!({"mlp_bias": true});
    for (name, (shape, _)) in weights(&config(changes.clone()), 1) {
        let error = refused(changes.clone(), |tensors| {
            let (shape, values) = tensors.get_mut(&name).unwrap();
            shape[0] += 1;
            values.resize(shape.iter().product(), 0.0);
        });
        assert!(
            matches!(&error, Error::WeightShape { name: found, expected, .. } if *found == name && *expected == shape),
            "{error}"
        );
    }
    let error =
        refused(json!({}), |tensors| tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().0 = vec![48 * 32]);
    assert!(matches!(&error, Error::WeightShape { found, .. } if *found == [48 * 32]), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name_and_place() {
    for (name, bad) in [
        ("model.layers.1.mlp.up_proj.weight", f32::NAN),
        ("model.embed_tokens.weight", f32::INFINITY),
        ("model.norm.weight", f32::NEG_INFINITY),
    ] {
        let error = refused(json!({}), |tensors| tensors.get_mut(name).unwrap().1[3] = bad);
        assert!(matches!(&error, Error::NonFiniteWeight { name: n, index: 3, .. } if n == name), "{error}");
    }
}

#[test]
fn damaged_and_missing_files_are_errors() {
    let json = config(json!({}));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    assert!(matches!(Decoder::open(folder.path()), Err(Error::Weights(_))), "no weights at all");
    let whole = safetensors(&weights(&json, 1));
    for cut in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(folder.path().join("model.safetensors"), &whole[..cut]).unwrap();
        let error = Decoder::open(folder.path()).unwrap_err();
        assert!(
            matches!(error, Error::Weights(_)) && error.to_string().contains("model.safetensors"),
            "{cut}: {error}"
        );
    }
}

#[test]
fn shards_give_the_model_of_the_single_file() {
    let json = config(json!({}));
    let tensors = weights(&json, 2);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let mut map = serde_json::Map::new();
    let mut total = 0;
    for shard in 0..3 {
        let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
        let part: common::Tensors = tensors
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 3 == shard)
            .map(|(_, (n, t))| (n.clone(), t.clone()))
            .collect();
        total += part.values().map(|(_, values)| 4 * values.len()).sum::<usize>();
        map.extend(part.keys().map(|name| (name.clone(), json!(file))));
        std::fs::write(folder.path().join(file), safetensors(&part)).unwrap();
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let tokens = some_tokens(9, 40, 1);
    let sharded = Decoder::open(folder.path()).unwrap();
    assert_eq!(all_logits(&sharded, &tokens), all_logits(&model_of(&json, &tensors), &tokens), "bit for bit");
    std::fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    let error = Decoder::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("model-00002-of-00003.safetensors"), "{error}");
}

/// Weights out of nowhere, some of them compressed.
struct Source {
    tensors: common::Tensors,
    packed: Vec<String>,
}

impl WeightSource for Source {
    fn origin(&self) -> String {
        "the test".into()
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|(shape, _)| shape.clone())
    }
    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        assert!(!self.packed.iter().any(|packed| name == format!("{packed}.weight")), "{name} is asked for compressed");
        Ok(self.tensors[name].1.clone())
    }
    fn linear(&self, name: &str) -> Result<Option<Arc<dyn quant_core::Linear>>, Error> {
        if !self.packed.iter().any(|packed| packed == name) {
            return Ok(None);
        }
        let (shape, values) = &self.tensors[&format!("{name}.weight")];
        let tensor = quant_core::Shaped::new(values, shape).unwrap();
        Ok(Some(Arc::new(quant_core::PackedTensor::encode(quant_core::Format::INT8, &tensor).unwrap())))
    }
}

#[test]
fn a_source_may_give_some_linears_compressed() {
    for tied in [false, true] {
        let json = config(json!({"tie_word_embeddings": tied}));
        let mut tensors = weights(&json, 3);
        let packed = vec!["model.layers.0.mlp.up_proj".to_owned(), "lm_head".to_owned()];
        if tied {
            // A tied model may come with a compressed head of its own.
            tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].clone());
        }
        let source = Source { tensors, packed };
        let config = Config::from_json(&json, Path::new("config.json")).unwrap();
        for apply in [Apply::Decoded, Apply::Direct] {
            let model = Decoder::from_source(config.clone(), &source, apply).unwrap();
            let compressed: Vec<&str> = model.slots().filter(|s| s.linear().is_some()).map(|s| s.name()).collect();
            assert_eq!(compressed, ["model.layers.0.mlp.up_proj", "lm_head"]);
            assert!(all_logits(&model, &[1, 2, 3]).iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn a_compressed_linear_of_another_shape_is_refused() {
    let json = config(json!({}));
    let mut tensors = weights(&json, 4);
    tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().0 = vec![32, 48];
    let source = Source { tensors, packed: vec!["model.layers.0.mlp.up_proj".into()] };
    let config = Config::from_json(&json, Path::new("config.json")).unwrap();
    let error = Decoder::from_source(config, &source, Apply::Decoded).unwrap_err();
    assert!(matches!(&error, Error::WeightShape { found, .. } if *found == [32, 48]), "{error}");
}
