//! Gradients of the loss with respect to keys, values and weights, against finite differences of the decoder itself.

mod common;

use common::{config, model_of, random_model, some_tokens, weights};
use quant_core::Format;
use quant_models::eval::log_softmax;
use quant_models::{
    BoxError, Decoder, Error, KeyValues, KvCache, KvGeometry, KvRows, KvScratch, KvState, Observer, PlainKvCache,
    kv_gradients, weight_gradients,
};
use serde_json::{Value, json};

/// A cache that adds something to one element of the rows it is given.
#[derive(Debug)]
struct Nudged {
    inner: PlainKvCache,
    /// Element of the keys, or of the values.
    at: Option<(bool, usize)>,
    by: f32,
}

impl KvCache for Nudged {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn append<'a>(&'a mut self, new: KvRows<'_>, scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError> {
        let (mut keys, mut values) = (new.keys.to_vec(), new.values.to_vec());
        if let Some((of_keys, at)) = self.at {
            let rows = if of_keys { &mut keys } else { &mut values };
            rows[at] += self.by;
        }
        self.inner.append(KvRows { keys: &keys, values: &values }, scratch)
    }

    fn reset(&mut self) {
        self.inner.reset();
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
}

fn loss(model: &Decoder, tokens: &[u32], nudge: Option<(usize, bool, usize, f32)>) -> f64 {
    let mut state = KvState::with(model.config(), |layer, geometry: KvGeometry| {
        let nudge = nudge.filter(|(of, ..)| *of == layer);
        let inner = PlainKvCache::new(geometry);
        Box::new(Nudged { inner, at: nudge.map(|(_, keys, at, _)| (keys, at)), by: nudge.map_or(0.0, |n| n.3) })
    });
    let hidden = model.extend(tokens, &mut state, None).unwrap();
    let logits = model.logits(&hidden, 0..tokens.len() - 1).unwrap();
    let vocab = model.config().vocab_size;
    let nll = logits.chunks_exact(vocab).zip(&tokens[1..]).map(|(row, token)| -log_softmax(row, *token as usize));
    nll.sum::<f64>() / (tokens.len() - 1) as f64
}

fn variants() -> Vec<Value> {
    vec![
        json!({}),
        json!({"model_type": "mistral", "sliding_window": 5}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen3", "head_dim": 12}),
        json!({"hidden_act": "gelu_pytorch_tanh"}),
        json!({"hidden_act": "relu", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ]
}

#[test]
fn gradients_are_the_slopes_of_the_loss_of_the_decoder() {
    for changes in variants() {
        let model = random_model(&config(changes.clone()), 3);
        let tokens = some_tokens(14, 40, 3);
        let found = kv_gradients(&model, &tokens, 1).unwrap();
        let expected = loss(&model, &tokens, None);
        assert!((found.loss - expected).abs() < 1e-5 * expected, "{changes}: {} beside {expected}", found.loss);
        let (mut compared, mut largest) = (0, 0.0_f64);
        for (layer, of) in found.layers.iter().enumerate() {
            for (keys, gradients) in [(true, &of.key_gradients), (false, &of.value_gradients)] {
                let scale = gradients.iter().fold(0.0_f32, |m, g| m.max(g.abs()));
                for at in (0..gradients.len()).step_by(gradients.len() / 9) {
                    let by = 4e-3;
                    let slope = (loss(&model, &tokens, Some((layer, keys, at, by)))
                        - loss(&model, &tokens, Some((layer, keys, at, -by))))
                        / f64::from(2.0 * by);
                    let difference = (f64::from(gradients[at]) - slope).abs();
                    assert!(
                        difference < 0.02 * f64::from(scale) + 2e-5,
                        "{changes}: layer {layer}, keys {keys}, element {at}: {} beside {slope}",
                        gradients[at]
                    );
                    largest = largest.max(slope.abs());
                    compared += 1;
                }
            }
        }
        assert!(compared >= 36 && largest > 2e-3, "{changes}: {compared} slopes up to {largest} tell nothing");
    }
}

/// Keeps keys and values of all layers.
#[derive(Default)]
struct Keep(Vec<[Vec<f32>; 2]>);

impl Observer for Keep {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}

    fn key_values(&mut self, rows: &KeyValues<'_>) {
        self.0.push([rows.keys.to_vec(), rows.values.to_vec()]);
    }
}

#[test]
fn keys_and_values_are_those_of_the_decoder_layer_by_layer() {
    for changes in variants() {
        let mut model = random_model(&config(changes.clone()), 4);
        model.slot_mut("model.layers.0.mlp.down_proj").unwrap().set_input_format(Some(Format::INT8)).unwrap();
        let tokens = some_tokens(20, 40, 4);
        let mut keep = Keep::default();
        model.hidden(&[&tokens], Some(&mut keep)).unwrap();
        let found = kv_gradients(&model, &tokens, 1).unwrap();
        assert_eq!(found.layers.len(), keep.0.len(), "{changes}");
        for (layer, (found, [keys, values])) in found.layers.iter().zip(&keep.0).enumerate() {
            for (what, found, expected) in [("keys", &found.keys, keys), ("values", &found.values, values)] {
                let difference = common::largest_difference(found, expected);
                assert!(difference < 2e-4, "{changes}: {what} of layer {layer} differ by {difference}");
            }
        }
    }
}

#[test]
fn stretched_positions_turn_keys_further_and_leave_values_of_the_first_layer() {
    let model = random_model(&config(json!({})), 5);
    let tokens = some_tokens(9, 40, 5);
    let (one, four) = (kv_gradients(&model, &tokens, 1).unwrap(), kv_gradients(&model, &tokens, 4).unwrap());
    let width = model.config().kv_geometry().key_width();
    assert_eq!(one.layers[0].values, four.layers[0].values, "values have no position");
    assert_eq!(one.layers[0].keys[..width], four.layers[0].keys[..width], "position 0 stays");
    assert!(common::largest_difference(&one.layers[0].keys, &four.layers[0].keys) > 0.1, "others turn");
    // Token 2 stretched by 4 stands where token 8 does; with the same token the keys would be the same.
    let same = vec![7; 9];
    let (one, four) = (kv_gradients(&model, &same, 1).unwrap(), kv_gradients(&model, &same, 4).unwrap());
    let difference = common::largest_difference(
        &one.layers[0].keys[8 * width..9 * width],
        &four.layers[0].keys[2 * width..3 * width],
    );
    assert!(difference < 1e-6, "{difference}");
}

#[test]
fn what_has_no_gradient_is_refused() {
    let model = random_model(&config(json!({})), 1);
    assert!(matches!(kv_gradients(&model, &[1, 2], 0), Err(Error::BadSetting { name: "stretch", .. })));
    assert!(matches!(kv_gradients(&model, &[1], 1), Err(Error::TooFewTokens { found: 1, needed: 2 })));
    assert!(matches!(kv_gradients(&model, &[1, 40], 1), Err(Error::TokenRange { .. })));
    let recurrent = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-rwkv7");
    let refused = kv_gradients(&Decoder::open(&recurrent).unwrap(), &[1, 2], 1);
    assert!(matches!(refused, Err(Error::NotDifferentiable { .. })), "{refused:?}");
}

#[test]
fn gradients_of_weights_are_slopes_of_the_loss_too() {
    for changes in variants() {
        let (config, tokens) = (config(changes.clone()), some_tokens(14, 40, 3));
        let (model, tensors) = (random_model(&config, 3), weights(&config, 3));
        let names = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"];
        let mut wanted: std::collections::BTreeSet<String> =
            names.iter().map(|name| format!("model.layers.0.{name}")).collect();
        wanted.insert("lm_head".to_owned());
        let mut found = std::collections::BTreeMap::new();
        let told = weight_gradients(&model, &tokens, &wanted, |name, gradient| {
            assert!(found.insert(name.to_owned(), gradient.to_vec()).is_none(), "{name} comes once");
        })
        .unwrap();
        assert!((told - loss(&model, &tokens, None)).abs() < 1e-5 * told);
        assert!(found.keys().eq(&wanted), "{:?}", found.keys());
        let mut largest = 0.0_f64;
        for (name, gradient) in &found {
            let scale = f64::from(gradient.iter().fold(0.0_f32, |m, g| m.max(g.abs())));
            for at in (0..gradient.len()).step_by(gradient.len() / 3) {
                let moved = |by: f32| {
                    let mut tensors = tensors.clone();
                    tensors.get_mut(&format!("{name}.weight")).unwrap().1[at] += by;
                    loss(&model_of(&config, &tensors), &tokens, None)
                };
                let slope = (moved(4e-3) - moved(-4e-3)) / 8e-3;
                let difference = (f64::from(gradient[at]) - slope).abs();
                assert!(difference < 0.02 * scale + 2e-5, "{changes}: {name} {at}: {} beside {slope}", gradient[at]);
                largest = largest.max(slope.abs());
            }
        }
        assert!(largest > 1e-3, "{changes}: slopes up to {largest} tell nothing");
    }
}

#[test]
fn gradients_of_weights_that_are_not_asked_for_are_not_formed() {
    let model = random_model(&config(json!({})), 3);
    let tokens = some_tokens(9, 40, 3);
    let wanted = ["model.layers.9.mlp.up_proj".to_owned()].into();
    weight_gradients(&model, &tokens, &wanted, |name, _| panic!("{name} was not asked for")).unwrap();
    let short = weight_gradients(&model, &tokens[..1], &wanted, |_, _| {});
    assert!(matches!(short, Err(Error::TooFewTokens { found: 1, needed: 2 })), "{short:?}");
}
