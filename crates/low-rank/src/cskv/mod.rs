//! CSKV: keys and values cached as narrow latents of the layer's input (arXiv 2409.10593).
//!
//! | step of the paper | here |
//! |---|---|
//! | width of the latents | [`CacheWidth`] |
//! | initialisation by ASVD, or by any other method | [`KvAdapter::new`] |
//! | fine-tuning layer by layer, quantization-aware | [`train`](fn@train); [`RowMaps`] for a cache that is given keys |
//! | cache of exact recent tokens and latents of all others | the codec `Cskv` of kv-cache-quant, which takes plain matrices |

mod rows;
mod train;

pub use rows::RowMaps;
pub use train::{LatentFormat, Optimizer, TrainLog, Training, train};

use crate::matrix::{read, squared_norm};
use crate::{Calibration, Error, Method, SigmaFuse};
use ndarray::{Array1, Array2, ArrayView2};
use quant_linalg::{cholesky, matmul, solve_lower, solve_upper};
use serde::{Deserialize, Serialize};

/// How much of the channels a cache keeps.
///
/// The width of a head is found first and rounded down, the latent is that times the heads: 0.3 of 128 is 38 and not
/// 38.4. All heads are factored together; the share of a head is how caches lay latents out and how quantizers cut them
/// into groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheWidth {
    /// So many channels for each head.
    PerHead(usize),
    /// This share of a head's channels is kept: the paper's density, 1 − compression.
    Density(f64),
}

impl CacheWidth {
    /// Channels of a head.
    ///
    /// # Errors
    ///
    /// [`Error::Ratio`] for a density outside of (0, 1], [`Error::Rank`] when nothing is left or more than there is.
    ///
    /// # Examples
    ///
    /// ```
    /// use low_rank::CacheWidth;
    /// assert_eq!(CacheWidth::Density(0.2).per_head(128)?, 25);
    /// assert_eq!(CacheWidth::Density(0.2).latent(32, 128)?, 800); // 19.53 % of 4096
    /// # Ok::<(), low_rank::Error>(())
    /// ```
    pub fn per_head(self, head_dim: usize) -> Result<usize, Error> {
        let rank = match self {
            Self::PerHead(channels) => channels,
            // A share such as 0.29 is a little less than that in binary; 100 of it is 29 all the same.
            Self::Density(kept) => {
                crate::ratio::floor(crate::Ratio::Kept(kept).kept()? * head_dim as f64 * (1.0 + f64::EPSILON))
            }
        };
        if rank == 0 || rank > head_dim {
            return Err(Error::Rank { rank, rows: head_dim, columns: head_dim });
        }
        Ok(rank)
    }

    /// Channels of a token's latent.
    ///
    /// # Errors
    ///
    /// As [`CacheWidth::per_head`], and [`Error::Heads`] for no heads.
    pub fn latent(self, heads: usize, head_dim: usize) -> Result<usize, Error> {
        if heads == 0 {
            return Err(Error::Heads { rows: head_dim, heads, group: 1 });
        }
        Ok(self.per_head(head_dim)?.saturating_mul(heads))
    }
}

/// The two maps of keys, or of values, of one layer: a cache keeps `c = x A`, and rebuilds `K ≈ c B + bias`.
///
/// ```
/// use low_rank::{Calibration, KvAdapter, SvdLlm};
/// use ndarray::Array2;
/// use quant_calib::Gram;
/// use quant_core::Shaped;
///
/// let wave = |i: usize| ((i * i % 97) as f32 - 48.0) / 32.0;
/// let inputs: Vec<f32> = (0..200 * 16).map(wave).collect();
/// let mut gram = Gram::new(16);
/// gram.add(&inputs, None)?;
/// let values: Vec<f32> = (0..8 * 16).map(|i| wave(3 * i + 1)).collect();
/// let weight = Shaped::new(&values, &[8, 16])?;
///
/// let calibration = Calibration { gram: Some(&gram), ..Calibration::default() };
/// let adapter = KvAdapter::new(&SvdLlm::default(), &weight, &calibration, 4)?;
/// let x = Array2::from_shape_fn((200, 16), |(t, j)| f64::from(inputs[t * 16 + j]));
/// assert_eq!(adapter.latents(x.view()).dim(), (200, 4));
/// assert_eq!(adapter.rebuild(adapter.latents(x.view()).view()).dim(), (200, 8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct KvAdapter {
    a: Array2<f64>,
    b: Array2<f64>,
    bias: Option<Array1<f64>>,
}

impl KvAdapter {
    /// The factors of a projection `[out, in]` cut to `width`, by any method: the paper takes [`Asvd`](crate::Asvd),
    /// [`PlainSvd`](crate::PlainSvd) is its baseline, and [`SvdLlm`](crate::SvdLlm) is the optimum on calibration that
    /// training without quantization converges to, `min E‖W x − Bᵀ Aᵀ x‖²` in closed form.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] for a width of 0 or above the smaller side, and as [`Method::decompose`].
    pub fn new(
        method: &impl Method,
        weight: &impl quant_core::Tensor,
        calibration: &Calibration<'_>,
        width: usize,
    ) -> Result<Self, Error> {
        let (rows, columns) = (weight.view().rows(), weight.view().row_len());
        if width == 0 || width > rows.min(columns) {
            return Err(Error::Rank { rank: width, rows, columns });
        }
        let (left, right) = method.decompose(weight, calibration, width)?.factors(width, SigmaFuse::Both)?;
        Self::from_parts(right.reversed_axes(), left.reversed_axes())
    }

    /// From two matrices, `a` `[in, width]` and `b` `[width, out]`.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when they do not fit, [`Error::Rank`] when they have no elements, [`Error::Linalg`] for such
    /// that are not finite.
    pub fn from_parts(a: Array2<f64>, b: Array2<f64>) -> Result<Self, Error> {
        if a.ncols() != b.nrows() {
            return Err(Error::Mismatch { left: a.dim(), right: b.dim() });
        }
        if a.is_empty() || b.is_empty() {
            return Err(Error::Rank { rank: a.ncols(), rows: b.ncols(), columns: a.nrows() });
        }
        for matrix in [&a, &b] {
            if let Some(((row, column), _)) = matrix.indexed_iter().find(|(_, value)| !value.is_finite()) {
                return Err(quant_linalg::Error::NonFinite { row, column }.into());
            }
        }
        Ok(Self { a, b, bias: None })
    }

    /// Adds the bias of the projection after `B`. The authors' code ignores biases.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] when there is not one number an output.
    pub fn with_bias(mut self, bias: &[f32]) -> Result<Self, Error> {
        if bias.len() != self.b.ncols() {
            return Err(Error::Features { what: "biases", expected: self.b.ncols(), found: bias.len() });
        }
        self.bias = Some(bias.iter().map(|&x| f64::from(x)).collect());
        Ok(self)
    }

    /// Turns latents by a random orthogonal matrix, `A R` and `Rᵀ B`, for latents that are to be quantized: all vary
    /// alike then, and what rounding adds to each counts the same.
    ///
    /// On the balanced factors of [`KvAdapter::new`] this is the best that linear maps can do against uniform rounding
    /// at equal bits: with `σ` the singular values, `r` of them, rounding costs in proportion to `(Σ σ)² / r`; before
    /// the turn, and however the values are split between the factors, it was `Σ σ²`.
    ///
    /// # Errors
    ///
    /// [`Error::Linalg`].
    pub fn rotated(&self, seed: u64) -> Result<Self, Error> {
        let turn = quant_linalg::random_orthogonal(self.width(), seed)?;
        let (a, b) = (matmul(self.a.view(), turn.view()), matmul(turn.t(), self.b.view()));
        Ok(Self { a, b, bias: self.bias.clone() })
    }

    /// `A`, `[in, width]`.
    #[must_use]
    pub fn a(&self) -> ArrayView2<'_, f64> {
        self.a.view()
    }

    /// `B`, `[width, out]`.
    #[must_use]
    pub fn b(&self) -> ArrayView2<'_, f64> {
        self.b.view()
    }

    /// Channels of a latent.
    #[must_use]
    pub fn width(&self) -> usize {
        self.a.ncols()
    }

    /// Channels of a latent that belong to each of some heads.
    ///
    /// # Errors
    ///
    /// [`Error::Heads`] when the latent is not that many whole parts.
    pub fn per_head(&self, heads: usize) -> Result<usize, Error> {
        if heads == 0 || !self.width().is_multiple_of(heads) {
            return Err(Error::Heads { rows: self.width(), heads, group: 1 });
        }
        Ok(self.width() / heads)
    }

    /// Parameters that the layer holds beside its projection, which the exact branch still needs. At two bytes each, a
    /// cache of f16 saves memory once it holds `2 · parameters / (bytes saved a token)` tokens.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        (self.a.len() + self.b.len()) as u64
    }

    /// What is cached of inputs `[tokens, in]`: `x A`.
    ///
    /// # Panics
    ///
    /// When the inputs have another width, as all products.
    #[must_use]
    pub fn latents(&self, x: ArrayView2<'_, f64>) -> Array2<f64> {
        matmul(x, self.a.view())
    }

    /// What is rebuilt of latents `[tokens, width]`: `c B + bias`.
    ///
    /// # Panics
    ///
    /// When the latents have another width, as all products.
    #[must_use]
    pub fn rebuild(&self, latents: ArrayView2<'_, f64>) -> Array2<f64> {
        let product = matmul(latents, self.b.view());
        match &self.bias {
            Some(bias) => product + bias,
            None => product,
        }
    }

    /// The paper's loss on some inputs: the mean over tokens and channels of `(x Wᵀ − x A B)²`. A bias is on both sides
    /// and cancels, and so does the rotary turn.
    ///
    /// # Errors
    ///
    /// [`Error::NotAMatrix`] and [`Error::Core`] for the weight, [`Error::Features`] when the inputs or the weight have
    /// other widths.
    pub fn loss(&self, weight: &impl quant_core::Tensor, x: ArrayView2<'_, f64>) -> Result<f64, Error> {
        let w = read(weight)?;
        self.check(&w, x)?;
        let error = matmul(x, w.t()) - matmul(self.latents(x).view(), self.b.view());
        Ok(squared_norm(&error) / error.len().max(1) as f64)
    }

    /// The map from outputs to latents for caches that are given keys and not inputs: `P = B⁺` `[out, width]`, `c = (k
    /// − bias) P`.
    ///
    /// Of all latents of a key this one has the least error, so a cache of `(P, B)` is never worse than one of `(A,
    /// B)`, and with [`SvdLlm`](crate::SvdLlm) it is the same: there `A = Wᵀ B⁺`. Latents that are quantized are
    /// another matter: train `P` itself, with the keys as inputs and the identity as weight.
    ///
    /// # Errors
    ///
    /// [`Error::Linalg`] when the rows of `B` depend on each other.
    pub fn from_outputs(&self) -> Result<Array2<f64>, Error> {
        right_inverse(&self.b)
    }

    fn check(&self, w: &Array2<f64>, x: ArrayView2<'_, f64>) -> Result<(), Error> {
        let (inputs, outputs) = (self.a.nrows(), self.b.ncols());
        for (what, expected, found) in
            [("weights", inputs, w.ncols()), ("outputs of weights", outputs, w.nrows()), ("inputs", inputs, x.ncols())]
        {
            if expected != found {
                return Err(Error::Features { what, expected, found });
            }
        }
        Ok(())
    }
}

/// `Bᵀ (B Bᵀ)⁻¹`.
fn right_inverse(b: &Array2<f64>) -> Result<Array2<f64>, Error> {
    Ok(solve_positive(matmul(b.view(), b.t()), b.view())?.reversed_axes())
}

/// `S⁻¹ R` for a positive definite `S`.
fn solve_positive(s: Array2<f64>, r: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
    let l = cholesky(s.view())?;
    Ok(solve_upper(l.t(), solve_lower(l.view(), r)?.view())?)
}
