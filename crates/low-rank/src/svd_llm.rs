//! SVD-LLM: truncation-aware whitening, the optimum of the output error on calibration (arXiv 2403.07378).

use crate::{Calibration, Error, Method, Metric, Metrics, Truncation, Whitening};
use ndarray::{Array2, ArrayView2};
use quant_calib::Needs;
use quant_linalg::{cholesky, matmul, solve_lower, solve_upper};
use serde::{Deserialize, Serialize};

/// Truncates `W S` with `S Sᵀ` the Gram matrix of the inputs.
///
/// Dropping the value `σ` costs exactly `σ²` of squared output error, summed over calibration (section 3.2), so no other weight of
/// this rank loses less there. On other text one may: with few tokens the Gram matrix is fitted too closely,
/// and `damping` helps. How the root is taken, and what happens when the matrix is singular, is at [`Whitening::new`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvdLlm {
    /// Share of the mean diagonal that is added to the diagonal of the Gram matrix. The paper adds nothing; with fewer
    /// tokens than features 0.01 is a good choice.
    pub damping: f64,
    /// How large, how found, how stored.
    pub truncation: Truncation,
}

impl Method for SvdLlm {
    fn needs(&self) -> Needs {
        Needs::gram()
    }

    fn truncation(&self) -> &Truncation {
        &self.truncation
    }

    fn metrics(&self, shape: (usize, usize), calibration: &Calibration<'_>) -> Result<Metrics, Error> {
        let gram = calibration.require_gram("SVD-LLM", shape.1)?;
        Ok(Metrics::right(Metric::Whitening(Whitening::new(gram.view(), self.damping)?)))
    }
}

/// Refits the left factor to inputs that have changed since, because the layers before have been compressed (the closed form of
/// the paper's second step): the `A` that minimises `Σ ‖W x − A B x'‖²`,
/// `A = W C Bᵀ (B G' Bᵀ)⁻¹`.
///
/// `weight` is `[m, n]`, `b` `[k, n]`; `cross` is `C = Σ x x'ᵀ` and `gram` `G' = Σ x' x'ᵀ`, both `[n, n]` in one scale, `x` inputs of the
/// original model and `x'` those of the compressed one at the same tokens. With `x' = x` and a `B` of [`SvdLlm`] the
/// result is the `A` that was there.
///
/// # Errors
///
/// [`Error::Features`] when shapes differ, [`Error::Linalg`] when `B G' Bᵀ` is not positive definite.
pub fn refit_left(
    weight: ArrayView2<'_, f64>,
    b: ArrayView2<'_, f64>,
    cross: ArrayView2<'_, f64>,
    gram: ArrayView2<'_, f64>,
) -> Result<Array2<f64>, Error> {
    let expected = weight.ncols();
    for (what, found) in [
        ("right factors", b.ncols()),
        ("cross matrices", cross.nrows()),
        ("cross matrices", cross.ncols()),
        ("Gram matrices", gram.nrows()),
        ("Gram matrices", gram.ncols()),
    ] {
        if found != expected {
            return Err(Error::Features { what, expected, found });
        }
    }
    let latent_gram = matmul(matmul(b, gram).view(), b.t());
    let latent_cross = matmul(b, matmul(cross.t(), weight.t()).view());
    let l = cholesky(latent_gram.view())?;
    let half = solve_lower(l.view(), latent_cross.view())?;
    Ok(solve_upper(l.t(), half.view())?.reversed_axes())
}
