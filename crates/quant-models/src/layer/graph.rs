//! A transformer layer as a graph that gradients flow back through.
//!
//! It computes what [`super::transformer`] computes, from the same weights. Products with weights and the softmax are
//! operations of their own: the tensor library would form the gradient of every weight too, and keep every
//! intermediate of the softmax.

use super::attention::Attention;
use super::mlp::Mlp;
use super::past::Past;
use super::transformer::{FeedForward, Transformer};
use crate::norm::Norm;
use crate::ops;
use crate::slot::{self, Slot};
use crate::{Activation, Config, Error, RopeTable};
use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Shape, Tensor};
use quant_core::Format;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What a layer's graph needs beside its input.
pub(crate) struct Frame<'a> {
    pub(crate) config: &'a Config,
    pub(crate) layer: usize,
    /// Cosines and sines of the tokens, `[tokens, 1, pairs]`.
    pub(crate) turn: [Tensor; 2],
    /// Takes gradients of weights, where they are asked for.
    pub(crate) tap: Option<Arc<Tap>>,
    /// What attention reads of earlier tokens, where that is not what they were.
    pub(crate) past: Option<Past>,
}

/// Gradients of weights that passed by on the way back, by the names of their slots.
pub(crate) struct Tap {
    wanted: BTreeSet<String>,
    found: Mutex<BTreeMap<String, Tensor>>,
}

impl Tap {
    pub(crate) fn new(wanted: &BTreeSet<String>) -> Arc<Self> {
        Arc::new(Self { wanted: wanted.clone(), found: Mutex::default() })
    }

    /// Adds to the gradient of a slot's weight: its inputs may come in pieces.
    fn add(&self, name: &str, gradient: Tensor) -> candle_core::Result<()> {
        let mut found =
            self.found.lock().map_err(|_| candle_core::Error::msg("a thread that held gradients failed"))?;
        let sum = match found.remove(name) {
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        found.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Gives what came by since the last time.
    pub(crate) fn take(&self) -> BTreeMap<String, Tensor> {
        self.found.lock().map(|mut found| std::mem::take(&mut *found)).unwrap_or_default()
    }
}

/// A layer's output, and its keys (after the rotary turn) and values, `[tokens, kv_heads · head_dim]`.
pub(crate) struct Traced {
    pub(crate) out: Tensor,
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl Frame<'_> {
    /// The frame of a text whose tokens stand at positions `0, stretch, 2·stretch, …`.
    pub(crate) fn new(config: &Config, tokens: usize, stretch: usize) -> Result<Frame<'_>, Error> {
        let table: RopeTable = config.rope.table(0, (tokens - 1) * stretch + 1);
        let pairs = config.rope.rotary_dim / 2;
        let rows = |of: &[f32]| {
            let picked: Vec<f32> = of.chunks_exact(pairs).step_by(stretch).flatten().copied().collect();
            Tensor::from_vec(picked, (tokens, 1, pairs), &Device::Cpu)
        };
        Ok(Frame { config, layer: 0, turn: [rows(table.cosines())?, rows(table.sines())?], tap: None, past: None })
    }
}

impl Transformer {
    /// The layer over one text; `nudges` are added to its keys and values. `None` for layers that are no dense ones.
    pub(super) fn trace(
        &self,
        x: &Tensor,
        nudges: Option<[&Tensor; 2]>,
        frame: &Frame<'_>,
    ) -> Result<Option<Traced>, Error> {
        let FeedForward::Dense(mlp) = &self.mlp else { return Ok(None) };
        let (mixed, keys, values) = trace_attention(&self.attention, &norm(&self.mixer_norm, x)?, nudges, frame)?;
        let middle = (x + mixed)?;
        let out = (&middle + trace_mlp(mlp, &norm(&self.mlp_norm, &middle)?, frame)?)?;
        Ok(Some(Traced { out, keys, values }))
    }
}

fn trace_attention(
    attention: &Attention,
    x: &Tensor,
    nudges: Option<[&Tensor; 2]>,
    frame: &Frame<'_>,
) -> Result<(Tensor, Tensor, Tensor), Error> {
    let config = frame.config;
    let (tokens, dim, kv_heads, group) = (x.dim(0)?, config.head_dim, config.kv_heads, config.heads / config.kv_heads);
    let [q, k, v] = [&attention.q, &attention.k, &attention.v].map(|slot| product(slot, x, frame.tap.as_ref()));
    let heads = |x: Tensor, count: usize, own: &Option<Norm>| -> Result<Tensor, Error> {
        let x = x.reshape((tokens, count, dim))?;
        let x = match own {
            Some(own) => norm(own, &x)?,
            None => x,
        };
        turned(&x, frame)
    };
    let q = heads(q?, config.heads, &attention.q_norm)?;
    let (mut k, mut v) = (heads(k?, kv_heads, &attention.k_norm)?.reshape((tokens, kv_heads * dim))?, v?);
    if let Some([keys, values]) = nudges {
        (k, v) = ((k + keys)?, (v + values)?);
    }
    let queries = q.reshape((tokens, kv_heads, group, dim))?.permute((1, 2, 0, 3))?.contiguous()?;
    let queries = queries.reshape((kv_heads, group * tokens, dim))?;
    let of_heads = |x: &Tensor| Ok::<_, Error>(x.reshape((tokens, kv_heads, dim))?.transpose(0, 1)?.contiguous()?);
    let scores = |k: &Tensor| Ok::<_, Error>(queries.matmul(&of_heads(k)?.t()?)?);
    #[expect(clippy::cast_precision_loss, reason = "a head has far fewer than 2^24 elements")]
    let scale = 1.0 / (dim as f32).sqrt();
    let window = config.windows.get(frame.layer).copied().flatten();
    let softmax = Softmax { tokens, scale, window };
    let mixed = match &frame.past {
        None => scores(&k)?.apply_op1(softmax)?.matmul(&of_heads(&v)?)?,
        Some(past) => {
            let weights = past.join(&scores(&k)?, &scores(&past.keys.rounded(&k)?)?)?.apply_op1(softmax)?;
            past.mix(&weights, &of_heads(&v)?, &of_heads(&past.values.rounded(&v)?)?)?
        }
    };
    let mixed = mixed.reshape((kv_heads, group, tokens, dim))?;
    let mixed = mixed.permute((2, 0, 1, 3))?.contiguous()?.reshape((tokens, config.heads * dim))?;
    Ok((product(&attention.o, &mixed, frame.tap.as_ref())?, k, v))
}

fn trace_mlp(mlp: &Mlp, x: &Tensor, frame: &Frame<'_>) -> Result<Tensor, Error> {
    let tap = frame.tap.as_ref();
    let gate = product(&mlp.gate, x, tap)?;
    let gate = match frame.config.activation {
        Activation::Silu => gate.silu()?,
        Activation::Gelu => gate.gelu_erf()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::Relu => gate.relu()?,
    };
    product(&mlp.down, &(gate * product(&mlp.up, x, tap)?)?, tap)
}

/// Turns `[tokens, heads, dim]` by the tokens' positions.
fn turned(x: &Tensor, frame: &Frame<'_>) -> Result<Tensor, Error> {
    let [cos, sin] = &frame.turn;
    let (pairs, dim) = (cos.dim(2)?, x.dim(2)?);
    let (front, back) = (x.narrow(2, 0, pairs)?, x.narrow(2, pairs, pairs)?);
    let a = (front.broadcast_mul(cos)? - back.broadcast_mul(sin)?)?;
    let b = (back.broadcast_mul(cos)? + front.broadcast_mul(sin)?)?;
    Ok(match dim - 2 * pairs {
        0 => Tensor::cat(&[a, b], 2)?,
        rest => Tensor::cat(&[a, b, x.narrow(2, 2 * pairs, rest)?], 2)?,
    })
}

/// The norm of the last axis.
pub(crate) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor, Error> {
    let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
    let scaled = |x: &Tensor, eps: f32| {
        let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?;
        x.broadcast_div(&mean.sqrt()?)
    };
    Ok(match norm {
        Norm::Rms { gain, eps } => scaled(x, *eps)?.broadcast_mul(&vector(gain.values())?)?,
        Norm::Layer { gain, offset, eps } => {
            let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            scaled(&centred, *eps)?.broadcast_mul(&vector(gain.values())?)?.broadcast_add(&vector(offset.values())?)?
        }
    })
}

/// `x Wᵀ + b` of a slot. Where the slot rounds its input, gradients pass as if it did not ("straight through").
pub(crate) fn product(slot: &Slot, x: &Tensor, tap: Option<&Arc<Tap>>) -> Result<Tensor, Error> {
    let tap = tap.filter(|tap| tap.wanted.contains(slot.name())).map(|tap| (slot.name().to_owned(), tap.clone()));
    let y = x.contiguous()?.apply_op1(Product { weight: slot.matrix()?, input: slot.input_format(), tap })?;
    Ok(match slot.bias() {
        Some(bias) => y.broadcast_add(&Tensor::from_slice(bias, bias.len(), &Device::Cpu)?)?,
        None => y,
    })
}

/// A product with a weight whose gradient is formed only if it is asked for.
struct Product {
    /// `[out, in]`.
    weight: Tensor,
    /// What inputs are rounded to.
    input: Option<Format>,
    /// Where the gradient of the weight goes, and under which name.
    tap: Option<(String, Arc<Tap>)>,
}

impl Product {
    /// Inputs as they are multiplied.
    fn inputs(&self, values: &[f32], dims: &[usize]) -> candle_core::Result<Tensor> {
        let Some(format) = self.input else { return Tensor::from_slice(values, dims, &Device::Cpu) };
        let rounded = slot::round_rows(format, values, self.weight.dim(1)?).map_err(candle_core::Error::wrap)?;
        Tensor::from_vec(rounded, dims, &Device::Cpu)
    }
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "product with a fixed weight"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = self.inputs(values(storage, layout)?, layout.dims())?.matmul(&self.weight.t()?)?;
        Ok((CpuStorage::F32(y.flatten_all()?.to_vec1()?), y.shape().clone()))
    }

    /// `∂x = g W`, and `∂W = gᵀ x`.
    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        if let Some((name, tap)) = &self.tap {
            let x = self.inputs(&arg.flatten_all()?.to_vec1()?, arg.dims())?;
            tap.add(name, grad.t()?.contiguous()?.matmul(&x)?)?;
        }
        grad.matmul(&self.weight).map(Some)
    }
}

/// Scores `[heads, group · tokens, tokens]` to weights: causal, scaled.
struct Softmax {
    tokens: usize,
    scale: f32,
    window: Option<usize>,
}

impl Softmax {
    fn visible(&self, row: usize) -> Range<usize> {
        let position = row % self.tokens;
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "causal softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut weights = values(storage, layout)?.to_vec();
        ops::masked_softmax(&mut weights, self.tokens, self.scale, |row| self.visible(row));
        Ok((CpuStorage::F32(weights), layout.shape().clone()))
    }

    /// `scale · p ⊙ (g − Σ g p)`.
    fn bwd(&self, _arg: &Tensor, p: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let weighted = (grad * p)?;
        let sum = weighted.sum_keepdim(D::Minus1)?;
        let flow = (weighted - p.broadcast_mul(&sum)?)?;
        (flow * f64::from(self.scale)).map(Some)
    }
}

pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => Err(candle_core::Error::msg("activations are contiguous f32")),
    }
}
