//! The Gram matrix of an input, `G = Σ w x xᵀ`.

use crate::Error;
use crate::rows::Rows;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose products are summed in f32 before they are added in f64.
pub(crate) const BLOCK: usize = 512;
/// Rows and columns of the matrix that are worked on together.
const TILE: usize = 256;

/// The Gram matrix `G = Σ w x xᵀ` `[features, features]` of the tokens of one input, a plain sum over tokens.
///
/// GPTQ's Hessian is `2·G / Σw`, the whitening of SVD-LLM is a Cholesky factor of `G`, the moment of an
/// input is `G / Σw`. With weights, those of tokens routed to an expert for instance (MoEQuant, arXiv 2505.03804),
/// each row is scaled by `√w`, rounded once.
///
/// Tokens are taken in blocks of 512: products within a block are summed in f32, blocks in f64. Each block is scaled
/// by a power of two first, so that no product overflows. Blocks are cut by the count of tokens since the beginning, and
/// rows wait until their block is full: **the bits do not depend on how the tokens were split into calls, nor on the number
/// of threads.** [`merge`](Self::merge) is exact for given parts in a given order. The f32 sums use fused
/// multiply-add where the CPU has it, so a machine without it differs in the last digits of an f32.
/// [`Gram::reference`] is the same sum in f64.
///
/// # Examples
///
/// ```
/// use quant_calib::Gram;
/// let mut gram = Gram::new(2);
/// gram.add(&[1.0, 2.0, 3.0, 4.0], None)?; // two tokens
/// gram.add(&[1.0, 1.0], Some(&[0.25]))?; // one that counts a quarter
/// assert_eq!(gram.matrix(), ndarray::array![[10.25, 14.25], [14.25, 20.25]]);
/// assert_eq!((gram.tokens(), gram.weight_sum()), (3, 2.25));
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    features: usize,
    tokens: u64,
    pub(crate) weight_sum: f64,
    /// The tiles on and above the diagonal, one after the other; empty before the first block is full.
    pub(crate) sums: Vec<f64>,
    /// Weighted rows of the block that is not full yet.
    pub(crate) pending: Vec<f32>,
}

/// A rectangle of the matrix.
#[derive(Clone, Debug)]
struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Gram {
    /// Starts with no tokens.
    #[must_use]
    pub fn new(features: usize) -> Self {
        Self { features, tokens: 0, weight_sum: 0.0, sums: Vec::new(), pending: Vec::new() }
    }

    /// Adds tokens `rows` `[tokens, features]`, each with its weight, or with weight 1.
    ///
    /// # Errors
    ///
    /// [`Error::Width`], [`Error::NonFinite`], [`Error::WeightCount`] and [`Error::Weight`] for bad input,
    /// [`Error::TooLarge`] when the matrix does not fit. Nothing is added on error.
    pub fn add(&mut self, rows: &[f32], weights: Option<&[f32]>) -> Result<(), Error> {
        self.add_rows(&Rows::new(rows, self.features, weights)?)
    }

    pub(crate) fn add_rows(&mut self, rows: &Rows<'_>) -> Result<(), Error> {
        let weighted = rows.weights.map(|_| weighted(rows)).transpose()?;
        self.append(weighted.as_deref().unwrap_or(rows.values))?;
        self.tokens += rows.len() as u64;
        self.weight_sum += match rows.weights {
            Some(weights) => weights.iter().map(|&w| f64::from(w)).sum(),
            #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 tokens fit a slice")]
            None => rows.len() as f64,
        };
        Ok(())
    }

    /// Adds what was gathered elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] for another width, [`Error::TooLarge`] when the matrix does not fit. Nothing is added on
    /// error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if self.features != other.features {
            return Err(Error::Features { features: self.features, found: other.features });
        }
        if !other.sums.is_empty() {
            self.allocate()?;
        }
        self.append(&other.pending)?;
        for (sum, other) in self.sums.iter_mut().zip(&other.sums) {
            *sum += other;
        }
        self.tokens += other.tokens;
        self.weight_sum += other.weight_sum;
        Ok(())
    }

    /// Width of the input.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// Tokens seen, whatever their weights.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Sum of the weights of all tokens; the number of tokens when none had weights.
    #[must_use]
    pub fn weight_sum(&self) -> f64 {
        self.weight_sum
    }

    /// `Σ w x xᵀ` `[features, features]`, symmetric to the bit, not divided by anything.
    #[must_use]
    pub fn matrix(&self) -> Array2<f64> {
        let mut full = Array2::zeros((self.features, self.features));
        let mut sums = self.sums.as_slice();
        for tile in tiles(self.features).take_while(|_| !self.sums.is_empty()) {
            let (sum, rest) = sums.split_at(tile.len());
            sums = rest;
            tile.of(&mut full).iter_mut().zip(sum).for_each(|(full, sum)| *full = *sum);
        }
        if !self.pending.is_empty() {
            let mut pending = self.pending.clone();
            let (block, unit) = scaled_block(&mut pending, self.features);
            let mut scratch = Array2::zeros((TILE, TILE));
            for tile in tiles(self.features) {
                let product = product(&block, &tile, &mut scratch);
                tile.of(&mut full).zip_mut_with(&product, |full, &v| *full += f64::from(v) * unit);
            }
        }
        mirror(&mut full);
        full
    }

    /// The diagonal, `Σ w x²` of each channel; that of [`Gram::matrix`] up to the f32 sums of the last block.
    #[must_use]
    pub fn diagonal(&self) -> Vec<f64> {
        let mut diagonal = vec![0.0; self.features];
        let mut sums = self.sums.as_slice();
        for tile in tiles(self.features).take_while(|_| !self.sums.is_empty()) {
            let (sum, rest) = sums.split_at(tile.len());
            sums = rest;
            if tile.rows == tile.columns {
                let on_diagonal = sum.iter().step_by(tile.columns.len() + 1);
                diagonal[tile.rows].iter_mut().zip(on_diagonal).for_each(|(to, from)| *to = *from);
            }
        }
        for row in self.pending.chunks_exact(self.features.max(1)) {
            for (sum, &x) in diagonal.iter_mut().zip(row) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        diagonal
    }

    /// Channels that were zero in every token (of positive weight), in order.
    #[must_use]
    pub fn dead_channels(&self) -> Vec<usize> {
        self.diagonal().iter().enumerate().filter(|(_, sum)| **sum == 0.0).map(|(channel, _)| channel).collect()
    }

    /// The plain sum in f64, one token after the other: what [`Gram::matrix`] is tested against.
    ///
    /// # Errors
    ///
    /// As [`Gram::add`].
    pub fn reference(rows: &[f32], features: usize, weights: Option<&[f32]>) -> Result<Array2<f64>, Error> {
        let rows = Rows::new(rows, features, weights)?;
        let mut sum = Array2::zeros((features, features));
        for (token, x) in rows.iter().enumerate() {
            let weight = f64::from(rows.weight(token));
            for (i, &a) in x.iter().enumerate() {
                for (j, &b) in x.iter().enumerate() {
                    sum[[i, j]] += weight * (f64::from(a) * f64::from(b));
                }
            }
        }
        Ok(sum)
    }

    /// Puts together what was stored; `None` when the sizes do not fit each other.
    pub(crate) fn from_parts(
        features: usize,
        tokens: u64,
        weight_sum: f64,
        sums: Vec<f64>,
        pending: Vec<f32>,
    ) -> Option<Self> {
        let waiting = pending.len().checked_div(features).unwrap_or(0);
        let complete = sums.is_empty() || stored_length(features) == Some(sums.len());
        (complete && waiting < BLOCK && waiting as u64 <= tokens).then_some(Self {
            features,
            tokens,
            weight_sum,
            sums,
            pending,
        })
    }

    /// Takes weighted rows into blocks.
    fn append(&mut self, mut rows: &[f32]) -> Result<(), Error> {
        let full = BLOCK.checked_mul(self.features).ok_or(Error::TooLarge { features: self.features })?;
        if self.pending.len() + rows.len() >= full && full > 0 {
            self.allocate()?;
        }
        while !rows.is_empty() {
            let (now, later) = rows.split_at(rows.len().min(full - self.pending.len()));
            self.pending.extend_from_slice(now);
            rows = later;
            if self.pending.len() == full {
                self.flush();
            }
        }
        Ok(())
    }

    /// Makes room for the matrix.
    fn allocate(&mut self) -> Result<(), Error> {
        if self.sums.is_empty() {
            let too_large = || Error::TooLarge { features: self.features };
            let length = stored_length(self.features).ok_or_else(too_large)?;
            self.sums.try_reserve_exact(length).map_err(|_| too_large())?;
            self.sums.resize(length, 0.0);
        }
        Ok(())
    }

    /// Adds the pending block to the matrix, each tile by one thread.
    fn flush(&mut self) {
        let (block, unit) = scaled_block(&mut self.pending, self.features);
        let mut work = Vec::new();
        let mut sums = self.sums.as_mut_slice();
        for tile in tiles(self.features) {
            let (sum, rest) = std::mem::take(&mut sums).split_at_mut(tile.len());
            sums = rest;
            work.push((tile, sum));
        }
        let scratch = || Array2::zeros((TILE, TILE));
        work.into_par_iter().for_each_init(scratch, |scratch, (tile, sum)| {
            let product = product(&block, &tile, scratch);
            for (sum, &v) in sum.iter_mut().zip(&product) {
                *sum += f64::from(v) * unit;
            }
        });
        self.pending.clear();
    }
}

impl Tile {
    fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// This part of the matrix.
    fn of<'a>(&self, matrix: &'a mut Array2<f64>) -> ArrayViewMut2<'a, f64> {
        let mut part = matrix.view_mut();
        part.slice_axis_inplace(Axis(0), Slice::from(self.rows.clone()));
        part.slice_axis_inplace(Axis(1), Slice::from(self.columns.clone()));
        part
    }
}

/// All tiles on and above the diagonal.
fn tiles(features: usize) -> impl Iterator<Item = Tile> {
    let range = move |tile: usize| tile * TILE..features.min((tile + 1) * TILE);
    let tiles = features.div_ceil(TILE);
    (0..tiles).flat_map(move |i| (i..tiles).map(move |j| Tile { rows: range(i), columns: range(j) }))
}

/// Each row times the square root of its weight.
fn weighted(rows: &Rows<'_>) -> Result<Vec<f32>, Error> {
    let mut scaled = Vec::with_capacity(rows.values.len());
    for (row, x) in rows.iter().enumerate() {
        let root = f64::from(rows.weight(row)).sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
        scaled.extend(x.iter().map(|&v| (f64::from(v) * root) as f32));
        if scaled[row * rows.features..].iter().any(|v| !v.is_finite()) {
            return Err(Error::Weight { row, value: rows.weight(row) });
        }
    }
    Ok(scaled)
}

/// Elements of all tiles: half the square of the features and the lower halves of the tiles on the diagonal.
fn stored_length(features: usize) -> Option<usize> {
    let last = features % TILE;
    let on_diagonal = (features / TILE).checked_mul(TILE * TILE)?.checked_add(last * last)?;
    Some(features.checked_mul(features)?.checked_add(on_diagonal)? / 2)
}

/// Scales the block by the power of two that brings its largest magnitude near 1; returns it and what a product of the
/// scaled block must be multiplied with.
fn scaled_block(block: &mut [f32], features: usize) -> (ArrayView2<'_, f32>, f64) {
    let largest = block.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
    // Zeros and subnormal values are left near the bottom of the range, where f32 ends anyway.
    let exponent = (largest.to_bits() >> 23).clamp(1, 253);
    let scale = f32::from_bits((254 - exponent) << 23);
    for v in &mut *block {
        *v *= scale;
    }
    let unit = f64::from(f32::from_bits(exponent << 23));
    let tokens = block.len() / features.max(1);
    let block = ArrayView2::from_shape((tokens, features), block).expect("a block is whole rows");
    (block, unit * unit)
}

/// `X[:, rows]ᵀ X[:, columns]` in f32, sequential, in the corner of `scratch`.
fn product<'a>(block: &ArrayView2<'_, f32>, tile: &Tile, scratch: &'a mut Array2<f32>) -> ArrayViewMut2<'a, f32> {
    let mut corner = scratch.view_mut();
    corner.slice_axis_inplace(Axis(0), Slice::from(..tile.rows.len()));
    corner.slice_axis_inplace(Axis(1), Slice::from(..tile.columns.len()));
    let left = block.slice_axis(Axis(1), Slice::from(tile.rows.clone()));
    let right = block.slice_axis(Axis(1), Slice::from(tile.columns.clone()));
    general_mat_mul(1.0, &left.t(), &right, 0.0, &mut corner);
    corner
}

/// Copies what is above the diagonal below it, tile by tile.
fn mirror(matrix: &mut Array2<f64>) {
    for tile in tiles(matrix.nrows()) {
        let above = tile.of(matrix).to_owned();
        let below = Tile { rows: tile.columns.clone(), columns: tile.rows.clone() };
        if tile.rows == tile.columns {
            for ((i, j), v) in below.of(matrix).indexed_iter_mut().filter(|((i, j), _)| i > j) {
                *v = above[[j, i]];
            }
        } else {
            below.of(matrix).assign(&above.t());
        }
    }
}
