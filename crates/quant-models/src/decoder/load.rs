//! Building a decoder from named weights.

use super::{Decoder, Layer};
use crate::slot::{self, Apply, Slot, Weight};
use crate::{Config, Error, WeightSource};
use candle_core::Tensor;
use std::sync::Arc;

/// A source together with the checks every tensor passes.
struct Loader<'a> {
    source: &'a dyn WeightSource,
    apply: Apply,
}

impl Loader<'_> {
    /// Reads a tensor after checking its shape, so that nothing is read in vain.
    fn read(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Error> {
        let Some(found) = self.source.shape(name) else {
            return Err(Error::MissingTensor { origin: self.source.origin(), name: name.to_owned() });
        };
        if found != expected {
            return Err(Error::WeightShape { name: name.to_owned(), expected: expected.to_vec(), found });
        }
        self.source.tensor(name)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Tensor, Error> {
        slot::dense(name, self.read(name, &shape)?, shape)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let values = self.read(name, &[len])?;
        slot::finite(name, &values)?;
        Ok(values)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Arc<[f32]>, Error> {
        self.vector(&format!("{name}.weight"), width).map(Arc::from)
    }

    fn slot(&self, name: String, shape: [usize; 2], bias: bool) -> Result<Slot, Error> {
        let weight = match self.source.linear(&name)? {
            Some(linear) => Weight::compressed(&name, shape, linear, self.apply)?,
            None => Weight::Dense(self.matrix(&format!("{name}.weight"), shape)?),
        };
        let bias = if bias { Some(self.vector(&format!("{name}.bias"), shape[0])?) } else { None };
        Ok(Slot::new(name, shape, weight, bias))
    }
}

pub(super) fn load(config: Config, source: &dyn WeightSource, apply: Apply) -> Result<Decoder, Error> {
    let loader = Loader { source, apply };
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let shape = [config.vocab_size, hidden];
    let embedding = loader.matrix("model.embed_tokens.weight", shape)?;
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
