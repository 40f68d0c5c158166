//! From the Gram matrix of the inputs to the factor that the sweep reads.

use super::{GptqConfig, Order};
use crate::Error;
use ndarray::{Array2, ArrayView2};
use quant_calib::Gram;
use quant_core::{Format, Layout};
use serde::{Deserialize, Serialize};

/// A Hessian ready for the weights that share its inputs (`q`, `k`, `v`; `gate`, `up`), or the reason why those
/// weights are rounded to nearest instead.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Hessian {
    /// The factor of its inverse.
    Factored(Factor),
    /// Calibration says too little about these inputs.
    Fallback(Fallback),
}

/// Why a weight was rounded to nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fallback {
    /// No token reached this layer (an expert that was never chosen), or all had the weight zero.
    NoTokens,
    /// Fewer tokens than [`GptqConfig::min_tokens`] reached it.
    TooFewTokens {
        /// Tokens that did.
        tokens: u64,
    },
    /// Every input of every token was zero.
    ZeroInputs,
}

impl Hessian {
    /// Damps and factors the Gram matrix of a layer's inputs for weights of its width in a format.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], [`Error::NotPositiveDefinite`] when no damping helps, [`Error::Linalg`] for values that are
    /// not finite.
    pub fn prepare(gram: &Gram, format: Format, config: &GptqConfig) -> Result<Self, Error> {
        config.validate()?;
        let (tokens, weight_sum) = (gram.tokens(), gram.weight_sum());
        if tokens == 0 || weight_sum <= 0.0 {
            return Ok(Self::Fallback(Fallback::NoTokens));
        }
        if tokens < config.min_tokens {
            return Ok(Self::Fallback(Fallback::TooFewTokens { tokens }));
        }
        let mut matrix = gram.matrix();
        matrix.mapv_inplace(|x| x / weight_sum);
        if matrix.diag().iter().all(|x| *x == 0.0) {
            return Ok(Self::Fallback(Fallback::ZeroInputs));
        }
        let group = Layout::new(format, &[1, matrix.ncols()])?.block_columns;
        Factor::new(matrix.view(), config.order, group, config.damp).map(Self::Factored)
    }
}

/// The factor `U` of an inverse Hessian, `(P(H + λI)Pᵀ)⁻¹ = UᵀU`, with the order `P` of its columns.
///
/// # What happens to the matrix
///
/// 1. Dead columns, whose diagonal is zero, take part as if they were independent of all others: their weights are
///    rounded to nearest, where the reference sets them to zero.
/// 2. `λ = damp · mean(diag H)` over the columns that are not dead (the reference averages over its replaced dead
///    diagonals too). When the matrix is not positive definite the damping is doubled, from 0.01 if it was less, up
///    to 1. GPTQModel adds 0.01 at a time.
/// 3. Rows and columns are brought into the order of quantization and factored once, in f64
///    ([`quant_linalg::reversed_cholesky`]); the factor is kept in f32.
#[derive(Clone, Debug)]
pub struct Factor {
    upper: Array2<f32>,
    order: Vec<usize>,
    group_ends: Vec<usize>,
    dead: Vec<bool>,
    damp: f64,
    unit: f64,
}

impl Factor {
    /// Factors a Hessian `[in, in]`, the mean of `x xᵀ` over tokens for example. `group` columns form a group of the
    /// order `group-aware`.
    ///
    /// # Errors
    ///
    /// [`Error::NotPositiveDefinite`] when no damping helps, [`Error::Linalg`] for a matrix that is not square or not
    /// finite, [`Error::Config`] for a negative damping.
    pub fn new(hessian: ArrayView2<'_, f64>, order: Order, group: usize, damp: f64) -> Result<Self, Error> {
        check_damp(damp)?;
        let diagonal = hessian.diag().to_vec();
        let columns = order.columns(&diagonal, group);
        let dead: Vec<bool> = columns.iter().map(|&c| diagonal[c] == 0.0).collect();
        let live = dead.iter().filter(|dead| !**dead).count();
        #[expect(clippy::cast_precision_loss, reason = "a number of columns")]
        let mean = diagonal.iter().sum::<f64>() / live.max(1) as f64;
        // In units of the mean the factor fits f32 whatever the inputs' scale.
        let unit = if mean > 0.0 { mean } else { 1.0 };
        let mut permuted = Array2::zeros(hessian.raw_dim());
        for (mut row, &from) in permuted.outer_iter_mut().zip(&columns) {
            let source = hessian.row(from);
            for (x, &column) in row.iter_mut().zip(&columns) {
                *x = source[column] / unit;
            }
        }
        let mut tried = damp;
        let upper = loop {
            match quant_linalg::reversed_cholesky(damped(permuted.clone(), &dead, tried).view()) {
                Ok(upper) => break upper,
                Err(quant_linalg::Error::NotPositiveDefinite { .. }) if tried < 1.0 => {
                    tried = (2.0 * tried).clamp(0.01, 1.0);
                }
                Err(quant_linalg::Error::NotPositiveDefinite { .. }) => {
                    return Err(Error::NotPositiveDefinite { damp: tried });
                }
                Err(error) => return Err(error.into()),
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "the sweep computes in f32")]
        let upper = upper.mapv(|x| x as f32);
        let group_ends = order.group_ends(&columns, group);
        Ok(Self { upper, order: columns, group_ends, dead, damp: tried, unit })
    }

    /// `U`, upper triangular, rows and columns in the order of quantization, in units of [`Factor::unit`]:
    /// `(H + λI) / unit = (UᵀU)⁻¹`.
    #[must_use]
    pub fn upper(&self) -> ArrayView2<'_, f32> {
        self.upper.view()
    }

    /// Number of columns.
    #[must_use]
    pub fn features(&self) -> usize {
        self.order.len()
    }

    /// The column of the weight that is quantized at each position.
    #[must_use]
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Where the groups end in the order of quantization.
    #[must_use]
    pub fn group_ends(&self) -> &[usize] {
        &self.group_ends
    }

    /// Whether the input at each position was always zero.
    #[must_use]
    pub fn dead(&self) -> &[bool] {
        &self.dead
    }

    /// The share of the mean diagonal that was added.
    #[must_use]
    pub fn damp(&self) -> f64 {
        self.damp
    }

    /// The mean diagonal of the columns that are not dead; losses are in this unit.
    #[must_use]
    pub fn unit(&self) -> f64 {
        self.unit
    }
}

/// Adds the damping, and a one for dead columns.
fn damped(mut matrix: Array2<f64>, dead: &[bool], damp: f64) -> Array2<f64> {
    for (x, &dead) in matrix.diag_mut().iter_mut().zip(dead) {
        *x = if dead { 1.0 } else { *x + damp };
    }
    matrix
}

pub(super) fn check_damp(damp: f64) -> Result<(), Error> {
    if !(0.0..=1.0).contains(&damp) {
        return Err(Error::Config { option: "damp", value: damp, limits: "from 0 to 1" });
    }
    Ok(())
}
