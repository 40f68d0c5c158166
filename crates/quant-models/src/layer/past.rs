//! Attention whose past went through two-dimensional quantization (WKVQuant, arXiv 2402.12065), as part of a graph.

use crate::{Error, slot};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Shape, Tensor};
use quant_core::{Block, Element, Format};

use super::graph::values;

/// What a token reads of the tokens before it.
#[derive(Clone)]
pub(crate) struct Past {
    pub(crate) keys: TwoDim,
    pub(crate) values: TwoDim,
    /// 1 where a row is read unrounded, `[group · tokens, tokens]`, and 1 where it is not.
    exact: Tensor,
    rounded: Tensor,
}

impl Past {
    /// Token `t` reads row `j` unrounded if it is its own, among the first `sinks`, or among the `window` before `t`. Each
    /// of the `group` query heads that share a row reads it so.
    pub(crate) fn new(
        [keys, values]: [TwoDim; 2],
        [sinks, window]: [usize; 2],
        group: usize,
        tokens: usize,
    ) -> Result<Self, Error> {
        let is_exact = |t: usize, j: usize| j < sinks || j + window >= t;
        let one = |t: usize| (0..tokens).map(move |j| f32::from(u8::from(is_exact(t, j))));
        let mask: Vec<f32> = (0..group).flat_map(|_| (0..tokens).flat_map(one)).collect();
        let exact = Tensor::from_vec(mask, (group * tokens, tokens), &Device::Cpu)?;
        let rounded = (exact.ones_like()? - &exact)?;
        Ok(Self { keys, values, exact, rounded })
    }

    /// Of two matrices `[heads, group · tokens, tokens]` the one where rows are read unrounded, the other elsewhere.
    pub(crate) fn join(&self, exact: &Tensor, rounded: &Tensor) -> Result<Tensor, Error> {
        Ok((exact.broadcast_mul(&self.exact)? + rounded.broadcast_mul(&self.rounded)?)?)
    }

    /// `P V̂ + (P ⊙ exact)(V − V̂)`: with exact rows on the diagonal only, the matrix form of past-only quantization.
    pub(crate) fn mix(&self, weights: &Tensor, exact: &Tensor, rounded: &Tensor) -> Result<Tensor, Error> {
        let lost = (exact - rounded)?;
        Ok((weights.matmul(rounded)? + weights.broadcast_mul(&self.exact)?.matmul(&lost)?)?)
    }
}

/// Two-dimensional quantization of rows: `x' = (x − shift)/scale` by channel, `x'` rounded by token and group.
#[derive(Clone)]
pub(crate) struct TwoDim {
    /// `[channels]`.
    pub(crate) shift: Tensor,
    /// `[channels]`, positive.
    pub(crate) scale: Tensor,
    pub(crate) format: Format,
    /// Channels of a head, which groups do not cross.
    pub(crate) dim: usize,
}

impl TwoDim {
    /// Rows `[tokens, channels]` as they are read back. They arrive as f16, as in a cache.
    pub(crate) fn rounded(&self, rows: &Tensor) -> Result<Tensor, Error> {
        let rows = rows.to_dtype(DType::F16)?.to_dtype(DType::F32)?.contiguous()?;
        let op = RoundRows { format: self.format, dim: self.dim };
        Ok(rows.apply_op3(&self.shift, &self.scale, op)?)
    }
}

/// The least step of a group, below which its range does not count.
const LEAST_STEP: f32 = 1e-5;

struct RoundRows {
    format: Format,
    dim: usize,
}

impl RoundRows {
    /// `x'`, and what it is rounded to.
    fn normalized(&self, x: &[f32], shift: &[f32], scale: &[f32]) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        let channels = shift.len().max(1);
        let row = |row: &[f32]| -> Vec<f32> {
            row.iter().zip(shift.iter().zip(scale)).map(|(x, (shift, scale))| (x - shift) / scale).collect()
        };
        let inner: Vec<f32> = x.chunks_exact(channels).flat_map(row).collect();
        let rounded = slot::round_rows(self.format, &inner, self.dim).map_err(candle_core::Error::wrap)?;
        Ok((inner, rounded))
    }

    /// Gradients with respect to rows, shifts and scales, straight through the rounding. With `Q(x') = rne(u)·Δ + lo`,
    /// `u = (x' − lo)/Δ` and `Δ = (hi − lo)/(2^b − 1)`: `∂Q/∂x' = 1` and `∂Q/∂Δ = rne(u) − u`, which reaches the channels
    /// that have the least and the largest `x'` of the group.
    fn slopes(&self, x: &[f32], shift: &[f32], scale: &[f32], grad: &[f32]) -> candle_core::Result<[Vec<f32>; 3]> {
        let (inner, rounded) = self.normalized(x, shift, scale)?;
        let channels = shift.len().max(1);
        let group = match self.format.block {
            Block::Group(group) => (group as usize).clamp(1, self.dim),
            _ => self.dim,
        };
        let levels = match self.format.element {
            Element::Int { bits, .. } => f32::from((1_u16 << bits) - 1),
            _ => return Err(candle_core::Error::msg("codes of a key-value cache are integers")),
        };
        let mut rows = vec![0.0; x.len()];
        let (mut shifts, mut scales) = (vec![0.0_f64; channels], vec![0.0_f64; channels]);
        let heads = (0..x.len()).step_by(self.dim.max(1));
        let groups = heads.flat_map(|head| {
            let end = head + self.dim;
            (head..end).step_by(group).map(move |start| start..end.min(start + group))
        });
        for place in groups {
            let start = place.start;
            let (inner, rounded) = (&inner[place.clone()], &rounded[place.clone()]);
            // ∂L/∂Q, then ∂L/∂x'.
            let of = |at: usize| (start + at) % channels;
            let mut flow: Vec<f32> = grad[place].iter().enumerate().map(|(at, g)| g * scale[of(at)]).collect();
            let by = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1);
            let least = inner.iter().enumerate().min_by(by).map_or(0, |(at, _)| at);
            let most = inner.iter().enumerate().max_by(by).map_or(0, |(at, _)| at);
            let step = (inner[most] - inner[least]) / levels;
            if step > LEAST_STEP {
                let left = rounded.iter().zip(inner).map(|(q, x)| (q - x) / step);
                let of_step: f32 = flow.iter().zip(left).map(|(g, left)| g * left).sum();
                flow[most] += of_step / levels;
                flow[least] -= of_step / levels;
            }
            for (at, flow) in flow.into_iter().enumerate() {
                let (channel, g) = (of(at), grad[start + at]);
                rows[start + at] = flow / scale[channel];
                shifts[channel] += f64::from(g) - f64::from(rows[start + at]);
                scales[channel] +=
                    f64::from(g) * f64::from(rounded[at]) - f64::from(rows[start + at]) * f64::from(inner[at]);
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "summed in f64, rounded once")]
        let narrow = |sums: Vec<f64>| sums.into_iter().map(|x| x as f32).collect();
        Ok([rows, narrow(shifts), narrow(scales)])
    }
}

impl CustomOp3 for RoundRows {
    fn name(&self) -> &'static str {
        "two-dimensional quantization"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (shift, scale) = (values(shift, shift_layout)?, values(scale, scale_layout)?);
        let (_, mut out) = self.normalized(values(x, x_layout)?, shift, scale)?;
        for row in out.chunks_exact_mut(shift.len().max(1)) {
            row.iter_mut().zip(shift.iter().zip(scale)).for_each(|(x, (shift, scale))| *x = *x * scale + shift);
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let [rows, shifts, scales] = self.slopes(&flat(x)?, &flat(shift)?, &flat(scale)?, &flat(grad)?)?;
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
        Ok((Some(tensor(rows, x)?), Some(tensor(shifts, shift)?), Some(tensor(scales, scale)?)))
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "made-up numbers are small")]
mod tests {
    use super::*;
    use quant_core::{IntRule, Scale, ScaleType};

    fn two_bits() -> RoundRows {
        let element = Element::Int { bits: 2, rule: IntRule::FloatMin };
        let format = Format { element, block: Block::Group(4), scale: Scale::Float(ScaleType::F32) };
        RoundRows { format, dim: 8 }
    }

    /// Rounding replaced by what it did at one place: `y = (x' + r·Δ)·scale + shift` with `r = rne(u) − u` as it was there.
    /// Its slopes are what "straight through" means.
    fn surrogate(x: &[f64], shift: &[f64], scale: &[f64], left: &[f64], weights: &[f64]) -> f64 {
        let channels = shift.len();
        let mut sum = 0.0;
        for group in (0..x.len()).step_by(4) {
            let inner: Vec<f64> =
                (group..group + 4).map(|at| (x[at] - shift[at % channels]) / scale[at % channels]).collect();
            let (lo, hi) = inner.iter().fold((f64::MAX, f64::MIN), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
            for (at, inner) in inner.iter().enumerate() {
                let (place, channel) = (group + at, (group + at) % channels);
                let read = (inner + left[place] * (hi - lo) / 3.0) * scale[channel] + shift[channel];
                sum += weights[place] * read;
            }
        }
        sum
    }

    #[test]
    fn slopes_of_rounded_rows_are_those_of_rounding_held_fast() {
        let op = two_bits();
        // 3 tokens of 2 heads of 8 channels.
        let wave = |at: usize, by: f64| ((at as f64 * by).sin() * 7.3).fract();
        let x: Vec<f64> = (0..48).map(|at| wave(at, 1.7) * 3.0).collect();
        let shift: Vec<f64> = (0..16).map(|at| wave(at, 0.9)).collect();
        let scale: Vec<f64> = (0..16).map(|at| 0.5 + wave(at, 2.3).abs()).collect();
        let weights: Vec<f64> = (0..48).map(|at| wave(at, 3.1)).collect();
        let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<f32>>();
        let [xs, shifts, scales, grads] = [&x, &shift, &scale, &weights].map(|values| narrow(values));
        let (inner, rounded) = op.normalized(&xs, &shifts, &scales).unwrap();
        let left: Vec<f64> = (0..48)
            .map(|at| {
                let group = &inner[at / 4 * 4..at / 4 * 4 + 4];
                let (lo, hi) = group.iter().fold((f32::MAX, f32::MIN), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
                f64::from((rounded[at] - inner[at]) / ((hi - lo) / 3.0))
            })
            .collect();
        assert!(left.iter().any(|left| left.abs() > 0.2), "two bits leave something");
        let found = op.slopes(&xs, &shifts, &scales, &grads).unwrap();
        for (which, slopes) in found.iter().enumerate() {
            for (at, slope) in slopes.iter().enumerate() {
                let nudged = |by: f64| {
                    let mut all = [x.clone(), shift.clone(), scale.clone()];
                    all[which][at] += by;
                    surrogate(&all[0], &all[1], &all[2], &left, &weights)
                };
                let expected = (nudged(1e-6) - nudged(-1e-6)) / 2e-6;
                let off = (f64::from(*slope) - expected).abs();
                assert!(off < 2e-3 * (1.0 + expected.abs()), "{which} {at}: {slope} beside {expected}");
            }
        }
    }

    #[test]
    fn a_group_without_a_range_passes_gradients_by_and_gives_scales_none() {
        let op = two_bits();
        let found = op.slopes(&[1.0; 8], &[1.0; 8], &[2.0; 8], &[1.0; 8]).unwrap();
        assert_eq!(found, [vec![1.0; 8], vec![0.0; 8], vec![0.0; 8]]);
    }

    #[test]
    fn a_token_reads_itself_sinks_and_window_unrounded() {
        let two_dim = || TwoDim {
            shift: Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
            scale: Tensor::ones(4, DType::F32, &Device::Cpu).unwrap(),
            format: two_bits().format,
            dim: 4,
        };
        let past = Past::new([two_dim(), two_dim()], [1, 1], 2, 4).unwrap();
        let mask = past.exact.to_vec2::<f32>().unwrap();
        let expected =
            [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]].map(Vec::from);
        assert_eq!(mask[..4], expected);
        assert_eq!(mask[4..], expected, "the same for every head of a group");
    }
}
