//! Hadamard transforms of rows.

use crate::orders;
use crate::transform::Way;
use crate::{Element, Error};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::Arc;

/// Columns that are mixed together; they stay in registers.
const STRIP: usize = 32;

/// The orthonormal Hadamard transform of rows, `x' = H x / √n` for each row `x` as a column vector.
///
/// `n = m · 2ᵏ`: the row is `m` runs of `2ᵏ` values; each run gets a fast Walsh–Hadamard transform, then the runs are mixed by
/// a Hadamard matrix of order `m`, as QuaRot does. `m` is 1 for powers of two; else the smallest order, of those that have the odd
/// part of `n`, among 12, 20, 24, 28, 36, 44, 48 … up to 256 for which the constructions of Paley, Williamson or Goethals and
/// Seidel give a matrix here; all factors that QuaRot has are among them (12, 20, 28, 36, 40, 52, 60, 108, 140, 156, 172).
///
/// For other sizes, the rows are cut into [`blocks`](Self::blocks).
///
/// # Examples
///
/// ```
/// use quant_transforms::Hadamard;
/// let hadamard = Hadamard::new(4)?;
/// let mut row = [1.0_f32, 0.0, 0.0, 2.0];
/// hadamard.apply(&mut row)?;
/// assert_eq!(row, [1.5, -0.5, -0.5, 1.5]);
/// hadamard.invert(&mut row)?;
/// assert_eq!(row, [1.0, 0.0, 0.0, 2.0]);
///
/// assert!(Hadamard::new(11008).is_ok()); // 172 · 64
/// assert_eq!(Hadamard::largest(13696)?.block(), 128); // 107 · 128, for which no matrix is known here
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hadamard {
    size: usize,
    block: usize,
    order: usize,
    /// `H_m`, row-major.
    factor: Arc<[i8]>,
}

impl Hadamard {
    /// The transform of whole rows of `size` values.
    ///
    /// # Errors
    ///
    /// [`Error::NoHadamard`] when no matrix of this order is known here.
    pub fn new(size: usize) -> Result<Self, Error> {
        Self::blocks(size, size)
    }

    /// The transform of each block of `block` values of rows of `size`, a block-diagonal matrix.
    ///
    /// # Errors
    ///
    /// [`Error::Blocks`] when the blocks do not divide the rows, [`Error::NoHadamard`] when no matrix of the order of a
    /// block is known here.
    pub fn blocks(size: usize, block: usize) -> Result<Self, Error> {
        if size == 0 || block == 0 || !size.is_multiple_of(block) {
            return Err(Error::Blocks { size, block });
        }
        let no_matrix = || Error::NoHadamard { size: block, block: 1 << block.trailing_zeros() };
        let (order, factor) = orders::split(block).ok_or_else(no_matrix)?;
        Ok(Self { size, block, order, factor: factor.into() })
    }

    /// The transform of whole rows where there is one, else that of blocks of the largest power of two that divides `size`.
    ///
    /// # Errors
    ///
    /// [`Error::Blocks`] for a size of 0.
    pub fn largest(size: usize) -> Result<Self, Error> {
        match Self::new(size) {
            Err(Error::NoHadamard { block, .. }) => Self::blocks(size, block),
            other => other,
        }
    }

    /// Values of a row.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Values of a block; those of a row when it is transformed as a whole.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// The factor `m` of a block of `m · 2ᵏ` values.
    #[must_use]
    pub fn order(&self) -> usize {
        self.order
    }

    /// Transforms rows `[rows, size]` in place; sums are made in the type of the elements.
    ///
    /// # Errors
    ///
    /// [`Error::Rows`] when the values are not whole rows.
    pub fn apply<T: Element>(&self, rows: &mut [T]) -> Result<(), Error> {
        crate::transform::in_rows(self.size, rows, |rows| self.run(rows, Way::Forward))
    }

    /// Undoes [`apply`](Self::apply).
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub fn invert<T: Element>(&self, rows: &mut [T]) -> Result<(), Error> {
        crate::transform::in_rows(self.size, rows, |rows| self.run(rows, Way::Inverse))
    }

    pub(crate) fn run<T: Element>(&self, rows: &mut [T], way: Way) {
        #[expect(clippy::cast_precision_loss, reason = "sizes of rows")]
        let scale = (self.block as f64).sqrt().recip();
        T::walsh(rows, self.block / self.order, scale);
        if self.order > 1 {
            let transposed = matches!(way, Way::Inverse | Way::Transpose);
            let factor = self.signs(transposed);
            let mut strip = vec![T::default(); self.order * STRIP];
            for block in rows.chunks_exact_mut(self.block) {
                T::mix(&factor, self.order, block, &mut strip);
            }
        }
    }

    /// `H_m`, or its transpose, as numbers.
    fn signs<T: Element>(&self, transposed: bool) -> Vec<T> {
        let m = self.order;
        let at = |index: usize| if transposed { self.factor[index % m * m + index / m] } else { self.factor[index] };
        (0..m * m).map(|index| T::narrow(f64::from(at(index)))).collect()
    }
}

/// `x'[a] = Σ_b H[a, b] x[b]` for the `m` runs of a block, a strip of columns at a time.
#[inline(always)]
pub(crate) fn mix<T: Element>(factor: &[T], m: usize, block: &mut [T], strip: &mut [T]) {
    let width = block.len() / m;
    for start in (0..width).step_by(STRIP) {
        let columns = STRIP.min(width - start);
        for (run, kept) in block.chunks_exact(width).zip(strip.chunks_exact_mut(STRIP)) {
            kept[..columns].copy_from_slice(&run[start..start + columns]);
        }
        for (run, signs) in block.chunks_exact_mut(width).zip(factor.chunks_exact(m)) {
            let mut sums = [T::default(); STRIP];
            for (&sign, kept) in signs.iter().zip(strip.as_chunks::<STRIP>().0) {
                for (sum, &x) in sums.iter_mut().zip(kept) {
                    *sum = *sum + sign * x;
                }
            }
            run[start..start + columns].copy_from_slice(&sums[..columns]);
        }
    }
}

/// A Hadamard transform after random signs, `x' = H (s ∘ x) / √n`: a rotation that spreads any outlier, also one that is a
/// row of `H`.
///
/// Sign `i` is bit `i mod 64` of the `i / 64`-th 64-bit number of the ChaCha8 stream of the seed; a set bit is −1.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Hadamard, RandomizedHadamard};
/// let rotation = RandomizedHadamard::new(Hadamard::new(64)?, 7);
/// let mut row = [0.0_f32; 64];
/// row[3] = 8.0; // an outlier
/// rotation.apply(&mut row)?;
/// assert!(row.iter().all(|v| v.abs() == 1.0));
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomizedHadamard {
    hadamard: Hadamard,
    seed: u64,
    negative: Vec<bool>,
}

impl RandomizedHadamard {
    /// Draws the signs.
    #[must_use]
    pub fn new(hadamard: Hadamard, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let words: Vec<u64> = (0..hadamard.size.div_ceil(64)).map(|_| rng.next_u64()).collect();
        let negative = (0..hadamard.size).map(|i| words[i / 64] >> (i % 64) & 1 == 1).collect();
        Self { hadamard, seed, negative }
    }

    /// The transform without signs.
    #[must_use]
    pub fn hadamard(&self) -> &Hadamard {
        &self.hadamard
    }

    /// The seed of the signs.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Transforms rows `[rows, size]` in place.
    ///
    /// # Errors
    ///
    /// [`Error::Rows`] when the values are not whole rows.
    pub fn apply<T: Element>(&self, rows: &mut [T]) -> Result<(), Error> {
        crate::transform::in_rows(self.hadamard.size, rows, |rows| self.run(rows, Way::Forward))
    }

    /// Undoes [`apply`](Self::apply).
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub fn invert<T: Element>(&self, rows: &mut [T]) -> Result<(), Error> {
        crate::transform::in_rows(self.hadamard.size, rows, |rows| self.run(rows, Way::Inverse))
    }

    pub(crate) fn run<T: Element>(&self, rows: &mut [T], way: Way) {
        let backward = matches!(way, Way::Inverse | Way::Transpose);
        if backward {
            self.hadamard.run(rows, way);
        }
        for row in rows.chunks_exact_mut(self.hadamard.size) {
            for (v, &negative) in row.iter_mut().zip(&self.negative) {
                *v = if negative { -*v } else { *v };
            }
        }
        if !backward {
            self.hadamard.run(rows, way);
        }
    }
}
