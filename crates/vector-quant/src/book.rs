//! Learned code books, kept in the type they are stored in.

use crate::error::{Error, finite};
use crate::nearest::SearchTable;
use crate::{MAX_DIM, VectorCodec};
use half::f16;
use serde::{Deserialize, Serialize};

/// The type the values of a learned code book are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BookType {
    /// IEEE half precision.
    #[default]
    F16,
    /// Whole numbers from −127 to 127 times one f16 scale a book (GPTVQ).
    Int8,
}

impl BookType {
    /// Bytes of one book of this many values.
    #[must_use]
    pub fn bytes(self, values: usize) -> usize {
        match self {
            Self::F16 => 2 * values,
            Self::Int8 => values + 2,
        }
    }
}

/// A learned code book of `2^bits` vectors, rounded to the type it is stored in.
#[derive(Clone, Debug)]
pub struct LearnedBook {
    dim: usize,
    bits: u32,
    kind: BookType,
    bytes: Vec<u8>,
    values: Vec<f32>,
    table: SearchTable,
}

impl LearnedBook {
    /// Rounds a code book `[entries, dim]` to its stored type. When the number of entries is no power of two, codes
    /// beyond them mean the last entry.
    ///
    /// # Errors
    ///
    /// [`Error::Dimension`], [`Error::NotDivisible`], [`Error::NonFinite`], also when a value exceeds what the stored
    /// type can hold, [`Error::Setting`] for no entries or more than 2^16.
    pub fn new(values: &[f32], dim: usize, kind: BookType) -> Result<Self, Error> {
        let bits = Self::check(values.len(), dim)?;
        finite("code book value", values)?;
        let mut padded = values.to_vec();
        while padded.len() < dim << bits {
            padded.extend_from_within(padded.len() - dim..);
        }
        let bytes = match kind {
            BookType::F16 => padded.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            BookType::Int8 => int8(&padded),
        };
        Self::from_bytes(bytes, dim, bits, kind)
    }

    /// A code book from what [`LearnedBook::bytes`] gave.
    ///
    /// # Errors
    ///
    /// [`Error::Dimension`], [`Error::Setting`], [`Error::Count`] for another number of bytes, [`Error::NonFinite`].
    pub fn from_bytes(bytes: Vec<u8>, dim: usize, bits: u32, kind: BookType) -> Result<Self, Error> {
        crate::error::within("bits of a code book", f64::from(bits), 0.0, 16.0)?;
        Self::check(dim << bits, dim)?;
        let expected = kind.bytes(dim << bits);
        if bytes.len() != expected {
            return Err(Error::Count { what: "bytes of a code book", expected, found: bytes.len() });
        }
        let half = |pair: &[u8]| f16::from_le_bytes([pair[0], pair[1]]).to_f32();
        let values: Vec<f32> = match kind {
            BookType::F16 => bytes.chunks_exact(2).map(half).collect(),
            BookType::Int8 => {
                let (scale, codes) = bytes.split_at(2);
                let scale = half(scale);
                codes.iter().map(|code| f32::from(code.cast_signed()) * scale).collect()
            }
        };
        finite("code book value", &values)?;
        let table = SearchTable::euclidean(&values, dim);
        Ok(Self { dim, bits, kind, bytes, values, table })
    }

    fn check(len: usize, dim: usize) -> Result<u32, Error> {
        if dim == 0 || dim > MAX_DIM {
            return Err(Error::Dimension { dim, most: MAX_DIM });
        }
        if !len.is_multiple_of(dim) {
            return Err(Error::NotDivisible { what: "a code book", len, dim });
        }
        let entries = len / dim;
        crate::error::within("entries of a code book", entries as f64, 1.0, 65536.0)?;
        Ok(entries.next_power_of_two().trailing_zeros())
    }

    /// Values `[2^bits, dim]`, as decoded.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// What is stored.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The type it is stored in.
    #[must_use]
    pub fn kind(&self) -> BookType {
        self.kind
    }

    /// The entry with the least `Σ ω_i (x_i − c_i)²`.
    #[must_use]
    pub fn encode_weighted(&self, x: &[f32], weights: &[f32]) -> u32 {
        let cost =
            |entry: &[f32]| -> f32 { x.iter().zip(entry).zip(weights).map(|((x, c), w)| w * (x - c) * (x - c)).sum() };
        let mut best = (f32::INFINITY, 0);
        for (entry, code) in self.values.chunks_exact(self.dim).zip(0..) {
            let cost = cost(entry);
            if cost < best.0 {
                best = (cost, code);
            }
        }
        best.1
    }
}

/// One f16 scale, rounded up so that no code leaves ±127, and a byte a value.
fn int8(values: &[f32]) -> Vec<u8> {
    let amax = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let mut scale = f16::from_f32(amax / 127.0);
    if scale.to_f32() * 127.0 < amax {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    let step = if scale.to_f32() > 0.0 { scale.to_f32() } else { 1.0 };
    #[expect(clippy::cast_possible_truncation, reason = "a whole number within ±127")]
    let code = |v: &f32| (v / step).round_ties_even().clamp(-127.0, 127.0) as i8;
    scale.to_le_bytes().into_iter().chain(values.iter().map(|v| code(v).cast_unsigned())).collect()
}

impl VectorCodec for LearnedBook {
    fn dim(&self) -> usize {
        self.dim
    }

    fn bits(&self) -> u32 {
        self.bits
    }

    fn encode(&self, x: &[f32]) -> u32 {
        self.table.search_one(x)
    }

    fn encode_all(&self, xs: &[f32], codes: &mut [u32]) {
        self.table.search(xs, codes);
    }

    fn decode(&self, code: u32, out: &mut [f32]) {
        let last = self.table.entries() - 1;
        let entry = (code as usize).min(last);
        out.copy_from_slice(&self.values[entry * self.dim..][..self.dim]);
    }
}
