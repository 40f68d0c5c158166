//! Static scale and shift of every channel: `x' = (x − shift)/scale` is stored.

use crate::codec::{RowMap, fingerprint};
use crate::{Error, RopePairing};

/// A scale and a shift for every channel, fixed by calibration.
///
/// | method | shift | scale |
/// |---|---|---|
/// | mean removal | mean | 1 |
/// | SmoothQuant-style | 0 | `max|x|^α`, see [`ChannelAffine::smooth`] |
/// | WKVQuant's static half | middle of the range, or mean | half of the range, or deviation |
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelAffine {
    shift: Vec<f32>,
    scale: Vec<f32>,
}

/// Scales are at least this part of the largest.
const LEAST_SCALE: f32 = 1e-5;

impl ChannelAffine {
    /// From shifts and scales, one a channel.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] when the two differ in length, [`Error::Parameter`] for shifts that are not finite and scales
    /// that are not positive.
    pub fn new(shift: Vec<f32>, scale: Vec<f32>) -> Result<Self, Error> {
        if shift.len() != scale.len() {
            return Err(Error::Width { what: "list of scales", expected: shift.len(), found: scale.len() });
        }
        if let Some((channel, &value)) = shift.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(Error::Parameter { what: "shift", channel, value, positive: false });
        }
        let unusable = |x: f32| !(x.is_finite() && x > 0.0 && x.recip().is_finite());
        if let Some((channel, &value)) = scale.iter().enumerate().find(|(_, x)| unusable(**x)) {
            return Err(Error::Parameter { what: "scale", channel, value, positive: true });
        }
        Ok(Self { shift, scale })
    }

    /// Changes nothing.
    #[must_use]
    pub fn identity(channels: usize) -> Self {
        Self { shift: vec![0.0; channels], scale: vec![1.0; channels] }
    }

    /// Maps the range of each channel onto [−1, 1]. Sinks should not be part of the statistics.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] and [`Error::Parameter`].
    pub fn from_min_max(min: &[f32], max: &[f32]) -> Result<Self, Error> {
        check_len(min, max)?;
        let shift = min.iter().zip(max).map(|(lo, hi)| lo / 2.0 + hi / 2.0).collect();
        Self::new(shift, floored(min.iter().zip(max).map(|(lo, hi)| hi / 2.0 - lo / 2.0).collect()))
    }

    /// Gives each channel mean 0 and deviation 1, which single extreme tokens move less than the range.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] and [`Error::Parameter`].
    pub fn from_moments(mean: &[f32], deviation: &[f32]) -> Result<Self, Error> {
        check_len(mean, deviation)?;
        Self::new(mean.to_vec(), floored(deviation.to_vec()))
    }

    /// Subtracts the mean of each channel.
    ///
    /// # Errors
    ///
    /// [`Error::Parameter`] for a mean that is not finite.
    pub fn remove_mean(mean: &[f32]) -> Result<Self, Error> {
        Self::new(mean.to_vec(), vec![1.0; mean.len()])
    }

    /// SmoothQuant-style scales `λ = clamp(max|x|^α, 1e-4, 1e4)`: α = 1 makes all channels equally large, 0.5 is the
    /// usual compromise.
    ///
    /// # Errors
    ///
    /// [`Error::Parameter`] for a maximum that is negative or not finite.
    ///
    /// # Examples
    ///
    /// ```
    /// let smooth = kv_cache_quant::ChannelAffine::smooth(&[4.0, 0.25], 0.5)?;
    /// assert_eq!(smooth.scale(), [2.0, 0.5]);
    /// # Ok::<(), kv_cache_quant::Error>(())
    /// ```
    pub fn smooth(max_abs: &[f32], alpha: f32) -> Result<Self, Error> {
        if let Some((channel, &value)) = max_abs.iter().enumerate().find(|(_, x)| !(x.is_finite() && **x >= 0.0)) {
            return Err(Error::Parameter { what: "largest magnitude", channel, value, positive: false });
        }
        let scale = max_abs.iter().map(|x| x.powf(alpha).clamp(1e-4, 1e4)).collect();
        Self::new(vec![0.0; max_abs.len()], scale)
    }

    /// Gives the two channels that the rotary turn mixes the larger of their scales, as is needed where scales are to
    /// be folded into the projections before the turn.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when heads of `dim` channels do not make up the row, or are shorter than `rotary`.
    pub fn share_rope_pairs(&mut self, pairing: RopePairing, dim: usize, rotary: usize) -> Result<(), Error> {
        if dim == 0 || !self.scale.len().is_multiple_of(dim) || rotary > dim || !rotary.is_multiple_of(2) {
            return Err(Error::Unsupported {
                what: "heads of a channel scale",
                found: format!("{} channels in heads of {dim}, {rotary} turned", self.scale.len()),
                supported: "whole heads, an even number of turned channels within them",
            });
        }
        for head in self.scale.chunks_exact_mut(dim) {
            for i in 0..rotary / 2 {
                let (a, b) = pairing.pair(i, rotary / 2);
                let larger = head[a].max(head[b]);
                (head[a], head[b]) = (larger, larger);
            }
        }
        Ok(())
    }

    /// Shifts, one a channel.
    #[must_use]
    pub fn shift(&self) -> &[f32] {
        &self.shift
    }

    /// Scales, one a channel.
    #[must_use]
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }
}

fn check_len(a: &[f32], b: &[f32]) -> Result<(), Error> {
    if a.len() == b.len() {
        return Ok(());
    }
    Err(Error::Width { what: "list of statistics", expected: a.len(), found: b.len() })
}

/// Keeps dead channels from dividing by zero.
fn floored(scale: Vec<f32>) -> Vec<f32> {
    let least = LEAST_SCALE * scale.iter().copied().fold(0.0, f32::max);
    let least = if least > 0.0 { least } else { 1.0 };
    scale.into_iter().map(|s| if s < least { least } else { s }).collect()
}

impl RowMap for ChannelAffine {
    fn width(&self) -> usize {
        self.shift.len()
    }

    fn forward(&self, row: &mut [f32]) {
        row.iter_mut()
            .zip(self.shift.iter().zip(&self.scale))
            .for_each(|(x, (shift, scale))| *x = (*x - shift) / scale);
    }

    fn inverse(&self, row: &mut [f32]) {
        row.iter_mut().zip(self.shift.iter().zip(&self.scale)).for_each(|(x, (shift, scale))| *x = *x * scale + shift);
    }

    fn transpose(&self, row: &mut [f32]) -> bool {
        row.iter_mut().zip(&self.scale).for_each(|(x, scale)| *x *= scale);
        true
    }

    fn auxiliary_bytes(&self) -> u64 {
        4 * (self.shift.capacity() + self.scale.capacity()) as u64
    }

    fn description(&self) -> String {
        format!("channel affine {:016x}", fingerprint(self.shift.iter().chain(&self.scale).copied()))
    }
}
