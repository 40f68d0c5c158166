//! Whether two models compute the same function.

use crate::Error;
use serde::{Deserialize, Serialize};

/// Compares two functions of rows on random Gaussian inputs, in f64.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Hadamard, SameFunction, Transform, Weight};
/// let w = [1.0, 2.0, 3.0, 4.0];
/// let rotation = Transform::from(Hadamard::new(4)?);
/// let mut folded = w;
/// rotation.fold_input(&mut Weight::new("w", &mut folded, [1, 4])?)?;
///
/// let dot = |w: &[f64], x: &[f64]| x.chunks(4).map(|x| x.iter().zip(w).map(|(a, b)| a * b).sum()).collect();
/// let before = |x: &[f64]| dot(&w, x);
/// let after = |x: &[f64]| {
///     let mut x = x.to_vec();
///     rotation.apply(&mut x).expect("whole rows");
///     dot(&folded, &x)
/// };
/// let error = SameFunction::default().require(4, before, after)?;
/// assert!(error < 1e-14);
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SameFunction {
    /// Rows that are tried.
    pub rows: usize,
    /// Seed of the rows.
    pub seed: u64,
    /// Relative error that [`require`](Self::require) allows.
    pub tolerance: f64,
}

impl Default for SameFunction {
    /// 16 rows; 1e-5, which f32 weights that were folded in f64 reach.
    fn default() -> Self {
        Self { rows: 16, seed: 0, tolerance: 1e-5 }
    }
}

impl SameFunction {
    /// `‖after(x) − before(x)‖ / ‖before(x)‖` in the Frobenius norm, over random rows `x` `[rows, features]`. Infinite when the outputs
    /// differ in number, when one is not finite, and when only `before` is zero.
    pub fn relative_error(
        &self,
        features: usize,
        before: impl FnOnce(&[f64]) -> Vec<f64>,
        after: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> f64 {
        let inputs: Vec<f64> = quant_linalg::gaussian(self.rows, features, self.seed).iter().copied().collect();
        relative_error(&before(&inputs), &after(&inputs))
    }

    /// As [`relative_error`](Self::relative_error), but an error when it exceeds the tolerance.
    ///
    /// # Errors
    ///
    /// [`Error::NotTheSame`].
    pub fn require(
        &self,
        features: usize,
        before: impl FnOnce(&[f64]) -> Vec<f64>,
        after: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<f64, Error> {
        let found = self.relative_error(features, before, after);
        if found <= self.tolerance { Ok(found) } else { Err(Error::NotTheSame { found, tolerance: self.tolerance }) }
    }
}

/// `‖found − expected‖ / ‖expected‖`, in f64; 0 when both are zero, infinite when they differ in length, when a value is not
/// finite, and when only `expected` is zero.
#[must_use]
pub fn relative_error(expected: &[f64], found: &[f64]) -> f64 {
    let energy = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = energy(&mut expected.iter().zip(found).map(|(a, b)| b - a));
    let signal = energy(&mut expected.iter().copied());
    if expected.len() != found.len() || !(error + signal).is_finite() {
        f64::INFINITY
    } else if error == 0.0 {
        0.0
    } else {
        (error / signal).sqrt()
    }
}
