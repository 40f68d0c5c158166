//! Integers packed into 32-bit words.

use crate::Error;
use quant_core::bits;

/// How codes lie in little-endian 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// A bit stream without gaps.
    Dense,
    /// `⌊32/b⌋` codes a word from the lowest bit up, the top bits unused (before version 0.17). Differs from
    /// `Dense` where `b` does not divide 32.
    Legacy,
}

impl Words {
    /// Words that `count` codes of `bits` bits take.
    pub(super) fn count(self, bits: u8, count: usize) -> Option<usize> {
        let bits = usize::from(bits);
        match self {
            Self::Dense => count.checked_mul(bits).map(|n| n.div_ceil(32)),
            Self::Legacy => Some(count.div_ceil(32 / bits)),
        }
    }

    /// The layout in which `count` codes take so many words. Where both do, it is the dense one unless
    /// the file says otherwise.
    pub(super) fn infer(bits: u8, count: usize, words: usize, dense: Option<bool>) -> Option<Self> {
        let preferred = if dense == Some(false) { [Self::Legacy, Self::Dense] } else { [Self::Dense, Self::Legacy] };
        preferred.into_iter().find(|layout| layout.count(bits, count) == Some(words))
    }

    /// Unpacks `count` codes.
    pub(super) fn unpack(self, bits: u8, words: &[u8], count: usize) -> Result<Vec<u16>, quant_core::Error> {
        match self {
            Self::Dense => bits::unpack(u32::from(bits), words, count),
            Self::Legacy => {
                let per_word = 32 / usize::from(bits);
                let (words, _) = words.as_chunks::<4>();
                let mut codes = Vec::with_capacity(count);
                for i in 0..count {
                    let word = words.get(i / per_word).map_or(0, |word| u32::from_le_bytes(*word));
                    let code = word >> (usize::from(bits) * (i % per_word)) & ((1 << bits) - 1);
                    #[expect(clippy::cast_possible_truncation, reason = "masked to at most 8 bits")]
                    codes.push(code as u16);
                }
                Ok(codes)
            }
        }
    }
}

/// Packs codes into whole words without gaps.
pub(super) fn pack(bits: u8, codes: &[u16]) -> Result<Vec<u8>, quant_core::Error> {
    let mut bytes = bits::pack(u32::from(bits), codes)?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

/// The column of a row-major matrix of 4-byte words.
pub(super) fn column(words: &[u8], columns: usize, column: usize) -> Vec<u8> {
    let (words, _) = words.as_chunks::<4>();
    words.iter().skip(column).step_by(columns.max(1)).flatten().copied().collect()
}

/// A bit stream with the sign bit of every code set: XOR with it turns two's complement into codes offset by
/// `2^(b−1)`, and back.
pub(super) fn sign_bits(bits: u8, count: usize) -> Result<Vec<u8>, quant_core::Error> {
    bits::pack(u32::from(bits), &vec![1 << (bits - 1); count])
}

pub(super) fn flip(bytes: &mut [u8], mask: &[u8]) {
    for (byte, mask) in bytes.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// Attaches the module's name.
pub(super) fn named(module: &str) -> impl FnOnce(quant_core::Error) -> Error {
    Error::packed(module)
}
