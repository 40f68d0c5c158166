//! Invertible linear transforms of rows.

use crate::{Element, Error, Hadamard, RandomizedHadamard};
use ndarray::{Array2, ArrayView2};
use quant_calib::Gram;
use rayon::prelude::*;

/// How far `TᵀT` may be from the identity, element by element, for `T` to count as orthogonal.
const ORTHOGONAL: f64 = 1e-10;
/// Values from which rows are shared out to threads.
const PARALLEL: usize = 1 << 16;

/// An invertible linear transform of rows, `x' = x T`.
///
/// What reads the rows is folded with [`fold_input`](Self::fold_input), what writes them with
/// [`fold_output`](Self::fold_output), so that a model computes the same as before.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Hadamard, Transform, Weight};
/// let rotation = Transform::from(Hadamard::new(2)?);
/// let (mut x, mut w) = ([3.0_f64, 5.0], [1.0_f64, 2.0, 0.5, -1.0]);
/// rotation.apply(&mut x)?;
/// rotation.fold_input(&mut Weight::new("w", &mut w, [2, 2])?)?;
/// let y = [x[0] * w[0] + x[1] * w[1], x[0] * w[2] + x[1] * w[3]]; // y = x Wᵀ
/// assert!((y[0] - 13.0).abs() < 1e-14 && (y[1] + 3.5).abs() < 1e-14);
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Transform {
    /// A Hadamard matrix, whole or in blocks.
    Hadamard(Hadamard),
    /// A Hadamard matrix after random signs.
    RandomizedHadamard(RandomizedHadamard),
    /// Any orthogonal matrix.
    Orthogonal(Orthogonal),
    /// A division of each channel.
    Diagonal(Diagonal),
    /// Another order of the channels.
    Permutation(Permutation),
    /// One transform after the other.
    Chain(Chain),
}

/// Which of the matrices that come from `T` multiplies the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `x T`.
    Forward,
    /// `x T⁻¹`.
    Inverse,
    /// `x Tᵀ`.
    Transpose,
    /// `x T⁻ᵀ`.
    InverseTranspose,
}

impl Transform {
    /// Channels of a row.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Hadamard(hadamard) => hadamard.size(),
            Self::RandomizedHadamard(randomized) => randomized.hadamard().size(),
            Self::Orthogonal(orthogonal) => orthogonal.matrix.nrows(),
            Self::Diagonal(diagonal) => diagonal.scales.len(),
            Self::Permutation(permutation) => permutation.from.len(),
            Self::Chain(chain) => chain.0.first().map_or(0, Self::size),
        }
    }

    /// Whether `T⁻¹ = Tᵀ`, so that norms of rows do not change.
    #[must_use]
    pub fn is_orthogonal(&self) -> bool {
        match self {
            Self::Hadamard(_) | Self::RandomizedHadamard(_) | Self::Orthogonal(_) | Self::Permutation(_) => true,
            Self::Diagonal(diagonal) => diagonal.scales.iter().all(|s| *s == 1.0),
            Self::Chain(chain) => chain.0.iter().all(Self::is_orthogonal),
        }
    }

    /// Bytes that it takes to store it: the seed of random signs, the matrix in f64, scales in f32, a permutation in u32. Hadamard
    /// matrices are implied by their size.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        let size = self.size() as u64;
        match self {
            Self::Hadamard(_) => 0,
            Self::RandomizedHadamard(_) => 8,
            Self::Orthogonal(_) => 8 * size * size,
            Self::Diagonal(_) | Self::Permutation(_) => 4 * size,
            Self::Chain(chain) => chain.0.iter().map(Self::stored_bytes).sum(),
        }
    }

    /// Transforms rows `[rows, size]` in place, `x ← x T`; rows are shared out to the current rayon pool, which
    /// changes no bit. NaN and infinities pass through.
    ///
    /// # Errors
    ///
    /// [`Error::Rows`] when the values are not whole rows.
    pub fn apply<T: Element>(&self, rows: &mut [T]) -> Result<(), Error> {
        in_rows(self.size(), rows, |rows| self.run(rows, Way::Forward))
    }

    /// Undoes [`apply`](Self::apply), `x ← x T⁻¹`.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub fn invert<T: Element>(&self, rows: &mut [T]) -> Result<(), Error> {
        in_rows(self.size(), rows, |rows| self.run(rows, Way::Inverse))
    }

    /// The matrix `T` `[size, size]`.
    #[must_use]
    pub fn matrix(&self) -> Array2<f64> {
        let mut matrix = Array2::eye(self.size());
        if let Some(rows) = matrix.as_slice_mut() {
            self.run(rows, Way::Forward);
        }
        matrix
    }

    /// Applies one of the matrices to whole rows.
    pub(crate) fn run<T: Element>(&self, rows: &mut [T], way: Way) {
        match self {
            Self::Hadamard(hadamard) => hadamard.run(rows, way),
            Self::RandomizedHadamard(randomized) => randomized.run(rows, way),
            Self::Orthogonal(orthogonal) => orthogonal.run(rows, way),
            Self::Diagonal(diagonal) => diagonal.run(rows, way),
            Self::Permutation(permutation) => permutation.run(rows, way),
            Self::Chain(chain) if matches!(way, Way::Forward | Way::InverseTranspose) => {
                chain.0.iter().for_each(|part| part.run(rows, way));
            }
            Self::Chain(chain) => chain.0.iter().rev().for_each(|part| part.run(rows, way)),
        }
    }
}

/// Checks that `rows` are whole rows and works on them, by several threads when they are many.
pub(crate) fn in_rows<T: Element>(
    size: usize,
    rows: &mut [T],
    work: impl Fn(&mut [T]) + Send + Sync,
) -> Result<(), Error> {
    if size == 0 || !rows.len().is_multiple_of(size) {
        return Err(Error::Rows { size, found: rows.len() });
    }
    if rows.len() < PARALLEL || rayon::current_num_threads() == 1 {
        work(rows);
    } else {
        let together = (PARALLEL / 2 / size).max(1) * size;
        rows.par_chunks_mut(together).for_each(work);
    }
    Ok(())
}

/// An orthogonal matrix `T`, `x' = x T`.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Orthogonal, Transform};
/// let rotation = Transform::from(Orthogonal::random(5, 1)?);
/// let mut row = [1.0_f64, 2.0, 3.0, 4.0, 5.0];
/// rotation.apply(&mut row)?;
/// assert!((row.iter().map(|v| v * v).sum::<f64>() - 55.0).abs() < 1e-12);
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Orthogonal {
    matrix: Array2<f64>,
}

impl Orthogonal {
    /// A given matrix.
    ///
    /// # Errors
    ///
    /// [`Error::NotSquare`], and [`Error::NotOrthogonal`] when an element of `TᵀT − I` exceeds `1e-10`; a
    /// matrix that was learned in f32 has to go through [`nearest`](Self::nearest).
    pub fn new(matrix: Array2<f64>) -> Result<Self, Error> {
        let (rows, columns) = matrix.dim();
        if rows != columns || rows == 0 {
            return Err(Error::NotSquare { rows, columns });
        }
        let product = quant_linalg::matmul(matrix.t(), matrix.view());
        let deviation = product.indexed_iter().fold(0.0_f64, |most, ((i, j), v)| {
            let off = (v - f64::from(u8::from(i == j))).abs();
            if off.is_nan() { f64::INFINITY } else { most.max(off) }
        });
        if deviation > ORTHOGONAL {
            return Err(Error::NotOrthogonal { deviation, limit: ORTHOGONAL });
        }
        Ok(Self { matrix })
    }

    /// The orthogonal matrix that is nearest to a given one, its polar factor `U Vᵀ`.
    ///
    /// # Errors
    ///
    /// [`Error::NotSquare`], [`Error::Linalg`] when the matrix is not finite.
    pub fn nearest(matrix: ArrayView2<'_, f64>) -> Result<Self, Error> {
        if !matrix.is_square() {
            return Err(Error::NotSquare { rows: matrix.nrows(), columns: matrix.ncols() });
        }
        let svd = quant_linalg::svd(matrix)?;
        Self::new(quant_linalg::matmul(svd.u.view(), svd.vt.view()))
    }

    /// A rotation (or reflection) drawn uniformly, by the QR decomposition of a Gaussian matrix.
    ///
    /// # Errors
    ///
    /// [`Error::Linalg`] for a size of 0.
    pub fn random(size: usize, seed: u64) -> Result<Self, Error> {
        Self::new(quant_linalg::random_orthogonal(size, seed)?)
    }

    /// The Karhunen–Loève transform of an input: the eigenvectors of its Gram matrix as columns, that of the largest
    /// eigenvalue first, each with its largest element positive. Transformed channels are uncorrelated.
    ///
    /// Followed by a Hadamard transform, all channels have the same energy (OSTQuant, arXiv 2501.13987, "WOMI").
    ///
    /// # Errors
    ///
    /// [`Error::Linalg`] when the decomposition fails.
    pub fn karhunen_loeve(gram: &Gram) -> Result<Self, Error> {
        let vectors = quant_linalg::eigh(gram.matrix().view())?.vectors;
        let mut matrix = Array2::zeros(vectors.dim());
        for (mut column, vector) in matrix.columns_mut().into_iter().zip(vectors.columns().into_iter().rev()) {
            let largest = vector.iter().fold(0.0_f64, |most, v| if v.abs() > most.abs() { *v } else { most });
            column.assign(&vector.mapv(|v| if largest < 0.0 { -v } else { v }));
        }
        Self::new(matrix)
    }

    fn run<T: Element>(&self, rows: &mut [T], way: Way) {
        let size = self.matrix.nrows();
        let wide: Vec<f64> = rows.iter().map(|v| v.wide()).collect();
        let Ok(x) = ArrayView2::from_shape((rows.len() / size, size), &wide) else { return };
        let product = match way {
            Way::Forward | Way::InverseTranspose => quant_linalg::matmul(x, self.matrix.view()),
            Way::Inverse | Way::Transpose => quant_linalg::matmul(x, self.matrix.t()),
        };
        for (row, &v) in rows.iter_mut().zip(&product) {
            *row = T::narrow(v);
        }
    }
}

/// Diagonal smoothing: channel `j` is divided by the positive scale `s_j`, and what reads it multiplied (AWQ, SmoothQuant).
///
/// # Examples
///
/// ```
/// use quant_transforms::{Diagonal, Transform, Weight};
/// let smooth = Transform::from(Diagonal::new(vec![4.0, 0.5])?);
/// let (mut x, mut w) = ([8.0_f32, 1.0], [1.0_f32, 1.0]);
/// smooth.apply(&mut x)?;
/// smooth.fold_input(&mut Weight::new("w", &mut w, [1, 2])?)?;
/// assert_eq!((x, w), ([2.0, 2.0], [4.0, 0.5]));
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Diagonal {
    scales: Vec<f32>,
}

impl Diagonal {
    /// Divides by `scales`.
    ///
    /// # Errors
    ///
    /// [`Error::Scale`] naming the first that is not positive and finite.
    pub fn new(scales: Vec<f32>) -> Result<Self, Error> {
        check_scales(&scales)?;
        Ok(Self { scales })
    }

    /// What channels are divided by.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    fn run<T: Element>(&self, rows: &mut [T], way: Way) {
        let divide = matches!(way, Way::Forward | Way::Transpose);
        for row in rows.chunks_exact_mut(self.scales.len()) {
            for (v, &scale) in row.iter_mut().zip(&self.scales) {
                let scale = f64::from(scale);
                *v = T::narrow(if divide { v.wide() / scale } else { v.wide() * scale });
            }
        }
    }
}

pub(crate) fn check_scales(scales: &[f32]) -> Result<(), Error> {
    match scales.iter().enumerate().find(|(_, s)| !s.is_finite() || **s <= 0.0) {
        Some((index, &value)) => Err(Error::Scale { index, value }),
        None => Ok(()),
    }
}

/// Another order of the channels: channel `j` becomes what channel `from[j]` was.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Permutation, Transform};
/// let order = Transform::from(Permutation::new(vec![2, 0, 1])?);
/// let mut row = [10.0_f32, 11.0, 12.0];
/// order.apply(&mut row)?;
/// assert_eq!(row, [12.0, 10.0, 11.0]);
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    from: Vec<u32>,
}

impl Permutation {
    /// Takes channel `j` from `from[j]`.
    ///
    /// # Errors
    ///
    /// [`Error::Permutation`] naming the first entry that is out of range or repeated.
    pub fn new(from: Vec<u32>) -> Result<Self, Error> {
        let mut seen = vec![false; from.len()];
        for (index, &value) in from.iter().enumerate() {
            match seen.get_mut(value as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(Error::Permutation { index, value }),
            }
        }
        Ok(Self { from })
    }

    /// Where each channel comes from.
    #[must_use]
    pub fn from(&self) -> &[u32] {
        &self.from
    }

    fn run<T: Element>(&self, rows: &mut [T], way: Way) {
        let mut old = vec![T::default(); self.from.len()];
        for row in rows.chunks_exact_mut(self.from.len()) {
            old.copy_from_slice(row);
            for (to, &from) in self.from.iter().enumerate() {
                match way {
                    Way::Forward | Way::InverseTranspose => row[to] = old[from as usize],
                    Way::Inverse | Way::Transpose => row[from as usize] = old[to],
                }
            }
        }
    }
}

/// Transforms of one size, applied one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain(Vec<Transform>);

impl Chain {
    /// Applies `parts` in their order.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] when their sizes differ or there are none.
    pub fn new(parts: Vec<Transform>) -> Result<Self, Error> {
        let expected = parts.first().map_or(0, Transform::size);
        match parts.iter().find(|part| part.size() != expected) {
            None if expected > 0 => Ok(Self(parts)),
            other => {
                let found = other.map_or(0, Transform::size);
                Err(Error::Count { name: "a part of a chain".to_owned(), what: "channels", expected, found })
            }
        }
    }
}

macro_rules! from {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Transform {
            fn from(transform: $kind) -> Self {
                Self::$kind(transform)
            }
        }
    )*};
}

from!(Hadamard, RandomizedHadamard, Orthogonal, Diagonal, Permutation, Chain);
