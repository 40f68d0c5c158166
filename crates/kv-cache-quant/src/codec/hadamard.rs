//! Rotation of every head by a Hadamard matrix: no channel is larger than the others any more.

use crate::Error;
use crate::codec::{RowMap, check_heads};
use crate::kernels;

/// The orthonormal Walsh–Hadamard transform of each head (QuaRot, arXiv 2404.00456), its own inverse.
///
/// A head that is no power of two is rotated in blocks of the largest power of two that divides it: 80 as five of 16.
///
/// Queries are not rotated: decoded rows are turned back, which leaves logits and outputs as they are. A rotation
/// spreads the *mean* of a channel over all of them instead of removing it; stacked on [`ChannelAffine::remove_mean`]
/// it gets both.
///
/// [`ChannelAffine::remove_mean`]: crate::ChannelAffine::remove_mean
///
/// ```
/// use kv_cache_quant::{Hadamard, RowMap};
/// let map = Hadamard::new(1, 4)?;
/// let mut row = [8.0, 0.0, 0.0, 0.0];
/// map.forward(&mut row);
/// assert_eq!(row, [4.0; 4]);
/// map.inverse(&mut row);
/// assert_eq!(row, [8.0, 0.0, 0.0, 0.0]);
/// # Ok::<(), kv_cache_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hadamard {
    width: usize,
    block: usize,
}

impl Hadamard {
    /// For rows of `heads` heads of `dim` elements.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for heads of an odd number of elements, which nothing can be rotated in.
    pub fn new(heads: usize, dim: usize) -> Result<Self, Error> {
        check_heads(heads, dim)?;
        let block = 1 << dim.trailing_zeros();
        if block == 1 {
            let found = format!("{dim} elements");
            return Err(Error::Unsupported { what: "head to rotate", found, supported: "an even number of elements" });
        }
        Ok(Self { width: heads * dim, block })
    }

    /// Elements that are rotated together.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }
}

impl RowMap for Hadamard {
    fn width(&self) -> usize {
        self.width
    }

    fn forward(&self, row: &mut [f32]) {
        kernels::hadamard(row, self.block);
    }

    fn inverse(&self, row: &mut [f32]) {
        kernels::hadamard(row, self.block);
    }

    fn transpose(&self, row: &mut [f32]) -> bool {
        kernels::hadamard(row, self.block);
        true
    }

    fn auxiliary_bytes(&self) -> u64 {
        0
    }

    fn description(&self) -> String {
        format!("Hadamard of {}", self.block)
    }
}
