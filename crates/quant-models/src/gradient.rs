//! Gradients of a language model's loss with respect to its keys and values, and to its weights.

use crate::layer::graph::{Frame, Tap};
use crate::ops;
use crate::{Decoder, Error};
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Logits held at once, which bounds memory for large vocabularies.
const LOGITS: usize = 1 << 22;

/// Keys and values of one text, and what the loss says about them.
#[derive(Clone, Debug, PartialEq)]
pub struct KvGradients {
    /// Mean over the predicted tokens of `−ln p(token)`.
    pub loss: f64,
    /// By layer, first layer first.
    pub layers: Vec<LayerGradients>,
}

/// The same of one layer; all are row-major `[tokens, kv_heads, dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerGradients {
    /// Keys after the rotary turn, as attention reads them.
    pub keys: Vec<f32>,
    /// Values.
    pub values: Vec<f32>,
    /// `∂ loss / ∂ keys`: of this layer's keys alone, everything before them as it is.
    pub key_gradients: Vec<f32>,
    /// `∂ loss / ∂ values`.
    pub value_gradients: Vec<f32>,
}

/// Runs a text through a dense transformer and differentiates the mean loss of predicting each token from those before
/// it, with respect to the keys and values of every layer. These are the `G_K` and `G_V` of PM-KVQ's sensitivities (arXiv
/// 2505.18610, equation 5).
///
/// Tokens stand at positions `0, stretch, 2·stretch, …`: with more than 1, slowly turning channels show the spread that
/// they reach in longer texts (section 3.3 there). Layers are differentiated one after the other, last layer first: the
/// inputs of all layers and the graph of one are in memory. Weights get no gradients. Linears that round their inputs
/// pass gradients as if they did not.
///
/// # Errors
///
/// [`Error::NotDifferentiable`] for mixtures of experts and recurrent models; [`Error::BadSetting`] for a stretch of 0;
/// [`Error::TooFewTokens`], [`Error::TokenRange`], [`Error::NonFiniteLogits`].
///
/// # Examples
///
/// ```
/// use quant_models::{Decoder, Text, kv_gradients};
/// let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
/// let model = Decoder::open(&folder)?;
/// let text = Text::Bytes.encode(b"Which layers does the loss depend on?")?;
/// let found = kv_gradients(&model, &text.ids, 1)?;
/// assert_eq!(found.layers.len(), model.config().layers);
/// // The last token predicts nothing, so its keys are read by nobody who counts.
/// let width = model.config().kv_geometry().key_width();
/// assert!(found.layers[0].key_gradients.rchunks(width).next().unwrap().iter().all(|g| *g == 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn kv_gradients(decoder: &Decoder, tokens: &[u32], stretch: usize) -> Result<KvGradients, Error> {
    let config = decoder.config();
    if stretch == 0 {
        return Err(Error::BadSetting { name: "stretch", value: "0".into(), expected: "at least 1" });
    }
    check(decoder, tokens)?;
    let refused = || Error::NotDifferentiable { family: config.family };
    let mut frame = Frame::new(config, tokens.len(), stretch)?;
    let Forwards { inputs, loss, mut flow } = forwards(decoder, tokens, &mut frame)?;

    // Backwards, layer by layer: the gradient of ⟨out, flow⟩ is the flow that enters the layer before.
    let mut layers = Vec::new();
    let width = config.kv_heads * config.head_dim;
    for (index, layer) in decoder.layers().iter().enumerate().rev() {
        frame.layer = index;
        let input = Var::from_tensor(&inputs[index])?;
        let nudge = || Var::zeros((tokens.len(), width), candle_core::DType::F32, &Device::Cpu);
        let (keys, values) = (nudge()?, nudge()?);
        let traced = layer.trace(&input, Some([keys.as_tensor(), values.as_tensor()]), &frame)?.ok_or_else(refused)?;
        let gradients = (traced.out * &flow)?.sum_all()?.backward()?;
        let of = |var: &Var| -> Result<Tensor, Error> {
            match gradients.get(var) {
                Some(gradient) => Ok(gradient.contiguous()?),
                None => Ok(var.zeros_like()?),
            }
        };
        flow = of(&input)?;
        layers.push(LayerGradients {
            keys: ops::read(&traced.keys.contiguous()?, <[f32]>::to_vec)?,
            values: ops::read(&traced.values.contiguous()?, <[f32]>::to_vec)?,
            key_gradients: ops::read(&of(&keys)?, <[f32]>::to_vec)?,
            value_gradients: ops::read(&of(&values)?, <[f32]>::to_vec)?,
        });
    }
    layers.reverse();
    Ok(KvGradients { loss, layers })
}

/// Runs a text through a dense transformer, differentiates the mean loss of predicting each token from those before it,
/// and hands on the gradient of the weight of each slot that is `wanted`: its name, and elements `[out, in]`. Returns the
/// loss. Means of these gradients' squares over texts are the Fisher information that FWSVD (arXiv 2207.00112) and ASVD read.
///
/// Layers are differentiated one after the other, last layer first, so that the gradients of one layer are in memory.
/// Linears that round their inputs pass gradients as if they did not. Names that no slot has are left alone.
///
/// # Errors
///
/// As [`kv_gradients`].
///
/// # Examples
///
/// ```
/// use quant_models::{Decoder, Text, weight_gradients};
/// let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
/// let model = Decoder::open(&folder)?;
/// let text = Text::Bytes.encode(b"Which weights does the loss depend on?")?;
/// let wanted = ["model.layers.0.mlp.down_proj".to_owned()].into();
/// let mut energy = 0.0;
/// weight_gradients(&model, &text.ids, &wanted, |_, gradient| energy = gradient.iter().map(|g| g * g).sum())?;
/// assert!(energy > 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn weight_gradients(
    decoder: &Decoder,
    tokens: &[u32],
    wanted: &BTreeSet<String>,
    mut each: impl FnMut(&str, &[f32]),
) -> Result<f64, Error> {
    let config = decoder.config();
    check(decoder, tokens)?;
    let mut frame = Frame::new(config, tokens.len(), 1)?;
    let tap = Tap::new(wanted);
    frame.tap = Some(tap.clone());
    let mut hand_on = || -> Result<(), Error> {
        for (name, gradient) in tap.take() {
            ops::read(&gradient.contiguous()?, |gradient| each(&name, gradient))?;
        }
        Ok(())
    };
    let Forwards { inputs, loss, mut flow } = forwards(decoder, tokens, &mut frame)?;
    hand_on()?;
    for (index, layer) in decoder.layers().iter().enumerate().rev() {
        frame.layer = index;
        let input = Var::from_tensor(&inputs[index])?;
        let traced = layer.trace(&input, None, &frame)?;
        let traced = traced.ok_or(Error::NotDifferentiable { family: config.family })?;
        let gradients = (traced.out * &flow)?.sum_all()?.backward()?;
        flow = match gradients.get(&input) {
            Some(gradient) => gradient.contiguous()?,
            None => input.zeros_like()?,
        };
        hand_on()?;
    }
    Ok(loss)
}

/// Refuses what has no gradients.
fn check(decoder: &Decoder, tokens: &[u32]) -> Result<(), Error> {
    let config = decoder.config();
    if tokens.len() < 2 {
        return Err(Error::TooFewTokens { found: tokens.len(), needed: 2 });
    }
    if config.rwkv.is_some() || config.mixture.is_some() {
        return Err(Error::NotDifferentiable { family: config.family });
    }
    Ok(())
}

/// A text that ran through all layers.
struct Forwards {
    /// What enters each layer.
    inputs: Vec<Tensor>,
    loss: f64,
    /// The gradient of the loss with respect to what the last layer gives.
    flow: Tensor,
}

fn forwards(decoder: &Decoder, tokens: &[u32], frame: &mut Frame<'_>) -> Result<Forwards, Error> {
    let refused = || Error::NotDifferentiable { family: decoder.config().family };
    let mut inputs = vec![decoder.embedded(tokens)?];
    for (index, layer) in decoder.layers().iter().enumerate() {
        frame.layer = index;
        let traced = layer.trace(&inputs[index], None, frame)?.ok_or_else(refused)?;
        inputs.push(traced.out);
    }
    let last = inputs.pop().ok_or_else(refused)?;
    let (loss, flow) = head(decoder, tokens, &last, frame.tap.as_ref())?;
    Ok(Forwards { inputs, loss, flow })
}

/// The loss, and its gradient with respect to what the last layer gives.
fn head(decoder: &Decoder, tokens: &[u32], last: &Tensor, tap: Option<&Arc<Tap>>) -> Result<(f64, Tensor), Error> {
    let head = decoder.head();
    let vocab = decoder.config().vocab_size;
    let predicted = tokens.len() - 1;
    let chunk = (LOGITS / vocab).max(1);
    let (mut loss, mut gradients) = (0.0, Vec::new());
    #[expect(clippy::cast_precision_loss, reason = "tokens of a text")]
    let count = predicted as f64;
    for start in (0..predicted).step_by(chunk) {
        let rows = chunk.min(predicted - start);
        let input = Var::from_tensor(&last.narrow(0, start, rows)?.contiguous()?)?;
        let logits = head.trace(&input, tap)?;
        let mut slopes = Vec::with_capacity(rows * vocab);
        ops::read(&logits, |logits| {
            for (row, logits) in logits.chunks_exact(vocab).enumerate() {
                let (_, log_sum) = crate::eval::log_sum(logits).ok_or(Error::NonFiniteLogits { row: start + row })?;
                let target = tokens[start + row + 1] as usize;
                let logit = logits.get(target).ok_or(Error::TokenRange {
                    index: start + row + 1,
                    id: tokens[start + row + 1],
                    vocab,
                })?;
                loss += (log_sum - f64::from(*logit)) / count;
                #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                let slope = |(at, logit): (usize, &f32)| {
                    let p = (f64::from(*logit) - log_sum).exp();
                    ((p - f64::from(u8::from(at == target))) / count) as f32
                };
                slopes.extend(logits.iter().enumerate().map(slope));
            }
            Ok::<(), Error>(())
        })??;
        let slopes = Tensor::from_vec(slopes, (rows, vocab), &Device::Cpu)?;
        let found = (logits * slopes)?.sum_all()?.backward()?;
        let gradient = found.get(&input).map_or_else(|| input.zeros_like(), Tensor::contiguous)?;
        gradients.push(gradient);
    }
    // The last token predicts nothing.
    gradients.push(last.narrow(0, predicted, 1)?.zeros_like()?);
    Ok((loss, Tensor::cat(&gradients, 0)?))
}
