//! Building a decoder from named weights.

use super::{Decoder, Layer};
use crate::slot::{self, Apply, Slot, Weight};
use crate::{Config, Error, WeightSource};
use std::sync::Arc;

/// A source together with the checks every tensor passes.
struct Loader<'a> {
    source: &'a dyn WeightSource,
    apply: Apply,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Error> {
        let Some(found) = self.source.shape(name) else {
            return Err(Error::MissingTensor { origin: self.source.origin(), name: name.to_owned() });
        };
        if found != expected {
            return Err(Error::WeightShape { name: name.to_owned(), expected: expected.to_vec(), found });
        }
        let values = self.source.tensor(name)?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(Error::NonFiniteWeight { name: name.to_owned(), index, value: values[index] }),
            None => Ok(values),
        }
    }

    fn norm(&self, name: &str, width: usize) -> Result<Arc<[f32]>, Error> {
        self.tensor(&format!("{name}.weight"), &[width]).map(Arc::from)
    }

    fn slot(&self, name: String, shape: [usize; 2], bias: bool) -> Result<Slot, Error> {
        let weight = match self.source.linear(&name)? {
            Some(linear) => Weight::compressed(&name, shape, linear, self.apply)?,
            None => {
                let full = format!("{name}.weight");
                Weight::Dense(slot::dense(&full, self.tensor(&full, &shape)?, shape)?)
            }
        };
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &shape[..1])?) } else { None };
        Ok(Slot::new(name, shape, weight, bias))
    }
}

pub(super) fn load(config: Config, source: &dyn WeightSource, apply: Apply) -> Result<Decoder, Error> {
    let loader = Loader { source, apply };
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let shape = [config.vocab_size, hidden];
    let name = "model.embed_tokens.weight";
    let embedding = slot::dense(name, loader.tensor(name, &shape)?, shape)?;
    let mut layers = Vec::new();
    for layer in 0..config.layers {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let head_norm = |part: &str| match config.qk_norm {
            true => loader.norm(&at(part), config.head_dim).map(Some),
            false => Ok(None),
        };
        layers.push(Layer {
            input_norm: loader.norm(&at("input_layernorm"), hidden)?,
            q: loader.slot(at("self_attn.q_proj"), [queries, hidden], config.qkv_bias)?,
            k: loader.slot(at("self_attn.k_proj"), [keys, hidden], config.qkv_bias)?,
            v: loader.slot(at("self_attn.v_proj"), [keys, hidden], config.qkv_bias)?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            o: loader.slot(at("self_attn.o_proj"), [hidden, queries], config.output_bias)?,
            mlp_norm: loader.norm(&at("post_attention_layernorm"), hidden)?,
            gate: loader.slot(at("mlp.gate_proj"), [inner, hidden], config.mlp_bias)?,
            up: loader.slot(at("mlp.up_proj"), [inner, hidden], config.mlp_bias)?,
            down: loader.slot(at("mlp.down_proj"), [hidden, inner], config.mlp_bias)?,
        });
    }
    let norm = loader.norm("model.norm", hidden)?;
    let head = "lm_head".to_owned();
    let head = match (config.tied_head, source.linear(&head)?) {
        (true, None) => Slot::new(head, shape, Weight::Dense(embedding.clone()), None),
        (true, Some(linear)) => {
            let weight = Weight::compressed(&head, shape, linear, apply)?;
            Slot::new(head, shape, weight, None)
        }
        (false, _) => loader.slot(head, shape, false)?,
    };
    Ok(Decoder { config: Arc::new(config), embedding, layers, norm, head })
}
