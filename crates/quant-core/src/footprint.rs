//! What a compressed tensor really takes.

use std::iter::Sum;
use std::ops::Add;

/// Bytes of everything that is stored for a tensor, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Elements represented.
    pub elements: u64,
    /// Bytes of codes, padding to whole bytes a row included.
    pub codes: u64,
    /// Bytes of block scales.
    pub scales: u64,
    /// Bytes of zero points.
    pub zeros: u64,
    /// Bytes of everything else: tensor scales, code books, permutations, dense leftovers.
    pub other: u64,
}

impl Footprint {
    /// All bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.codes + self.scales + self.zeros + self.other
    }

    /// All bits over the number of elements; 0 for no elements.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn bits_per_element(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { 8.0 * self.total_bytes() as f64 / self.elements as f64 }
    }
}

impl Add for Footprint {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            elements: self.elements + other.elements,
            codes: self.codes + other.codes,
            scales: self.scales + other.scales,
            zeros: self.zeros + other.zeros,
            other: self.other + other.other,
        }
    }
}

impl Sum for Footprint {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}
