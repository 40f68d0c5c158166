//! What is made small, and how.

use crate::Error;

/// How parameters of a block are learned.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reconstruction {
    /// Blocks whose outputs count together: the one that is learned, and those behind it, in full precision. 1 is
    /// reconstruction of the block's own output.
    pub blocks: usize,
    /// What is made small.
    pub loss: Loss,
    /// Passes over the texts; none leaves the parameters at their start.
    pub epochs: usize,
    /// Step of AdamW for γ and β.
    pub clip_rate: f64,
    /// Step of AdamW for the logarithm of scales, and for shifts in units of the scale that they started with.
    pub smoothing_rate: f64,
    /// Of the order of the texts.
    pub seed: u64,
}

impl Default for Reconstruction {
    /// Five blocks, mean absolute error, five passes.
    fn default() -> Self {
        Self { blocks: 5, loss: Loss::Mae, epochs: 5, clip_rate: 5e-3, smoothing_rate: 1e-3, seed: 0 }
    }
}

/// The error of outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Mean magnitude: an outlier counts as much as it is off.
    #[default]
    Mae,
    /// Mean square.
    Mse,
}

impl Loss {
    /// The loss, and its gradient with respect to `found`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "means in f64, rounded once")]
    pub(super) fn of(self, found: &[f32], wanted: &[f32]) -> (f64, Vec<f32>) {
        let count = found.len().max(1) as f64;
        let differences = found.iter().zip(wanted).map(|(x, y)| f64::from(*x) - f64::from(*y));
        let value = differences.clone().map(|d| if self == Self::Mae { d.abs() } else { d * d }).sum::<f64>() / count;
        let slope = |d: f64| match self {
            Self::Mae if d == 0.0 => 0.0,
            Self::Mae => (d.signum() / count) as f32,
            Self::Mse => (2.0 * d / count) as f32,
        };
        (value, differences.map(slope).collect())
    }
}

impl Reconstruction {
    /// Checks ranges.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`].
    pub fn validate(&self) -> Result<(), Error> {
        let bad = |name, value: String, expected| Err(Error::BadSetting { name, value, expected });
        if !(1..=1 << 10).contains(&self.blocks) {
            return bad("blocks", self.blocks.to_string(), "from 1 to 1024");
        }
        if self.epochs > 1 << 16 {
            return bad("epochs", self.epochs.to_string(), "at most 65536");
        }
        for (name, rate) in [("clip_rate", self.clip_rate), ("smoothing_rate", self.smoothing_rate)] {
            if !(0.0..=1.0).contains(&rate) {
                return bad(name, rate.to_string(), "from 0 to 1");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Loss;

    /// The cosine of a gradient with the one without an outlier, both without the outlier's own element.
    fn share_kept(loss: Loss) -> f64 {
        let wanted: Vec<f32> = (0..512_u16).map(|at| f32::from(at % 7) - 3.0).collect();
        let found: Vec<f32> = wanted.iter().enumerate().map(|(at, x)| x + [0.5, -0.25, 0.125][at % 3]).collect();
        let mut with = found.clone();
        with[77] = wanted[77] + 1000.0 * (found[77] - wanted[77]);
        let ((_, clean), (_, spoilt)) = (loss.of(&found, &wanted), loss.of(&with, &wanted));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(&clean, &spoilt) / (dot(&clean, &clean) * dot(&spoilt, &spoilt)).sqrt()
    }

    #[test]
    fn an_outlier_of_one_output_takes_over_the_gradient_of_squares_and_not_of_magnitudes() {
        assert!(share_kept(Loss::Mae) > 0.9, "{}", share_kept(Loss::Mae));
        assert!(share_kept(Loss::Mse) < 0.3, "{}", share_kept(Loss::Mse));
    }

    #[test]
    fn gradients_of_losses_are_their_slopes() {
        let (found, wanted) = ([1.0_f32, -2.0, 0.5, 0.0], [0.5_f32, -1.0, 0.5, 3.0]);
        assert_eq!(Loss::Mae.of(&found, &wanted), (1.125, vec![0.25, -0.25, 0.0, -0.25]));
        assert_eq!(Loss::Mse.of(&found, &wanted), (2.5625, vec![0.25, -0.5, 0.0, -1.5]));
    }
}
