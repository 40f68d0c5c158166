//! WKVQuant (arXiv 2402.12065): static scales by channel, dynamic ones by token, and only the past is quantized.
//!
//! | part of the paper | here |
//! |---|---|
//! | past-only quantization | [`Attention::fresh`](crate::Attention::fresh): attend first, append afterwards |
//! | two-dimensional quantization | [`TwoDimConfig::codec`] |
//! | its inverse folded into the projections | [`fold_values`], [`fold_key_scales`] |
//!
//! Learning shifts and scales (cross-block reconstruction) needs a model and its gradients: `quant_models::RoundedBlock`
//! does it, from the closed forms of [`ChannelAffine`] on. What was learned comes back through
//! [`StreamStatistics::affine`](crate::StreamStatistics::affine).

use crate::codec::{ChannelAffine, Mapped, TokenFormat};
use crate::{Error, KvGeometry};
use quant_core::{Block, Element, Format, IntRule, Scale, ScaleType};
use std::sync::Arc;

/// Parameters of two-dimensional quantization.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TwoDimConfig {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Channels of a head that share a token's range.
    pub group: u32,
}

impl Default for TwoDimConfig {
    fn default() -> Self {
        Self { bits: 4, group: 128 }
    }
}

impl TwoDimConfig {
    /// The codec: `x' = (x − shift)/scale` by channel; of `x'`, by token and group,
    /// `Δ = max((max − min)/(2^b − 1), 1e-5)` and `q = rne((x' − min)/Δ)`; `x ≈ (q·Δ + min)·scale + shift`.
    ///
    /// It needs no window and no waiting tokens, and is appended to token by token.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] when the affine map is made for other channels, [`Error::Format`] for widths beyond 8 bits or
    /// empty groups.
    ///
    /// # Examples
    ///
    /// ```
    /// use kv_cache_quant::{ChannelAffine, Codec, TwoDimConfig};
    /// let affine = ChannelAffine::from_min_max(&[-1.0, 18.0], &[1.0, 22.0])?;
    /// let codec = TwoDimConfig::default().codec(1, 2, affine)?;
    /// let mut unit = vec![0; codec.bytes(0).total()];
    /// let mut out = [0.0; 2];
    /// codec.seal(&[0.5, 21.0], 0, &mut unit)?;
    /// codec.open(&unit, 0, &mut out)?;
    /// assert_eq!(out, [0.5, 21.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn codec(&self, heads: usize, dim: usize, affine: ChannelAffine) -> Result<Mapped, Error> {
        Mapped::new(Arc::new(affine), Arc::new(TokenFormat::new(heads, dim, self.format())?))
    }

    /// The format of a head's shifted and scaled channels.
    #[must_use]
    pub fn format(&self) -> Format {
        Format {
            element: Element::Int { bits: self.bits, rule: IntRule::FloatMin },
            block: Block::Group(self.group),
            scale: Scale::Float(ScaleType::F16),
        }
    }
}

/// A linear map as checkpoints hold it: `y = W x + b`.
#[derive(Debug)]
pub struct Projection<'a> {
    /// `[outputs, inputs]`, row-major.
    pub weight: &'a mut [f32],
    /// One an output; empty: no bias.
    pub bias: &'a mut Vec<f32>,
}

impl Projection<'_> {
    /// The number of inputs for so many outputs.
    fn inputs(&self, what: &'static str, outputs: usize) -> Result<usize, Error> {
        let found = self.weight.len();
        if found == 0 || !found.is_multiple_of(outputs) {
            return Err(Error::Shape { what, expected: outputs, found });
        }
        if !self.bias.is_empty() && self.bias.len() != outputs {
            return Err(Error::Shape { what: "bias", expected: outputs, found: self.bias.len() });
        }
        Ok(found / outputs)
    }

    /// `y ↦ (y − shift)·factor` by output.
    fn map_outputs(&mut self, inputs: usize, map: impl Fn(usize) -> (f32, f32)) {
        for (output, row) in self.weight.chunks_exact_mut(inputs).enumerate() {
            let (_, factor) = map(output);
            row.iter_mut().for_each(|w| *w *= factor);
        }
        for (output, b) in self.bias.iter_mut().enumerate() {
            let (shift, factor) = map(output);
            *b = (*b - shift) * factor;
        }
    }
}

/// Folds the affine map of values into the projections around attention, so that nothing is left to do when decoding:
/// `W_v, b_v` give `(v − shift)/scale`. Since the weights of attention add up to 1, `W_o` times the scales, with
/// `W_o·shift` added to `b_o`, undo it exactly. Every query head of a group takes the scales of its key-value head. The
/// cache is then made with the identity. Biases that were empty are made.
///
/// # Errors
///
/// [`Error::Width`] when the map is made for other channels, [`Error::Shape`] when a matrix does not fit the geometry.
pub fn fold_values(
    value: &mut Projection<'_>,
    output: &mut Projection<'_>,
    affine: &ChannelAffine,
    geometry: KvGeometry,
) -> Result<(), Error> {
    geometry.check()?;
    let channels = geometry.value_width();
    check_width(affine, channels)?;
    let inputs = value.inputs("value projection", channels)?;
    let columns = geometry.q_heads * geometry.dim_v;
    if output.weight.is_empty() || !output.weight.len().is_multiple_of(columns) {
        return Err(Error::Shape { what: "output projection", expected: columns, found: output.weight.len() });
    }
    let outputs = output.weight.len() / columns;
    output.inputs("output projection", outputs)?;
    let channel = |column: usize| {
        let (head, place) = (column / geometry.dim_v, column % geometry.dim_v);
        head / geometry.group() * geometry.dim_v + place
    };
    output.bias.resize(outputs, 0.0);
    for (row, bias) in output.weight.chunks_exact_mut(columns).zip(output.bias.iter_mut()) {
        let shifted = |(column, w): (usize, &f32)| f64::from(*w) * f64::from(affine.shift()[channel(column)]);
        #[expect(clippy::cast_possible_truncation, reason = "summed in f64, rounded once")]
        let constant = row.iter().enumerate().map(shifted).sum::<f64>() as f32;
        *bias += constant;
        row.iter_mut().enumerate().for_each(|(column, w)| *w *= affine.scale()[channel(column)]);
    }
    value.bias.resize(channels, 0.0);
    value.map_outputs(inputs, |c| (affine.shift()[c], affine.scale()[c].recip()));
    Ok(())
}

/// Folds the scales of keys into the projections before the rotary turn: `W_k` over, `W_q` times the scales. Logits
/// stay what they are provided that rotary partners share their scale; see [`ChannelAffine::share_rope_pairs`]. Shifts
/// must be zero: before the turn they would have to be added back.
///
/// Not for models that normalise queries and keys after the projection.
///
/// # Errors
///
/// [`Error::Width`] and [`Error::Shape`] as [`fold_values`]; [`Error::Parameter`] for a shift that is not zero;
/// [`Error::Unsupported`] when partners of the first `rotary` channels of a head differ in scale.
pub fn fold_key_scales(
    query: &mut Projection<'_>,
    key: &mut Projection<'_>,
    affine: &ChannelAffine,
    geometry: KvGeometry,
    pairing: crate::RopePairing,
    rotary: usize,
) -> Result<(), Error> {
    geometry.check()?;
    check_width(affine, geometry.key_width())?;
    if let Some((channel, &value)) = affine.shift().iter().enumerate().find(|(_, shift)| **shift != 0.0) {
        return Err(Error::Parameter { what: "shift to fold before the rotary turn", channel, value, positive: false });
    }
    let mut shared = affine.clone();
    shared.share_rope_pairs(pairing, geometry.dim_k, rotary)?;
    if shared != *affine {
        return Err(Error::Unsupported {
            what: "scale of keys",
            found: "different for rotary partners".into(),
            supported: "scales that partners share",
        });
    }
    let key_inputs = key.inputs("key projection", geometry.key_width())?;
    let query_inputs = query.inputs("query projection", geometry.q_heads * geometry.dim_k)?;
    let scale = |output: usize| {
        let (head, place) = (output / geometry.dim_k, output % geometry.dim_k);
        affine.scale()[head / geometry.group() * geometry.dim_k + place]
    };
    key.map_outputs(key_inputs, |c| (0.0, affine.scale()[c].recip()));
    query.map_outputs(query_inputs, |c| (0.0, scale(c)));
    Ok(())
}

fn check_width(affine: &ChannelAffine, expected: usize) -> Result<(), Error> {
    let found = affine.shift().len();
    if found == expected { Ok(()) } else { Err(Error::Width { what: "affine map", expected, found }) }
}
