//! A compressed weight that can be applied.

use crate::{Error, Footprint, PackedTensor};
use std::fmt::Debug;

/// A weight `W` of shape `[out, in]` that can be multiplied without its owner knowing how it is stored.
///
/// Packed tensors implement it, and so do the low-rank pairs, code books, rotations and sums of the
/// other crates; they compose because all are used through this trait.
pub trait Linear: Debug + Send + Sync {
    /// Features that go in: the last axis of `W`.
    fn in_features(&self) -> usize;

    /// Features that come out: the rows of `W`.
    fn out_features(&self) -> usize;

    /// Computes `y = x Wᵀ` for row-major `x` `[rows, in]` and `y` `[rows, out]`; `rows` follows from `x`.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] when `x` is not whole rows, [`Error::OutputLen`] when `y` has another
    /// number of rows.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error>;

    /// The values it multiplies with, row-major `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`Error::SizeOverflow`] when they do not fit the address space.
    fn to_dense(&self) -> Result<Vec<f32>, Error>;

    /// Everything that is stored.
    fn footprint(&self) -> Footprint;
}

/// Checks the slices of a product and returns the number of rows.
pub(crate) fn product_rows(x: &[f32], y: &[f32], in_features: usize, out_features: usize) -> Result<usize, Error> {
    if in_features == 0 || !x.len().is_multiple_of(in_features) {
        return Err(Error::Features { in_features, found: x.len() });
    }
    let rows = x.len() / in_features;
    let expected = rows * out_features;
    if y.len() != expected {
        return Err(Error::OutputLen { expected, found: y.len() });
    }
    Ok(rows)
}

impl Linear for PackedTensor<'_> {
    fn in_features(&self) -> usize {
        self.layout().columns
    }

    fn out_features(&self) -> usize {
        self.layout().rows
    }

    /// Decodes one row of the weight at a time; the sum of each product is formed in 16 lanes
    /// that are added pairwise, the same on every machine.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        let (columns, outputs) = (self.in_features(), self.out_features());
        product_rows(x, y, columns, outputs)?;
        let mut weights = vec![0.0; columns];
        for output in 0..outputs {
            self.decode_row(output, &mut weights)?;
            for (input, sums) in x.chunks_exact(columns).zip(y.chunks_exact_mut(outputs)) {
                sums[output] = dot(input, &weights);
            }
        }
        Ok(())
    }

    fn to_dense(&self) -> Result<Vec<f32>, Error> {
        Ok(self.decode())
    }

    fn footprint(&self) -> Footprint {
        PackedTensor::footprint(self)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0_f32; LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (x, w) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += x[i] * w[i];
        }
    }
    for (lane, (x, w)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += x * w;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}
