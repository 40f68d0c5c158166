//! The error of a layer's outputs, from the Gram matrix of its inputs.

use crate::Error;
use ndarray::{Array2, ArrayView2};
use quant_calib::Gram;

/// The inputs of a layer as far as the error of its outputs depends on them: `G`, the mean of `x xᵀ`.
///
/// `mean ‖(W − Ŵ) x‖² = tr(D G Dᵀ)` with `D = W − Ŵ`.
#[derive(Clone, Debug)]
pub struct OutputError {
    gram: Array2<f32>,
}

impl OutputError {
    /// From a Gram matrix, whose mean over tokens is taken.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokens`] when it has seen none.
    pub fn new(gram: &Gram) -> Result<Self, Error> {
        let total = gram.weight_sum();
        if gram.tokens() == 0 || total <= 0.0 {
            return Err(Error::NoTokens);
        }
        #[expect(clippy::cast_possible_truncation, reason = "products are made in f32")]
        let gram = gram.matrix().mapv(|x| (x / total) as f32);
        Ok(Self { gram })
    }

    /// Number of input features.
    #[must_use]
    pub fn features(&self) -> usize {
        self.gram.nrows()
    }

    /// `G`, `[in, in]`.
    #[must_use]
    pub fn mean_gram(&self) -> ArrayView2<'_, f32> {
        self.gram.view()
    }

    /// `G` for inputs that are divided by `scales`, channel by channel.
    #[must_use]
    pub fn scaled(&self, scales: &[f32]) -> Self {
        let mut gram = self.gram.clone();
        for (mut row, a) in gram.outer_iter_mut().zip(scales) {
            for (x, b) in row.iter_mut().zip(scales) {
                *x = *x / a / b;
            }
        }
        Self { gram }
    }

    /// `tr(D G Dᵀ)` for the difference `D` `[out, in]` of two weights.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] when `D` has another number of columns.
    pub fn of_difference(&self, difference: &Array2<f32>) -> Result<f64, Error> {
        let (expected, found) = (difference.ncols(), self.features());
        if expected != found {
            return Err(Error::Features { what: "the Gram matrix", expected, found });
        }
        let product = quant_linalg::matmul(difference.view(), self.gram.view());
        Ok(row_sums(difference, &product).sum())
    }

    /// `mean ‖(W − Ŵ) x‖²` for row-major weights `[out, in]` of one length.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] when they are not rows of as many features.
    pub fn between(&self, weight: &[f32], approximation: &[f32]) -> Result<f64, Error> {
        let columns = self.features();
        let difference: Vec<f32> = weight.iter().zip(approximation).map(|(w, q)| w - q).collect();
        let rows = difference.len() / columns.max(1);
        if weight.len() != approximation.len() || rows * columns != weight.len() {
            return Err(Error::Features { what: "rows of the weights", expected: columns, found: weight.len() });
        }
        Array2::from_shape_vec((rows, columns), difference)
            .map_or(Err(Error::Features { what: "rows of the weights", expected: columns, found: weight.len() }), |d| {
                self.of_difference(&d)
            })
    }
}

/// `Σ_j a_ij · b_ij` for each row `i`, in f64.
pub(crate) fn row_sums(a: &Array2<f32>, b: &Array2<f32>) -> impl Iterator<Item = f64> {
    (0..a.nrows()).map(move |row| a.row(row).iter().zip(b.row(row)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum())
}
