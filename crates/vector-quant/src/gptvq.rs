//! GPTVQ (arXiv 2402.15319): vector codes chosen in GPTQ's sweep, code books learned on the way.
//!
//! 1. Factor the damped inverse Hessian, `H⁻¹ = Uᵀ U`.
//! 2. At each group of columns learn a code book for each group of rows, on the weights as the sweep has left them, by
//!    k-means in the measure `ω_j = 1/U_jj²`. (The published code uses one power of that for the centroids
//!    and another for the assignments; this is the one that the theory gives for both.)
//! 3. Round the code book to one byte a value.
//! 4. Round the group's vectors to it, and push each error into the columns to come.
//! 5. Move the centroids, with all codes fixed, to the least loss `tr((W−Ŵ) H (W−Ŵ)ᵀ)`: book by book, exactly, by the normal
//!    equations. (The published code takes 25 steps of Adam.) A book whose rounded centroids would raise the loss is kept.

use crate::error::{Error, within};
use crate::kmeans_vq::{check_groups, matrix, or_all};
use crate::{BookType, Books, Init, KMeans, LearnedBook, LearnedBooks, VectorCodec, VqLinear, Weights, kmeans};
use ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use quant_calib::{Gram, Needs};
use quant_core::Linear;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use weight_quant::gptq::{ColumnRounder, Factor, Order, SweepPlan, sweep};

/// How a weight is cut, clustered and swept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GptvqConfig {
    /// Values of a vector.
    pub dim: usize,
    /// Bits of a code; `bits / dim` a weight.
    pub bits: u32,
    /// Columns that share a code book; 0 for all.
    pub columns: usize,
    /// Rows that share a code book; 0 for all.
    pub rows: usize,
    /// Type the code book is stored in.
    pub values: BookType,
    /// Most iterations of the clustering.
    pub iterations: usize,
    /// Where the clustering starts.
    pub init: Init,
    /// Of the clustering.
    pub seed: u64,
    /// Share of the mean diagonal of the Hessian that is added to its diagonal.
    pub damp: f64,
    /// Whether centroids are moved after the sweep (step 5).
    pub update: bool,
}

impl Default for GptvqConfig {
    /// Two bits a weight: 16 vectors of 2 values for 2048 weights (256 columns × 8 rows), 0.125 + 0.0078 bits for the
    /// code book.
    fn default() -> Self {
        Self {
            dim: 2,
            bits: 4,
            columns: 256,
            rows: 8,
            values: BookType::Int8,
            iterations: 100,
            init: Init::Mahalanobis,
            seed: 0,
            damp: 0.01,
            update: true,
        }
    }
}

impl GptvqConfig {
    /// The statistics it needs: the Gram matrix of the inputs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::gram()
    }
}

/// A quantized weight and what is to be said about it.
#[derive(Clone, Debug)]
pub struct Gptvq {
    /// The weight.
    pub weight: VqLinear,
    /// `tr(D H Dᵀ)` for the mean, undamped `H` of the tokens, before and after centroids were moved.
    pub loss: [f64; 2],
}

/// Quantizes a weight `[out, in]` with the Gram matrix of its inputs.
///
/// # Errors
///
/// [`Error::Core`] for tensors that are no finite matrix, [`Error::NoTokens`], [`Error::Count`] for a Gram matrix of
/// another width, [`Error::NotDivisible`], [`Error::TooFewPoints`], [`Error::Setting`], [`Error::Sweep`] when
/// no damping makes the Hessian positive definite.
pub fn gptvq(weight: &impl quant_core::Tensor, gram: &Gram, config: &GptvqConfig) -> Result<Gptvq, Error> {
    let (w, [rows, columns]) = matrix(weight)?;
    let (book_rows, book_columns) = (or_all(config.rows, rows), or_all(config.columns, columns));
    check_groups(columns, book_columns, config.dim, config.bits)?;
    within("bits of a code", f64::from(config.bits), 1.0, 12.0)?;
    let hessian = mean_gram(gram, columns)?;
    let w = Array2::from_shape_vec((rows, columns), w).map_err(|_| Error::Shape { rows, columns })?;

    let factor = Factor::new(hessian.view(), Order::Natural, book_columns, config.damp)?;
    let ends = (1..=columns.div_ceil(book_columns)).map(|group| columns.min(group * book_columns)).collect();
    let plan = SweepPlan {
        group_ends: ends,
        panel_rows: book_rows,
        width: config.dim,
        ..SweepPlan::new(&factor, rows, book_rows)
    };
    let measure: Vec<f32> = factor.upper().diag().iter().map(|u| 1.0 / (u * u)).collect();
    let start = |rows: Range<usize>| Clusterer {
        rows: rows.len(),
        config,
        measure: &measure,
        books: Vec::new(),
        codes: Vec::new(),
    };
    let swept = sweep(w.view(), &factor, &plan, start)?;

    let mut codes = vec![0; rows * columns / config.dim];
    let mut books = Vec::new();
    let vectors = columns / config.dim;
    for (panel, rounder) in swept.rounders.into_iter().enumerate() {
        for (at, code) in rounder.codes.iter().enumerate() {
            codes[(panel * book_rows + at % rounder.rows) * vectors + at / rounder.rows] = *code;
        }
        books.extend(rounder.books);
    }
    let mut learned = LearnedBooks { rows: book_rows, columns: book_columns, books };
    let build =
        |learned: &LearnedBooks| VqLinear::new([rows, columns], Books::Learned(learned.clone()), &codes, Vec::new());
    let mut coded = build(&learned)?;
    let mut loss = [error(&w, &coded, hessian.view())?; 2];
    if config.update {
        move_centroids(&w, &hessian, &codes, &mut learned)?;
        coded = build(&learned)?;
        loss[1] = error(&w, &coded, hessian.view())?;
    }
    Ok(Gptvq { weight: coded, loss })
}

/// The mean of `x xᵀ` over tokens.
pub(crate) fn mean_gram(gram: &Gram, columns: usize) -> Result<Array2<f64>, Error> {
    if gram.features() != columns {
        return Err(Error::Count { what: "features of the Gram matrix", expected: columns, found: gram.features() });
    }
    if gram.tokens() == 0 || gram.weight_sum() <= 0.0 {
        return Err(Error::NoTokens);
    }
    Ok(gram.matrix() / gram.weight_sum())
}

/// `tr(D H Dᵀ)`.
pub(crate) fn error(w: &Array2<f32>, coded: &dyn Linear, hessian: ArrayView2<'_, f64>) -> Result<f64, Error> {
    let dense = coded.to_dense()?;
    let difference = w.iter().zip(&dense).map(|(w, q)| f64::from(*w) - f64::from(*q)).collect();
    let shape = w.dim();
    let d = Array2::from_shape_vec(shape, difference).map_err(|_| Error::Shape { rows: shape.0, columns: shape.1 })?;
    Ok((&quant_linalg::matmul(d.view(), hessian) * &d).sum())
}

/// Learns a code book at each group and rounds to it; the rounder of one group of rows.
struct Clusterer<'a> {
    rows: usize,
    config: &'a GptvqConfig,
    measure: &'a [f32],
    books: Vec<LearnedBook>,
    /// Vectors of all rows, then the next vector.
    codes: Vec<u32>,
}

impl ColumnRounder for Clusterer<'_> {
    type Error = Error;

    fn width(&self) -> usize {
        self.config.dim
    }

    fn begin_group(&mut self, group: Range<usize>, values: &[f32]) -> Result<(), Error> {
        let dim = self.config.dim;
        let mut points = vec![0.0; values.len()];
        let mut weights = vec![0.0; values.len()];
        for (at, (column, measure)) in values.chunks_exact(self.rows).zip(&self.measure[group]).enumerate() {
            for (row, value) in column.iter().enumerate() {
                let to = (at / dim * self.rows + row) * dim + at % dim;
                (points[to], weights[to]) = (*value, *measure);
            }
        }
        let settings = KMeans {
            centroids: 1 << self.config.bits,
            iterations: self.config.iterations,
            init: self.config.init,
            seed: self.config.seed,
            ..KMeans::default()
        };
        let found = kmeans(&points, dim, Weights::PerCoordinate(&weights), &settings)?;
        self.books.push(LearnedBook::new(&found.centroids, dim, self.config.values)?);
        Ok(())
    }

    fn round(&mut self, position: usize, values: &[f32], rounded: &mut [f32]) -> Result<(), Error> {
        let (dim, rows) = (self.config.dim, self.rows);
        let Some(book) = self.books.last() else { return Ok(()) };
        let measure = &self.measure[position..position + dim];
        let mut x = vec![0.0; dim];
        for row in 0..rows {
            x.iter_mut().enumerate().for_each(|(axis, x)| *x = values[axis * rows + row]);
            let code = book.encode_weighted(&x, measure);
            book.decode(code, &mut x);
            x.iter().enumerate().for_each(|(axis, x)| rounded[axis * rows + row] = *x);
            self.codes.push(code);
        }
        Ok(())
    }
}

/// Step 5, for each group of rows by itself: one book after the other.
fn move_centroids(
    w: &Array2<f32>,
    hessian: &Array2<f64>,
    codes: &[u32],
    learned: &mut LearnedBooks,
) -> Result<(), Error> {
    let columns = w.ncols();
    let across = columns.div_ceil(learned.columns);
    let (book_rows, book_columns) = (learned.rows, learned.columns);
    let panels = learned.books.par_chunks_mut(across).enumerate();
    panels.try_for_each(|(panel, books)| {
        let dim = books[0].dim();
        let first = panel * book_rows;
        let rows = first..w.nrows().min(first + book_rows);
        let vectors = columns / dim;
        let codes = &codes[rows.start * vectors..rows.end * vectors];
        // What the codes leave over, as it is now.
        let mut rest = w.slice_axis(Axis(0), Slice::from(rows)).mapv(f64::from);
        for (group, book) in books.iter().enumerate() {
            subtract(&mut rest, codes, book, group * book_columns..columns.min((group + 1) * book_columns), 1.0);
        }
        for (group, book) in books.iter_mut().enumerate() {
            let range = group * book_columns..columns.min((group + 1) * book_columns);
            let own = hessian.slice_axis(Axis(1), Slice::from(range.clone()));
            let gradient = quant_linalg::matmul(rest.view(), own);
            let Some(better) =
                solve(&gradient, own.slice_axis(Axis(0), Slice::from(range.clone())), codes, book, &range)?
            else {
                continue;
            };
            let mut moved = rest.clone();
            subtract(&mut moved, codes, book, range.clone(), -1.0);
            subtract(&mut moved, codes, &better, range.clone(), 1.0);
            let loss = |rest: &Array2<f64>| (&quant_linalg::matmul(rest.view(), hessian.view()) * rest).sum();
            if loss(&moved) < loss(&rest) {
                (*book, rest) = (better, moved);
            }
        }
        Ok(())
    })
}

/// `rest −= sign · decoded` in a range of columns.
fn subtract(rest: &mut Array2<f64>, codes: &[u32], book: &LearnedBook, range: Range<usize>, sign: f64) {
    let (dim, vectors) = (book.dim(), rest.ncols() / book.dim());
    for (row, codes) in rest.axis_iter_mut(Axis(0)).zip(codes.chunks_exact(vectors)) {
        let mut row = row;
        for column in range.clone() {
            let entry = codes[column / dim] as usize;
            row[column] -= sign * f64::from(book.values()[entry * dim + column % dim]);
        }
    }
}

/// The normal equations of a book's centroids: `Σ Sᵀ H S · δ = Σ Sᵀ G`, with `S` the selection of an entry by each vector.
fn solve(
    gradient: &Array2<f64>,
    hessian: ArrayView2<'_, f64>,
    codes: &[u32],
    book: &LearnedBook,
    range: &Range<usize>,
) -> Result<Option<LearnedBook>, Error> {
    let (dim, unknowns) = (book.dim(), book.values().len());
    let vectors = codes.len() / gradient.nrows();
    let (mut matrix, mut right) = (Array2::<f64>::zeros((unknowns, unknowns)), Array1::<f64>::zeros(unknowns));
    for (codes, gradient) in codes.chunks_exact(vectors).zip(gradient.outer_iter()) {
        let at: Vec<usize> = range.clone().map(|column| codes[column / dim] as usize * dim + column % dim).collect();
        for (i, (to, g)) in at.iter().zip(gradient).enumerate() {
            right[*to] += g;
            for (j, from) in at.iter().enumerate() {
                matrix[[*to, *from]] += hessian[[i, j]];
            }
        }
    }
    // Entries that nobody uses, and directions that the inputs never take, stay where they are.
    let damp = 1e-8 * matrix.diag().mean().unwrap_or(0.0);
    if damp <= 0.0 {
        return Ok(None);
    }
    matrix.diag_mut().mapv_inplace(|x| x + damp);
    let Ok(lower) = quant_linalg::cholesky(matrix.view()) else { return Ok(None) };
    let forward = quant_linalg::solve_lower(lower.view(), right.insert_axis(Axis(1)).view())?;
    let step = quant_linalg::solve_upper(lower.t(), forward.view())?;
    #[expect(clippy::cast_possible_truncation, reason = "centroids are f32")]
    let values: Vec<f32> = book.values().iter().zip(&step).map(|(c, step)| (f64::from(*c) + step) as f32).collect();
    LearnedBook::new(&values, dim, book.kind()).map(Some)
}
