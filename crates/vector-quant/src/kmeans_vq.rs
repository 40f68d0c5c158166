//! Vector quantization with learned code books and rounding to the nearest entry.
//!
//! 1. Cut the rows into vectors.
//! 2. Learn a code book for each group of rows and columns by [`kmeans`](crate::kmeans()); with the Gram matrix of the
//!    inputs at hand, an error in column `j` counts `E[x_j²]`.
//! 3. Round the code book to the type it is stored in.
//! 4. Code each vector with the entry nearest in the same measure.

use crate::error::{Error, finite, within};
use crate::{BookType, Books, Init, KMeans, LearnedBook, LearnedBooks, VectorCodec, VqLinear, Weights, kmeans};
use quant_calib::{Gram, Needs};
use quant_core::Tensor;
use serde::{Deserialize, Serialize};

/// How a weight is cut and clustered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KMeansVq {
    /// Values of a vector.
    pub dim: usize,
    /// Bits of a code; `bits / dim` a weight.
    pub bits: u32,
    /// Rows that share a code book; 0 for all.
    pub rows: usize,
    /// Columns that share a code book; 0 for all.
    pub columns: usize,
    /// Type the code book is stored in.
    pub values: BookType,
    /// Whether errors count by the second moment of the inputs, where it is known.
    pub weighted: bool,
    /// Most iterations of the clustering.
    pub iterations: usize,
    /// Where the clustering starts.
    pub init: Init,
    /// Of the clustering.
    pub seed: u64,
}

impl Default for KMeansVq {
    /// Two bits a weight: 256 vectors of 4 values for the whole matrix.
    fn default() -> Self {
        Self {
            dim: 4,
            bits: 8,
            rows: 0,
            columns: 0,
            values: BookType::F16,
            weighted: true,
            iterations: 100,
            init: Init::PlusPlus,
            seed: 0,
        }
    }
}

impl KMeansVq {
    /// The statistics it makes use of.
    #[must_use]
    pub fn needs(&self) -> Needs {
        if self.weighted { Needs::gram() } else { Needs::nothing() }
    }
}

/// Quantizes a weight `[out, in]`; `gram` is that of its inputs.
///
/// # Errors
///
/// [`Error::Core`] for tensors that are no finite matrix, [`Error::NotDivisible`] when the dimension divides neither rows
/// nor groups, [`Error::TooFewPoints`], [`Error::Setting`], [`Error::Count`] for a Gram matrix of another width.
pub fn kmeans_vq(weight: &impl Tensor, gram: Option<&Gram>, config: &KMeansVq) -> Result<VqLinear, Error> {
    let (w, [rows, columns]) = matrix(weight)?;
    let dim = config.dim;
    let (book_rows, book_columns) = (or_all(config.rows, rows), or_all(config.columns, columns));
    let importance = importance(gram.filter(|_| config.weighted), columns)?;
    check_groups(columns, book_columns, dim, config.bits)?;
    let settings = KMeans {
        centroids: 1 << config.bits,
        iterations: config.iterations,
        init: config.init,
        seed: config.seed,
        ..KMeans::default()
    };
    let mut codes = vec![0; rows * columns / dim];
    let mut books = Vec::new();
    for first_row in (0..rows).step_by(book_rows) {
        for first in (0..columns).step_by(book_columns) {
            let (group_rows, last) = (first_row..rows.min(first_row + book_rows), columns.min(first + book_columns));
            let part = |of: &[f32], row: usize| of[row * columns + first..row * columns + last].to_vec();
            let points: Vec<f32> = group_rows.clone().flat_map(|row| part(&w, row)).collect();
            let weights = importance.as_ref().map(|m| m[first..last].repeat(group_rows.len()));
            let weights = weights.as_deref().map_or(Weights::Uniform, Weights::PerCoordinate);
            let book = LearnedBook::new(&kmeans(&points, dim, weights, &settings)?.centroids, dim, config.values)?;
            for (row, values) in group_rows.zip(points.chunks_exact(last - first)) {
                let own = &mut codes[(row * columns + first) / dim..(row * columns + last) / dim];
                match &importance {
                    None => book.encode_all(values, own),
                    Some(importance) => {
                        let vectors = values.chunks_exact(dim).zip(importance[first..last].chunks_exact(dim));
                        own.iter_mut().zip(vectors).for_each(|(code, (x, m))| *code = book.encode_weighted(x, m));
                    }
                }
            }
            books.push(book);
        }
    }
    let books = Books::Learned(LearnedBooks { rows: book_rows, columns: book_columns, books });
    VqLinear::new([rows, columns], books, &codes, Vec::new())
}

/// A matrix as row-major f32.
pub(crate) fn matrix(weight: &impl Tensor) -> Result<(Vec<f32>, [usize; 2]), Error> {
    let view = weight.view();
    let &[rows, columns] = view.shape() else {
        return Err(Error::Count { what: "axes of a weight", expected: 2, found: view.shape().len() });
    };
    if rows == 0 || columns == 0 {
        return Err(quant_core::Error::Empty { shape: view.shape().to_vec() }.into());
    }
    let values = view.to_f32()?;
    finite("weight", &values)?;
    Ok((values, [rows, columns]))
}

/// 0 stands for all.
pub(crate) fn or_all(group: usize, all: usize) -> usize {
    if group == 0 { all } else { group.min(all) }
}

/// Groups of columns must hold whole vectors.
pub(crate) fn check_groups(columns: usize, group: usize, dim: usize, bits: u32) -> Result<(), Error> {
    within("bits of a code", f64::from(bits), 1.0, 16.0)?;
    if dim == 0 || dim > crate::MAX_DIM {
        return Err(Error::Dimension { dim, most: crate::MAX_DIM });
    }
    for (what, len) in [("a row", columns), ("a group of columns", group)] {
        if !len.is_multiple_of(dim) {
            return Err(Error::NotDivisible { what, len, dim });
        }
    }
    Ok(())
}

/// The second moment of each input relative to their mean, or nothing when no token was seen.
fn importance(gram: Option<&Gram>, columns: usize) -> Result<Option<Vec<f32>>, Error> {
    let Some(gram) = gram.filter(|gram| gram.tokens() > 0) else { return Ok(None) };
    if gram.features() != columns {
        return Err(Error::Count { what: "features of the Gram matrix", expected: columns, found: gram.features() });
    }
    let diagonal = gram.diagonal();
    let mean = diagonal.iter().sum::<f64>() / columns as f64;
    if mean <= 0.0 {
        return Ok(None);
    }
    // Inputs that are always zero keep a trace of weight, so that their columns are coded sensibly all the same.
    #[expect(clippy::cast_possible_truncation, reason = "weights are used as f32")]
    let relative = |moment: &f64| (moment / mean).max(1e-6) as f32;
    Ok(Some(diagonal.iter().map(relative).collect()))
}
