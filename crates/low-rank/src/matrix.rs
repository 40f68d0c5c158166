//! Weights as f64 matrices, and errors between them.

use crate::Error;
use ndarray::{Array2, ArrayView2};
use quant_core::Linear;

/// Reads a weight `[out, in]`.
pub(crate) fn read(weight: &impl quant_core::Tensor) -> Result<Array2<f64>, Error> {
    let view = weight.view();
    let &[rows, columns] = view.shape() else {
        return Err(Error::NotAMatrix { shape: view.shape().to_vec() });
    };
    if view.is_empty() {
        return Err(quant_core::Error::Empty { shape: vec![rows, columns] }.into());
    }
    Ok(widen(&view.to_f32()?, rows, columns))
}

/// The values that a linear multiplies with.
pub(crate) fn stored(linear: &impl Linear) -> Result<Array2<f64>, quant_core::Error> {
    Ok(widen(&linear.to_dense()?, linear.out_features(), linear.in_features()))
}

fn widen(values: &[f32], rows: usize, columns: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, columns), |(i, j)| f64::from(values[i * columns + j]))
}

/// Rounds to f32, row-major.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
pub(crate) fn narrow(matrix: &Array2<f64>) -> Vec<f32> {
    matrix.iter().map(|&value| value as f32).collect()
}

/// `Σ m²`.
pub(crate) fn squared_norm(matrix: &Array2<f64>) -> f64 {
    matrix.iter().map(|value| value * value).sum()
}

/// `tr(E G Eᵀ)` for `E` `[m, n]` and `G = Σ w x xᵀ` `[n, n]`: the sum over all tokens of `w ‖E x‖²`, in closed form.
///
/// # Panics
///
/// When the widths differ.
#[must_use]
pub fn output_energy(e: ArrayView2<'_, f64>, gram: ArrayView2<'_, f64>) -> f64 {
    let eg = quant_linalg::matmul(e, gram);
    // Rounding may leave a tiny negative sum where there is no energy at all.
    eg.iter().zip(e).map(|(a, b)| a * b).sum::<f64>().max(0.0)
}
