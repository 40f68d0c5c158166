//! In which norm a truncation is the best one.

use crate::Error;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use quant_linalg::{Eigh, cholesky, eigh, matmul, solve_upper};

/// A change of basis `S` of inputs: `W S` is truncated, and `S⁻¹` returns.
///
/// The methods differ in `S` alone: identity for the SVD, a diagonal for ASVD and FWSVD, a square root of the Gram matrix for SVD-LLM.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Metric {
    /// `S = I`.
    Identity,
    /// `S = diag(s)`, all positive.
    Diagonal(Vec<f64>),
    /// `S Sᵀ = G`.
    Whitening(Whitening),
}

impl Metric {
    /// `W S`.
    pub(crate) fn scale(&self, w: Array2<f64>) -> Array2<f64> {
        match self {
            Self::Identity => w,
            Self::Diagonal(s) => w * &Array1::from_vec(s.clone()),
            Self::Whitening(whitening) => whitening.scale(&w),
        }
    }

    /// `V S⁻¹`.
    pub(crate) fn unscale(&self, v: Array2<f64>) -> Result<Array2<f64>, Error> {
        match self {
            Self::Identity => Ok(v),
            Self::Diagonal(s) => Ok(v / &Array1::from_vec(s.clone())),
            Self::Whitening(whitening) => whitening.unscale(&v),
        }
    }
}

/// A square root `S` of a Gram matrix, `S Sᵀ = G`.
#[derive(Clone, Debug, PartialEq)]
pub struct Whitening {
    root: Root,
    kind: RootKind,
}

#[derive(Clone, Debug, PartialEq)]
enum Root {
    /// `S = L`.
    Lower(Array2<f64>),
    /// `S = V diag(σ)`.
    Eigen { vectors: Array2<f64>, deviations: Array1<f64> },
}

/// How a square root was found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RootKind {
    /// Cholesky's factor.
    Cholesky,
    /// Eigenvectors, since the matrix is singular to working precision; small eigenvalues were raised.
    Eigen {
        /// Eigenvalues that were raised to the floor.
        raised: usize,
        /// The floor.
        floor: f64,
    },
}

/// Squared pivots of Cholesky below this share of the mean diagonal are round-off.
const LEAST_PIVOT: f64 = 1e-12;
/// Eigenvalues are raised to this share of their mean, so that `S` can be inverted.
const FLOOR: f64 = 1e-6;
/// Negative eigenvalues up to this share of the largest are round-off of the f32 products in a Gram matrix.
const ROUND_OFF: f64 = 1e-5;

impl Whitening {
    /// Takes the root of `G + damping · mean(diag G) · I` for a symmetric `G` `[n, n]`, the mean of `x xᵀ` over tokens.
    ///
    /// Cholesky's factor where it exists. The Gram matrix of fewer tokens than features, or one with a channel that is always zero, is
    /// singular; then eigenvectors, with eigenvalues below 10⁻⁶ of their mean raised to that. The reference
    /// code adds `(10⁻⁶ − λ_min) I` and factors again, an absolute number whatever the scale of the inputs.
    ///
    /// # Errors
    ///
    /// [`Error::Indefinite`] when an eigenvalue is more negative than rounding explains, [`Error::AllZero`],
    /// [`Error::Setting`] for a damping that is negative or not finite, [`Error::Linalg`].
    pub fn new(gram: ArrayView2<'_, f64>, damping: f64) -> Result<Self, Error> {
        if !(damping.is_finite() && damping >= 0.0) {
            return Err(Error::Setting { setting: "damping", value: damping, expected: "a number from 0 on" });
        }
        let mut gram = gram.to_owned();
        let mean = gram.diag().sum() / gram.nrows().max(1) as f64;
        gram.diag_mut().map_inplace(|value| *value += damping * mean);
        match cholesky(gram.view()) {
            Ok(l) if l.diag().iter().all(|pivot| pivot * pivot > LEAST_PIVOT * mean) => {
                Ok(Self { root: Root::Lower(l), kind: RootKind::Cholesky })
            }
            Ok(_) | Err(quant_linalg::Error::NotPositiveDefinite { .. }) => Self::eigen(gram.view()),
            Err(error) => Err(error.into()),
        }
    }

    fn eigen(gram: ArrayView2<'_, f64>) -> Result<Self, Error> {
        let Eigh { values, vectors } = eigh(gram)?;
        let (least, largest) = (values[0], values[values.len() - 1]);
        if largest <= 0.0 && least >= 0.0 {
            return Err(Error::AllZero { what: "inputs" });
        }
        if least < -ROUND_OFF * largest {
            return Err(Error::Indefinite { least, largest });
        }
        let floor = FLOOR * values.sum() / values.len() as f64;
        let raised = values.iter().filter(|&&value| value < floor).count();
        let deviations = values.mapv(|value| value.max(floor).sqrt());
        Ok(Self { root: Root::Eigen { vectors, deviations }, kind: RootKind::Eigen { raised, floor } })
    }

    /// How the root was found.
    #[must_use]
    pub fn kind(&self) -> RootKind {
        self.kind
    }

    fn scale(&self, w: &Array2<f64>) -> Array2<f64> {
        match &self.root {
            Root::Lower(l) => matmul(w.view(), l.view()),
            Root::Eigen { vectors, deviations } => matmul(w.view(), vectors.view()) * deviations,
        }
    }

    /// A triangular system from the right is one from the left, transposed: `X L = V` is `Lᵀ Xᵀ = Vᵀ`.
    fn unscale(&self, v: &Array2<f64>) -> Result<Array2<f64>, Error> {
        match &self.root {
            Root::Lower(l) => Ok(solve_upper(l.t(), v.t())?.reversed_axes()),
            Root::Eigen { vectors, deviations } => Ok(matmul((v / deviations).view(), vectors.t())),
        }
    }
}

/// The metrics on both sides of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// On outputs, a diagonal: row `i` counts `left[i]` times.
    pub left: Option<Vec<f64>>,
    /// On inputs.
    pub right: Metric,
}

impl Metrics {
    /// A metric on inputs alone.
    #[must_use]
    pub fn right(right: Metric) -> Self {
        Self { left: None, right }
    }

    /// `D W S`.
    pub(crate) fn scale(&self, mut w: Array2<f64>) -> Array2<f64> {
        if let Some(left) = &self.left {
            w *= &column(left);
        }
        self.right.scale(w)
    }

    /// `D⁻¹ U`.
    pub(crate) fn unscale_left(&self, mut u: Array2<f64>) -> Array2<f64> {
        if let Some(left) = &self.left {
            u /= &column(left);
        }
        u
    }
}

fn column(values: &[f64]) -> Array2<f64> {
    Array1::from_vec(values.to_vec()).insert_axis(Axis(1))
}

/// Importances as the diagonal of a metric: `importance^alpha`, none below `least` of their mean, so that all can be divided by.
pub(crate) fn diagonal(importance: &[f64], alpha: f64, least: f64, what: &'static str) -> Result<Vec<f64>, Error> {
    if !(alpha.is_finite() && alpha >= 0.0) {
        return Err(Error::Setting { setting: "alpha", value: alpha, expected: "a number from 0 on" });
    }
    if let Some((index, &value)) =
        importance.iter().enumerate().find(|(_, value)| !(value.is_finite() && **value >= 0.0))
    {
        return Err(Error::Statistic { what, index, value });
    }
    if importance.iter().all(|&value| value == 0.0) {
        return Err(Error::AllZero { what });
    }
    let powers: Vec<f64> = importance.iter().map(|value| value.powf(alpha)).collect();
    let floor = least * powers.iter().sum::<f64>() / powers.len() as f64;
    Ok(powers.into_iter().map(|power| power.max(floor)).collect())
}
