//! Many products in one call.

use crate::{Error, Linear, parallel};
use std::cmp::Reverse;

/// A weight and how many rows of the batch it is applied to.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// The weight.
    pub weight: &'a dyn Linear,
    /// Its rows, perhaps none.
    pub rows: usize,
}

/// Rows of one group that are worked on together at most.
const MOST_ROWS: usize = 512;

/// Computes `y = x Wᵀ` for several groups of rows, each with a weight of its own: the product of a mixture of experts.
///
/// `x` holds the rows of all groups one after the other, and so does `y`. Groups may differ in format, in features, and in
/// rows from none to thousands. Long groups are cut into nearly equal pieces of at most 512 rows; pieces are taken by threads as
/// they become free, the largest first, and each is one [`Linear::matmul`], which may use threads itself. So every weight
/// is read once for each piece, not once for each row.
///
/// Results are the bits of each group's own `matmul`, for any number of threads, if a row's result does not depend
/// on the other rows, which holds for packed tensors. No piece has one row unless its group does.
///
/// ```
/// use quant_core::{Format, Group, PackedTensor, Shaped, grouped_matmul};
/// let a = PackedTensor::encode(Format::INT8, &Shaped::new(&[1.0_f32, 2.0], &[1, 2])?)?;
/// let b = PackedTensor::encode(Format::INT4_G128, &Shaped::new(&[7.0_f32, 0.0, 0.0, 7.0], &[2, 2])?)?;
/// let groups = [Group { weight: &a, rows: 1 }, Group { weight: &b, rows: 2 }];
/// let mut y = [0.0; 5];
/// grouped_matmul(&groups, &[1.0, 0.0, 3.0, 4.0, 5.0, 6.0], &mut y)?;
/// assert_eq!(y[1..], [21.0, 28.0, 35.0, 42.0]);
/// # Ok::<(), quant_core::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Shape`] when `x` does not hold the rows of all groups, [`Error::OutputLen`] for `y`, and the errors of
/// [`Linear::matmul`].
pub fn grouped_matmul(groups: &[Group<'_>], x: &[f32], y: &mut [f32]) -> Result<(), Error> {
    let total = |width: fn(&dyn Linear) -> usize| groups.iter().map(|group| group.rows * width(group.weight)).sum();
    let (inputs, outputs): (usize, usize) = (total(|w| w.in_features()), total(|w| w.out_features()));
    if x.len() != inputs {
        return Err(Error::Shape { shape: vec![inputs], expected: inputs, found: x.len() });
    }
    if y.len() != outputs {
        return Err(Error::OutputLen { expected: outputs, found: y.len() });
    }
    let mut pieces = Vec::new();
    let (mut x, mut y) = (x, y);
    for group in groups {
        let (columns, width) = (group.weight.in_features(), group.weight.out_features());
        let count = group.rows.div_ceil(MOST_ROWS);
        for index in 0..count {
            let rows = group.rows / count + usize::from(index < group.rows % count);
            let (here, rest) = x.split_at(rows * columns);
            let (out, later) = std::mem::take(&mut y).split_at_mut(rows * width);
            (x, y) = (rest, later);
            pieces.push(Piece { weight: group.weight, x: here, y: out, work: rows * columns * width });
        }
    }
    pieces.sort_by_key(|piece| Reverse(piece.work));
    let mean = pieces.iter().map(|piece| piece.work).sum::<usize>() / pieces.len().max(1);
    parallel::for_each(pieces, mean, |piece| piece.weight.matmul(piece.x, piece.y))
}

struct Piece<'a> {
    weight: &'a dyn Linear,
    x: &'a [f32],
    y: &'a mut [f32],
    /// Products of two numbers.
    work: usize,
}
