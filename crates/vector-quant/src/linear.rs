//! A matrix whose rows are stored as codes of vectors.
//!
//! ```text
//! Ŵ[row, 8v..8v+8] = scale[row] · book(row, v).decode(code[row, v])        (8 stands for the dimension)
//! ```
//!
//! | section | layout |
//! |---|---|
//! | codes | one plane after the other, see [`VectorCodec::planes`]; in a plane row by row, codes packed from the lowest bit of the first byte on, each row padded to a whole byte |
//! | scales | one f16 a row, or nothing |
//! | books | learned code books by groups of rows, then of columns |

use crate::book::BookType;
use crate::e8p::E8P;
use crate::error::{Error, finite};
use crate::polar::{PolarCodec, PolarConfig};
use crate::{LearnedBook, Residual, VectorCodec, product};
use half::f16;
use quant_core::{Footprint, Linear, bits};
use serde::{Deserialize, Serialize};

/// What codes of a [`VqLinear`] mean.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Books {
    /// E8P, 16 bits for 8 values.
    E8P(E8P),
    /// E8P twice, 32 bits for 8 values.
    E8PTwice(Residual<E8P, E8P>),
    /// Direction and length.
    Polar(PolarCodec),
    /// Learned code books, each for a group of rows and columns.
    Learned(LearnedBooks),
}

/// Learned code books of one matrix; all have the same dimension, bits and type.
#[derive(Clone, Debug)]
pub struct LearnedBooks {
    /// Consecutive rows that share a book; the last group may be shorter.
    pub rows: usize,
    /// Consecutive columns that share a book, a multiple of the dimension; the last group may be shorter.
    pub columns: usize,
    /// Books of the first group of rows, then of the next.
    pub books: Vec<LearnedBook>,
}

/// How the code books of a stored matrix are to be read: what a file has to say beside the bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum BooksHeader {
    /// [`Books::E8P`].
    E8p,
    /// [`Books::E8PTwice`].
    E8pTwice {
        /// [`Residual::gain`].
        gain: f32,
    },
    /// [`Books::Polar`].
    Polar {
        /// Settings of the code book.
        config: PolarConfig,
    },
    /// [`Books::Learned`].
    Learned {
        /// Values of a vector.
        dim: usize,
        /// Bits of a code.
        bits: u32,
        /// Type of the values.
        values: BookType,
        /// Rows of a group.
        rows: usize,
        /// Columns of a group.
        columns: usize,
    },
}

impl Books {
    /// The code book that serves vector `v` of a row.
    fn at(&self, row: usize, vector: usize, columns: usize) -> &dyn VectorCodec {
        match self {
            Self::E8P(book) => book,
            Self::E8PTwice(book) => book,
            Self::Polar(book) => book,
            Self::Learned(learned) => {
                let across = columns.div_ceil(learned.columns);
                &learned.books[row / learned.rows * across + vector * learned.books[0].dim() / learned.columns]
            }
        }
    }

    /// Bytes that are stored with the matrix.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::E8P(_) | Self::E8PTwice(_) => Vec::new(),
            Self::Polar(codec) => codec.lengths().iter().flat_map(|c| c.to_le_bytes()).collect(),
            Self::Learned(learned) => learned.books.iter().flat_map(|book| book.bytes().iter().copied()).collect(),
        }
    }

    fn header(&self) -> BooksHeader {
        match self {
            Self::E8P(_) => BooksHeader::E8p,
            Self::E8PTwice(twice) => BooksHeader::E8pTwice { gain: twice.gain },
            Self::Polar(codec) => BooksHeader::Polar { config: codec.config() },
            Self::Learned(learned) => BooksHeader::Learned {
                dim: learned.books[0].dim(),
                bits: learned.books[0].bits(),
                values: learned.books[0].kind(),
                rows: learned.rows,
                columns: learned.columns,
            },
        }
    }

    fn read(header: &BooksHeader, shape: [usize; 2], bytes: &[u8]) -> Result<Self, Error> {
        let empty = |books| match bytes.len() {
            0 => Ok(books),
            found => Err(Error::Count { what: "bytes of code books", expected: 0, found }),
        };
        match *header {
            BooksHeader::E8p => empty(Self::E8P(E8P)),
            BooksHeader::E8pTwice { gain } => {
                finite("gain", &[gain])?;
                crate::error::within("gain", f64::from(gain), f64::from(f32::MIN_POSITIVE), 1e6)?;
                empty(Self::E8PTwice(Residual { first: E8P, second: E8P, gain }))
            }
            BooksHeader::Polar { config } => {
                let (lengths, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(Error::NotDivisible { what: "a list of lengths", len: bytes.len(), dim: 4 });
                }
                let lengths = lengths.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                Ok(Self::Polar(PolarCodec::with_lengths(config, lengths)?))
            }
            BooksHeader::Learned { dim, bits, values, rows, columns } => {
                let groups = LearnedBooks::groups(shape, dim, rows, columns)?;
                crate::error::within("bits of a code book", f64::from(bits), 0.0, 16.0)?;
                let size = values.bytes(dim << bits);
                if Some(bytes.len()) != groups.checked_mul(size) {
                    let expected = groups.saturating_mul(size);
                    return Err(Error::Count { what: "bytes of code books", expected, found: bytes.len() });
                }
                let book = |bytes: &[u8]| LearnedBook::from_bytes(bytes.to_vec(), dim, bits, values);
                let books = bytes.chunks_exact(size).map(book).collect::<Result<_, _>>()?;
                Ok(Self::Learned(LearnedBooks { rows, columns, books }))
            }
        }
    }
}

impl LearnedBooks {
    /// Number of books that a matrix needs.
    pub(crate) fn groups(shape: [usize; 2], dim: usize, rows: usize, columns: usize) -> Result<usize, Error> {
        if dim == 0 || dim > crate::MAX_DIM {
            return Err(Error::Dimension { dim, most: crate::MAX_DIM });
        }
        if rows == 0 || columns == 0 || !columns.is_multiple_of(dim) {
            return Err(Error::NotDivisible { what: "a group of columns", len: columns.min(rows), dim });
        }
        Ok(shape[0].div_ceil(rows) * shape[1].div_ceil(columns))
    }
}

/// A vector-quantized matrix `[out, in]` that is multiplied as it is.
///
/// # Examples
///
/// ```
/// use quant_core::{Linear, Shaped};
/// use vector_quant::{KMeansVq, kmeans_vq};
/// let weights: Vec<f32> = (0..32 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
/// let matrix = Shaped::new(&weights, &[32, 64])?;
/// let coded = kmeans_vq(&matrix, None, &KMeansVq { dim: 4, bits: 6, ..KMeansVq::default() })?;
/// assert_eq!(coded.footprint().codes, 32 * 64 / 4 * 6 / 8);
/// let mut y = [0.0; 32];
/// coded.matmul(&[1.0; 64], &mut y)?;
/// # Ok::<(), vector_quant::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct VqLinear {
    pub(crate) shape: [usize; 2],
    pub(crate) dim: usize,
    pub(crate) books: Books,
    pub(crate) planes: Vec<Plane>,
    /// One a row, or none.
    pub(crate) scales: Vec<f16>,
}

/// Some bits of all codes.
#[derive(Clone, Debug)]
pub(crate) struct Plane {
    pub(crate) bits: u32,
    pub(crate) row_bytes: usize,
    pub(crate) bytes: Vec<u8>,
}

impl VqLinear {
    /// Stores `codes` `[out, in / dim]`, row-major; `scales` has one value a row or none.
    ///
    /// # Errors
    ///
    /// [`Error::NotDivisible`], [`Error::Count`], [`Error::Code`] for codes the books do not have,
    /// [`Error::NonFinite`] for scales.
    pub fn new(shape: [usize; 2], books: Books, codes: &[u32], scales: Vec<f16>) -> Result<Self, Error> {
        let mut linear = Self::empty(shape, books, scales)?;
        let vectors = shape[1] / linear.dim;
        if codes.len() != shape[0] * vectors {
            return Err(Error::Count { what: "codes", expected: shape[0] * vectors, found: codes.len() });
        }
        let bits = linear.books.at(0, 0, shape[1]).bits();
        let entries = 1_u64 << bits;
        if let Some(index) = codes.iter().position(|code| u64::from(*code) >= entries) {
            let entries = u32::try_from(entries).unwrap_or(u32::MAX);
            return Err(Error::Code { index, code: codes[index], entries });
        }
        let mut low = 0;
        for plane in &mut linear.planes {
            let mask = (1_u32 << plane.bits) - 1;
            for row in codes.chunks_exact(vectors.max(1)) {
                #[expect(clippy::cast_possible_truncation, reason = "masked to at most 16 bits")]
                let part: Vec<u16> = row.iter().map(|code| (code >> low & mask) as u16).collect();
                plane.bytes.extend(bits::pack(plane.bits, &part)?);
            }
            low += plane.bits;
        }
        Ok(linear)
    }

    /// A matrix without codes yet.
    fn empty(shape: [usize; 2], books: Books, scales: Vec<f16>) -> Result<Self, Error> {
        if let Books::Learned(learned) = &books {
            let dim = learned.books.first().map_or(1, VectorCodec::dim);
            let expected = LearnedBooks::groups(shape, dim, learned.rows, learned.columns)?;
            if learned.books.len() != expected || expected == 0 {
                return Err(Error::Count { what: "code books", expected, found: learned.books.len() });
            }
        }
        let codec = books.at(0, 0, shape[1]);
        let (dim, widths) = (codec.dim(), codec.planes());
        if shape.contains(&0) || !shape[1].is_multiple_of(dim) {
            return Err(Error::NotDivisible { what: "a row", len: shape[1], dim });
        }
        if !scales.is_empty() && scales.len() != shape[0] {
            return Err(Error::Count { what: "row scales", expected: shape[0], found: scales.len() });
        }
        if let Some(index) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(Error::NonFinite { what: "row scale", index, value: scales[index].to_f32() });
        }
        let plane = |bits: u32| -> Result<Plane, Error> {
            Ok(Plane { bits, row_bytes: bits::packed_len(bits, shape[1] / dim)?, bytes: Vec::new() })
        };
        // A code of no bits takes no plane.
        let planes = widths.into_iter().filter(|bits| *bits > 0).map(plane).collect::<Result<_, _>>()?;
        Ok(Self { shape, dim, books, planes, scales })
    }

    /// A matrix from its stored parts, see the table at the top of this module's documentation.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] when a section has another length, and as [`VqLinear::new`].
    pub fn from_parts(shape: [usize; 2], header: &BooksHeader, parts: Parts<'_>) -> Result<Self, Error> {
        let books = Books::read(header, shape, parts.books)?;
        let (scales, rest) = parts.scales.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Error::NotDivisible { what: "a list of scales", len: parts.scales.len(), dim: 2 });
        }
        let scales = scales.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
        let mut linear = Self::empty(shape, books, scales)?;
        let total: usize = linear.planes.iter().map(|plane| plane.row_bytes * shape[0]).sum();
        if parts.codes.len() != total {
            return Err(Error::Count { what: "bytes of codes", expected: total, found: parts.codes.len() });
        }
        let mut rest = parts.codes;
        for plane in &mut linear.planes {
            let (own, behind) = rest.split_at(plane.row_bytes * shape[0]);
            plane.bytes = own.to_vec();
            rest = behind;
        }
        Ok(linear)
    }

    /// What has to be stored: codes, scales, books.
    #[must_use]
    pub fn to_parts(&self) -> OwnedParts {
        OwnedParts {
            codes: self.planes.iter().flat_map(|plane| plane.bytes.iter().copied()).collect(),
            scales: self.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            books: self.books.bytes(),
        }
    }

    /// What a file has to say beside the bytes.
    #[must_use]
    pub fn header(&self) -> BooksHeader {
        self.books.header()
    }

    /// The code books.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }

    pub(crate) fn scale(&self, row: usize) -> f32 {
        self.scales.get(row).map_or(1.0, |scale| scale.to_f32())
    }

    /// The codes of a row.
    ///
    /// # Errors
    ///
    /// [`quant_core::Error::Row`] when there is no such row.
    pub fn codes(&self, row: usize) -> Result<Vec<u32>, quant_core::Error> {
        if row >= self.shape[0] {
            return Err(quant_core::Error::Row { row, rows: self.shape[0] });
        }
        let mut codes = vec![0_u32; self.shape[1] / self.dim];
        let mut low = 0;
        for plane in &self.planes {
            let bytes = &plane.bytes[row * plane.row_bytes..][..plane.row_bytes];
            let part = bits::unpack(plane.bits, bytes, codes.len())?;
            codes.iter_mut().zip(part).for_each(|(code, part)| *code |= u32::from(part) << low);
            low += plane.bits;
        }
        Ok(codes)
    }
}

/// Stored sections of a [`VqLinear`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts<'a> {
    /// Planes of codes.
    pub codes: &'a [u8],
    /// Row scales.
    pub scales: &'a [u8],
    /// Code books.
    pub books: &'a [u8],
}

/// Stored sections of a [`VqLinear`], owned.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedParts {
    /// Planes of codes.
    pub codes: Vec<u8>,
    /// Row scales.
    pub scales: Vec<u8>,
    /// Code books.
    pub books: Vec<u8>,
}

impl OwnedParts {
    /// The sections, borrowed.
    #[must_use]
    pub fn as_parts(&self) -> Parts<'_> {
        Parts { codes: &self.codes, scales: &self.scales, books: &self.books }
    }
}

impl Linear for VqLinear {
    fn in_features(&self) -> usize {
        self.shape[1]
    }

    fn out_features(&self) -> usize {
        self.shape[0]
    }

    /// Gathers a few rows of the weight at a time from the code books; no dense copy is made. A row of `x` gives the same
    /// bits alone and among others.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        let [outputs, columns] = self.shape;
        if !x.len().is_multiple_of(columns) {
            return Err(quant_core::Error::Features { in_features: columns, found: x.len() });
        }
        let rows = x.len() / columns;
        if y.len() != rows * outputs {
            return Err(quant_core::Error::OutputLen { expected: rows * outputs, found: y.len() });
        }
        product::matmul(self, x, rows, y)
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        let shape = || quant_core::Error::SizeOverflow { shape: self.shape.to_vec() };
        let mut out = vec![0.0; self.shape[0].checked_mul(self.shape[1]).ok_or_else(shape)?];
        product::decode(self, &mut out)?;
        Ok(out)
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            elements: (self.shape[0] * self.shape[1]) as u64,
            codes: self.planes.iter().map(|plane| plane.bytes.len() as u64).sum(),
            scales: 2 * self.scales.len() as u64,
            zeros: 0,
            other: self.books.bytes().len() as u64,
        }
    }
}
