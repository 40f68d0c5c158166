//! Synthetic weights and inputs.

#![allow(dead_code, reason = "each test file uses a part")]

use low_rank::{Ratio, Size, Storage, Truncation};
use ndarray::Array2;
use quant_calib::{Needs, Statistics};
use quant_linalg::{gaussian, matmul, random_orthogonal};

/// How inputs are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Inputs {
    Isotropic,
    /// Covariance with eigenvalues `e^(-i/24)` in a random basis.
    Correlated,
    /// Six channels 30 times as large as the others.
    Outliers,
    /// Both.
    CorrelatedOutliers,
}

#[expect(clippy::cast_possible_truncation, reason = "narrowing is what is wanted")]
pub(crate) fn narrow(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|value| value as f32)
}

pub(crate) fn weight(rows: usize, columns: usize) -> Array2<f32> {
    narrow(&gaussian(rows, columns, 1))
}

/// Tokens `[tokens, features]`.
pub(crate) fn inputs(kind: Inputs, tokens: usize, features: usize, seed: u64) -> Array2<f32> {
    let mut x = gaussian(tokens, features, seed);
    if matches!(kind, Inputs::Correlated | Inputs::CorrelatedOutliers) {
        let deviations = ndarray::Array1::from_shape_fn(features, |i| (-(i as f64) / 48.0).exp());
        let basis = random_orthogonal(features, 77).unwrap();
        x = matmul((x * &deviations).view(), basis.view());
    }
    if matches!(kind, Inputs::Outliers | Inputs::CorrelatedOutliers) {
        for channel in 0..6 {
            x.column_mut(channel * features / 6).mapv_inplace(|value| 30.0 * value);
        }
    }
    narrow(&x)
}

/// Everything that any method needs.
pub(crate) fn statistics(x: &Array2<f32>) -> Statistics {
    let needs = Needs { channels: true, ..Needs::gram() };
    let mut statistics = Statistics::new(x.ncols(), &needs).unwrap();
    statistics.add(x.as_standard_layout().as_slice().unwrap(), None).unwrap();
    statistics
}

/// A rank, in f32, so that rounding stays out of the way.
pub(crate) fn rank(rank: usize) -> Truncation {
    Truncation { size: Size::Rank(rank), storage: Storage::F32, ..Truncation::default() }
}

pub(crate) fn kept(kept: f64) -> Truncation {
    Truncation { size: Size::Ratio(Ratio::Kept(kept)), storage: Storage::F32, ..Truncation::default() }
}

/// `sqrt(Σ ‖(W − W') x‖² / Σ ‖W x‖²)`, summed token by token.
pub(crate) fn measured_output_error(w: &Array2<f32>, approximation: &[f32], x: &Array2<f32>) -> f64 {
    let w = w.mapv(f64::from);
    let error = &w - &Array2::from_shape_vec(w.dim(), approximation.to_vec()).unwrap().mapv(f64::from);
    let x = x.mapv(f64::from);
    let energy = |m: &Array2<f64>| x.dot(&m.t()).iter().map(|value| value * value).sum::<f64>();
    (energy(&error) / energy(&w)).sqrt()
}

pub(crate) fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
}
