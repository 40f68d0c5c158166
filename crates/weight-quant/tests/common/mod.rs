//! Data and oracles of the tests.

#![allow(dead_code, reason = "each test file uses its part")]

use ndarray::{Array2, Axis};
use quant_calib::Gram;
use quant_core::{Format, FormatGrid, Grid, Layout, PackedTensor, Shaped};

/// Formats of every family, for weights whose rows hold whole groups or not.
pub(crate) const FORMATS: [&str; 16] = [
    "int4-g32",
    "int4-g32-asym",
    "int3-g16-gptq",
    "int4-asym",
    "int2-g32-min",
    "int8",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "mxint4",
    "nvfp4",
    "nf4-g32",
    "fp8-e4m3",
    "bfp4",
    "ternary-g32",
    "int1-g32",
];

pub(crate) fn parse(name: &str) -> Format {
    name.parse().unwrap()
}

#[expect(clippy::cast_possible_truncation, reason = "test data")]
pub(crate) fn to_f32(x: &Array2<f64>) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// Independent normal values, `[rows, columns]`, row-major.
pub(crate) fn normal(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    to_f32(&quant_linalg::gaussian(rows, columns, seed))
}

/// Tokens whose features form a stationary AR(1) process of correlation `rho` and variance 1.
pub(crate) fn autoregressive(tokens: usize, features: usize, rho: f64, seed: u64) -> Vec<f32> {
    let mut x = quant_linalg::gaussian(tokens, features, seed);
    for mut token in x.axis_iter_mut(Axis(0)) {
        for j in 1..features {
            token[j] = rho * token[j - 1] + (1.0 - rho * rho).sqrt() * token[j];
        }
    }
    to_f32(&x)
}

pub(crate) fn gram(x: &[f32], features: usize) -> Gram {
    let mut gram = Gram::new(features);
    gram.add(x, None).unwrap();
    gram
}

/// The mean of `x xᵀ` over tokens.
#[expect(clippy::cast_precision_loss, reason = "a number of tokens")]
pub(crate) fn mean_gram(gram: &Gram) -> Array2<f64> {
    gram.matrix() / gram.tokens() as f64
}

pub(crate) fn matrix(values: &[f32], columns: usize) -> Array2<f64> {
    let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
    Array2::from_shape_vec((values.len() / columns, columns), values).unwrap()
}

/// `tr(D H Dᵀ)`, plainly.
pub(crate) fn trace(w: &[f32], q: &[f32], h: &Array2<f64>) -> f64 {
    let d = matrix(w, h.ncols()) - matrix(q, h.ncols());
    (&d.dot(h) * &d).sum()
}

/// Adds `damp` of the mean of the nonzero diagonal to the nonzero diagonal.
#[expect(clippy::cast_precision_loss, reason = "a number of columns")]
pub(crate) fn damped(mut h: Array2<f64>, damp: f64) -> Array2<f64> {
    let live = h.diag().iter().filter(|x| **x > 0.0).count();
    let mean = h.diag().sum() / live as f64;
    h.diag_mut().mapv_inplace(|x| if x > 0.0 { x + damp * mean } else { x });
    h
}

pub(crate) fn nearest(w: &[f32], columns: usize, format: Format) -> PackedTensor<'static> {
    PackedTensor::encode(format, &Shaped::new(w, &[w.len() / columns, columns]).unwrap()).unwrap()
}

/// All codes, row-major.
pub(crate) fn codes(packed: &PackedTensor<'_>) -> Vec<u16> {
    let layout = packed.layout();
    let mut codes = vec![0; layout.rows * layout.columns];
    for (row, out) in codes.chunks_exact_mut(layout.columns).enumerate() {
        packed.row_codes(row, out).unwrap();
    }
    codes
}

/// GPTQ as the paper explains it before it makes it fast (optimal brain quantization in a fixed order), in f64: each
/// column's error is shared out by the inverse Hessian of the columns that are left, from which the column is then
/// eliminated. No factorization, no blocks. Groups are fitted when they are reached; blocks span one row.
pub(crate) fn optimal_brain_quantization(w: &[f32], h: &Array2<f64>, format: Format) -> Vec<u16> {
    let columns = h.ncols();
    let layout = Layout::new(format, &[w.len() / columns, columns]).unwrap();
    let amax = w.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let grid = FormatGrid::new(format, amax).unwrap();
    let mut inverse = inverse(h);
    let mut w = matrix(w, columns);
    let mut codes = vec![0; w.len()];
    let mut params = Vec::new();
    for i in 0..columns {
        if i % layout.block_columns == 0 {
            let end = columns.min(i + layout.block_columns);
            let group = |row: usize| to_f32(&w.row(row).to_owned().insert_axis(Axis(0)))[i..end].to_vec();
            params = (0..w.nrows()).map(|row| grid.fit(&group(row), 1.0).unwrap()).collect();
        }
        for row in 0..w.nrows() {
            #[expect(clippy::cast_possible_truncation, reason = "grids round f32")]
            let code = grid.encode(&[w[[row, i]] as f32], &params[row]);
            let mut rounded = [0.0];
            grid.decode(code, &params[row], &mut rounded);
            codes[row * columns + i] = u16::try_from(code).unwrap();
            let error = (w[[row, i]] - f64::from(rounded[0])) / inverse[[i, i]];
            for j in i + 1..columns {
                w[[row, j]] -= error * inverse[[i, j]];
            }
        }
        // Eliminates column i from the inverse.
        let pivot = inverse.row(i).to_owned();
        for a in i + 1..columns {
            let factor = pivot[a] / pivot[i];
            for b in i + 1..columns {
                inverse[[a, b]] -= factor * pivot[b];
            }
        }
    }
    codes
}

/// Gauss-Jordan elimination.
fn inverse(h: &Array2<f64>) -> Array2<f64> {
    let n = h.ncols();
    let (mut a, mut b) = (h.clone(), Array2::eye(n));
    for i in 0..n {
        let pivot = a[[i, i]];
        for j in 0..n {
            a[[i, j]] /= pivot;
            b[[i, j]] /= pivot;
        }
        for k in (0..n).filter(|k| *k != i) {
            let factor = a[[k, i]];
            for j in 0..n {
                a[[k, j]] -= factor * a[[i, j]];
                b[[k, j]] -= factor * b[[i, j]];
            }
        }
    }
    b
}
