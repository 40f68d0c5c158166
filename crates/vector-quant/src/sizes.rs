//! What a coded matrix will take, known before any code is chosen.

use crate::error::{Error, within};
use crate::{BooksHeader, LearnedBooks};
use quant_core::bits;

/// Bytes of the stored sections of a [`VqLinear`](crate::VqLinear).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSizes {
    /// Planes of codes.
    pub codes: usize,
    /// Row scales, if there are any.
    pub scales: usize,
    /// Code books.
    pub books: usize,
}

impl BooksHeader {
    /// Values of one vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        match self {
            Self::E8p | Self::E8pTwice { .. } | Self::Polar { .. } => 8,
            Self::Learned { dim, .. } => *dim,
        }
    }

    /// Widths of the planes of a code.
    fn planes(&self) -> Vec<u32> {
        match self {
            Self::E8p => vec![16],
            Self::E8pTwice { .. } => vec![16, 16],
            Self::Polar { config } if config.direction_bits.saturating_add(config.magnitude_bits) > 16 => {
                vec![config.direction_bits, config.magnitude_bits]
            }
            Self::Polar { config } => vec![config.direction_bits + config.magnitude_bits],
            Self::Learned { bits, .. } => vec![*bits],
        }
    }

    /// What a matrix `[out, in]` with these code books stores; `row_scales` says whether it has one scale a row.
    ///
    /// # Errors
    ///
    /// [`Error::NotDivisible`] when rows or groups of columns hold no whole vectors, [`Error::Dimension`],
    /// [`Error::Setting`] for bits that no code book has, [`Error::Core`] for a matrix that is too large.
    ///
    /// # Examples
    ///
    /// ```
    /// use vector_quant::BooksHeader;
    /// let sizes = BooksHeader::E8p.sizes([16, 64], true)?;
    /// assert_eq!((sizes.codes, sizes.scales, sizes.books), (16 * 64 / 4, 2 * 16, 0));
    /// # Ok::<(), vector_quant::Error>(())
    /// ```
    pub fn sizes(&self, shape: [usize; 2], row_scales: bool) -> Result<PartSizes, Error> {
        let [rows, columns] = shape;
        let books = match *self {
            Self::E8p | Self::E8pTwice { .. } => 0,
            Self::Polar { config } => {
                within("direction bits", f64::from(config.direction_bits), 4.0, 16.0)?;
                within("magnitude bits", f64::from(config.magnitude_bits), 0.0, 6.0)?;
                4 << config.magnitude_bits
            }
            Self::Learned { dim, bits, values, rows, columns } => {
                within("bits of a code book", f64::from(bits), 0.0, 16.0)?;
                LearnedBooks::groups(shape, dim, rows, columns)?.saturating_mul(values.bytes(dim << bits))
            }
        };
        if shape.contains(&0) || !columns.is_multiple_of(self.dim()) {
            return Err(Error::NotDivisible { what: "a row", len: columns, dim: self.dim() });
        }
        let mut codes = 0_usize;
        for bits in self.planes().into_iter().filter(|bits| *bits > 0) {
            codes = codes.saturating_add(bits::packed_len(bits, columns / self.dim())?.saturating_mul(rows));
        }
        Ok(PartSizes { codes, scales: if row_scales { 2 * rows } else { 0 }, books })
    }
}
