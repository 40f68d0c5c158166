//! What a block's cache rounds with, and steps of its parameters.

use super::adam::Adam;
use super::{frame, texts, trace};
use crate::layer::graph::Frame;
use crate::layer::past::{Past, TwoDim};
use crate::ops::{self, Rows};
use crate::{Error, Layer, Stream};
use candle_core::{Device, Tensor};
use quant_core::{Element, Format, IntRule};

/// Two-dimensional quantization of one stream of a block's cache: channels are shifted and scaled, then rounded by token
/// and group.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRounding {
    /// Of the shifted and scaled row: integers above the least value of a group, [`IntRule::FloatMin`].
    pub format: Format,
    /// One a channel.
    pub shift: Vec<f32>,
    /// One a channel, positive.
    pub scale: Vec<f32>,
}

/// What attention reads of earlier tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct PastRounding {
    /// Of keys, after the rotary turn.
    pub keys: StreamRounding,
    /// Of values.
    pub values: StreamRounding,
    /// First tokens that are kept as they are.
    pub sinks: usize,
    /// Newest earlier tokens that are; each token reads itself as it is.
    pub window: usize,
}

impl PastRounding {
    /// Runs a layer over texts: each token reads itself unrounded and earlier tokens as the cache gives them back.
    ///
    /// # Errors
    ///
    /// [`Error::NotDifferentiable`] for layers that are none of a dense transformer, [`Error::WeightShape`] and
    /// [`Error::BadSetting`] for parameters that are not the layer's.
    pub fn forward(&self, layer: &Layer, stream: &Stream) -> Result<Stream, Error> {
        self.check(layer)?;
        let mut out = Vec::with_capacity(stream.tokens() * stream.width());
        for text in texts(layer, std::slice::from_ref(stream))? {
            let frame = self.frame(layer, text.dim(0)?, &self.tensors()?)?;
            let traced = trace(layer, &text, &frame)?;
            ops::read(&traced.out.contiguous()?, |rows| out.extend_from_slice(rows))?;
        }
        Ok(stream.with_rows(Rows::new(out, stream.width())?))
    }

    pub(super) fn check(&self, layer: &Layer) -> Result<(), Error> {
        let config = layer.config();
        let channels = config.kv_heads * config.head_dim;
        for (name, of) in [("keys", &self.keys), ("values", &self.values)] {
            for (part, values) in [("shift", &of.shift), ("scale", &of.scale)] {
                let name = format!("{part} of {name} of layer {}", layer.index());
                if values.len() != channels {
                    let (expected, found) = (vec![channels], vec![values.len()]);
                    return Err(Error::WeightShape { name, expected, found });
                }
                let unusable = |x: f32| !x.is_finite() || (part == "scale" && x <= 0.0);
                if let Some((index, &value)) = values.iter().enumerate().find(|(_, x)| unusable(**x)) {
                    return Err(Error::NonFiniteWeight { name, index, value });
                }
            }
            if !matches!(of.format.element, Element::Int { rule: IntRule::FloatMin, .. }) {
                let expected = "integers above the least value of a group, such as int4-min";
                let value = of.format.to_string();
                return Err(Error::BadSetting { name: "format of a cache with learned scales", value, expected });
            }
        }
        Ok(())
    }

    /// Shifts and scales of keys, then of values.
    pub(super) fn tensors(&self) -> Result<[Tensor; 4], Error> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let Self { keys, values, .. } = self;
        Ok([tensor(&keys.shift)?, tensor(&keys.scale)?, tensor(&values.shift)?, tensor(&values.scale)?])
    }

    /// The frame of a text in which these tensors shift and scale.
    pub(super) fn frame<'a>(
        &self,
        layer: &'a Layer,
        tokens: usize,
        parameters: &[Tensor; 4],
    ) -> Result<Frame<'a>, Error> {
        let config = layer.config();
        let [key_shift, key_scale, value_shift, value_scale] = parameters.clone();
        let of = |format, shift, scale| TwoDim { format, shift, scale, dim: config.head_dim };
        let streams = [of(self.keys.format, key_shift, key_scale), of(self.values.format, value_shift, value_scale)];
        let group = config.heads / config.kv_heads.max(1);
        let mut frame = frame(layer, tokens)?;
        frame.past = Some(Past::new(streams, [self.sinks, self.window], group, tokens)?);
        Ok(frame)
    }
}

/// The logarithms of scales over those of the start, and shifts from the start in units of the scale there: one rate fits
/// channels of all sizes.
pub(super) struct Smoothing {
    start: PastRounding,
    /// In the order of [`PastRounding::tensors`].
    moved: [Vec<f64>; 4],
    adam: [Adam; 4],
}

impl Smoothing {
    pub(super) fn new(start: &PastRounding, rate: f64) -> Self {
        let lists = [&start.keys.shift, &start.keys.scale, &start.values.shift, &start.values.scale];
        let moved = lists.map(|list| vec![0.0; list.len()]);
        Self { start: start.clone(), moved, adam: lists.map(|list| Adam::new(rate, list.len())) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "parameters are used as f32")]
    pub(super) fn parameters(&self) -> PastRounding {
        let mut past = self.start.clone();
        let [key_shift, key_scale, value_shift, value_scale] = &self.moved;
        let streams = [(&mut past.keys, key_shift, key_scale), (&mut past.values, value_shift, value_scale)];
        for (stream, shift, scale) in streams {
            for (x, (by, unit)) in stream.shift.iter_mut().zip(shift.iter().zip(&stream.scale)) {
                *x = (f64::from(*x) + by * f64::from(*unit)) as f32;
            }
            stream.scale.iter_mut().zip(scale).for_each(|(x, by)| *x = (f64::from(*x) * by.exp()) as f32);
        }
        past
    }

    pub(super) fn step(&mut self, gradients: &[Vec<f32>; 4]) {
        let now = self.parameters();
        // ∂shift/∂moved is the scale of the start, ∂scale/∂moved the scale.
        let units = [&self.start.keys.scale, &now.keys.scale, &self.start.values.scale, &now.values.scale];
        for (((moved, adam), gradient), unit) in self.moved.iter_mut().zip(&mut self.adam).zip(gradients).zip(units) {
            let chained: Vec<f64> =
                gradient.iter().zip(unit).map(|(g, unit)| f64::from(*g) * f64::from(*unit)).collect();
            adam.step(moved, &chained);
        }
    }
}
