//! The bit streams in which codes are stored.
//!
//! *Bits*: a little-endian stream; code `i` of `b` bits takes bits `[i·b, i·b + b)`, and bit `k` of
//! the stream is bit `k % 8` of byte `k / 8`. Read as little-endian 32-bit words this is the packing
//! of compressed-tensors, GPTQ and MLX; for 4 bits the even element is in the low nibble.
//!
//! *Trits*: five base-3 digits a byte, the first digit least significant (`3^5 = 243 ≤ 256`).

use crate::Error;

/// Bytes of `count` codes of `bits` bits, 1 to 16.
///
/// # Errors
///
/// [`Error::CodeBits`] for another width, [`Error::SizeOverflow`] when the length overflows.
pub fn packed_len(bits: u32, count: usize) -> Result<usize, Error> {
    check(bits)?;
    Packing::Bits(bits).bytes(count).ok_or_else(|| Error::SizeOverflow { shape: vec![count] })
}

/// Packs codes of `bits` bits, 1 to 16; higher bits of a code are ignored, unused bits of the last
/// byte are zero.
///
/// ```
/// use quant_core::bits;
/// assert_eq!(bits::pack(4, &[1, 2, 3])?, [0x21, 0x03]);
/// assert_eq!(bits::unpack(4, &[0x21, 0x03], 3)?, [1, 2, 3]);
/// # Ok::<(), quant_core::Error>(())
/// ```
///
/// # Errors
///
/// As [`packed_len`].
pub fn pack(bits: u32, codes: &[u16]) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; packed_len(bits, codes.len())?];
    Packing::Bits(bits).pack(codes, &mut out);
    Ok(out)
}

/// Unpacks `count` codes of `bits` bits, 1 to 16, from the start of `bytes`.
///
/// # Errors
///
/// As [`packed_len`], and [`Error::PackedLen`] when there are too few bytes.
pub fn unpack(bits: u32, bytes: &[u8], count: usize) -> Result<Vec<u16>, Error> {
    let expected = packed_len(bits, count)?;
    // Before room is made for codes that are not there.
    if bytes.len() < expected {
        return Err(Error::PackedLen { count, expected, found: bytes.len() });
    }
    let mut codes = vec![0; count];
    unpack_into(bits, bytes, &mut codes)?;
    Ok(codes)
}

/// Unpacks as many codes of `bits` bits, 1 to 16, as `codes` holds.
///
/// # Errors
///
/// As [`unpack`].
pub fn unpack_into(bits: u32, bytes: &[u8], codes: &mut [u16]) -> Result<(), Error> {
    let (count, expected) = (codes.len(), packed_len(bits, codes.len())?);
    if bytes.len() < expected {
        return Err(Error::PackedLen { count, expected, found: bytes.len() });
    }
    Packing::Bits(bits).unpack(bytes, 0, codes);
    Ok(())
}

/// Packs base-3 digits, five to a byte; digits are taken modulo 3.
///
/// ```
/// use quant_core::bits;
/// assert_eq!(bits::pack_trits(&[2, 0, 1]), [2 + 0 * 3 + 1 * 9]);
/// assert_eq!(bits::unpack_trits(&[11], 3)?, [2, 0, 1]);
/// # Ok::<(), quant_core::Error>(())
/// ```
#[must_use]
pub fn pack_trits(digits: &[u16]) -> Vec<u8> {
    let mut out = vec![0; digits.len().div_ceil(5)];
    let digits: Vec<u16> = digits.iter().map(|digit| digit % 3).collect();
    Packing::Trits.pack(&digits, &mut out);
    out
}

/// Unpacks `count` base-3 digits from the start of `bytes`. Every byte has a reading: above 242 the
/// last digit wraps.
///
/// # Errors
///
/// [`Error::PackedLen`] when there are too few bytes.
pub fn unpack_trits(bytes: &[u8], count: usize) -> Result<Vec<u16>, Error> {
    let expected = count.div_ceil(5);
    if bytes.len() < expected {
        return Err(Error::PackedLen { count, expected, found: bytes.len() });
    }
    let mut digits = vec![0; count];
    Packing::Trits.unpack(bytes, 0, &mut digits);
    Ok(digits)
}

fn check(bits: u32) -> Result<(), Error> {
    if (1..=16).contains(&bits) { Ok(()) } else { Err(Error::CodeBits { bits }) }
}

/// How codes lie in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Little-endian bit stream of codes of this many bits, 1 to 16.
    Bits(u32),
    /// Five base-3 digits a byte.
    Trits,
}

impl Packing {
    /// Bytes that `count` codes take.
    pub(crate) fn bytes(self, count: usize) -> Option<usize> {
        match self {
            Self::Bits(bits) => count.checked_mul(bits as usize).map(|n| n.div_ceil(8)),
            Self::Trits => Some(count.div_ceil(5)),
        }
    }

    /// Packs codes; unused bits of the last byte are zero. `out` has [`Packing::bytes`] bytes.
    #[expect(clippy::cast_possible_truncation, reason = "bytes are cut from the accumulator on purpose")]
    pub(crate) fn pack(self, codes: &[u16], out: &mut [u8]) {
        match self {
            Self::Bits(bits) => {
                let (mut pending, mut filled, mut bytes) = (0_u32, 0, out.iter_mut());
                let mask = (1_u32 << bits) - 1;
                for &code in codes {
                    pending |= (u32::from(code) & mask) << filled;
                    filled += bits;
                    while filled >= 8 {
                        if let Some(byte) = bytes.next() {
                            *byte = pending as u8;
                        }
                        pending >>= 8;
                        filled -= 8;
                    }
                }
                if let Some(byte) = bytes.next() {
                    *byte = pending as u8;
                }
            }
            Self::Trits => {
                for (digits, byte) in codes.chunks(5).zip(out) {
                    *byte = digits.iter().rev().fold(0, |acc, &digit| acc * 3 + digit as u8);
                }
            }
        }
    }

    /// Unpacks `codes.len()` codes, the first being code `first` of the stream. Every byte pattern
    /// has a reading; a base-3 byte above 242 wraps its last digit.
    #[expect(clippy::cast_possible_truncation, reason = "masked to the bits of a code")]
    pub(crate) fn unpack(self, bytes: &[u8], first: usize, codes: &mut [u16]) {
        match self {
            // Eight codes take as many bytes as a code has bits.
            Self::Bits(bits) if first.is_multiple_of(8) && codes.len() >= 8 => {
                let (eights, rest) = codes.as_chunks_mut::<8>();
                let behind = first + 8 * eights.len();
                let bytes_of = |eights: usize| bytes.get(eights * bits as usize..).unwrap_or(&[]);
                unpack_eights(bits, bytes_of(first / 8), eights);
                self.unpack(bytes_of(behind / 8), 0, rest);
            }
            Self::Bits(bits) => {
                let mask = (1_u32 << bits) - 1;
                for (i, code) in codes.iter_mut().enumerate() {
                    let bit = (first + i) * bits as usize;
                    let byte = |k: usize| u32::from(bytes.get(bit / 8 + k).copied().unwrap_or(0));
                    let window = byte(0) | byte(1) << 8 | byte(2) << 16;
                    *code = (window >> (bit % 8) & mask) as u16;
                }
            }
            Self::Trits => {
                const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
                for (i, code) in codes.iter_mut().enumerate() {
                    let position = first + i;
                    *code = u16::from(bytes[position / 5] / POWERS[position % 5] % 3);
                }
            }
        }
    }
}

/// Unpacks eight codes at a time; bytes that are not there read as zero.
fn unpack_eights(bits: u32, bytes: &[u8], codes: &mut [[u16; 8]]) {
    macro_rules! by_bits {
        ($($bits:literal)*) => {
            match bits {
                $($bits => unpack_whole::<$bits>(bytes, codes),)*
                _ => {}
            }
        };
    }
    by_bits!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
}

fn unpack_whole<const B: usize>(bytes: &[u8], codes: &mut [[u16; 8]]) {
    let (whole, rest) = bytes.as_chunks::<B>();
    let (codes, behind) = codes.split_at_mut(whole.len().min(codes.len()));
    codes.iter_mut().zip(whole).for_each(|(codes, bytes)| *codes = eight(bytes));
    if let Some(codes) = behind.first_mut() {
        let mut last = [0; B];
        last[..rest.len()].copy_from_slice(rest);
        *codes = eight(&last);
    }
}

/// Eight codes of `B` bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked to the bits of a code")]
fn eight<const B: usize>(bytes: &[u8; B]) -> [u16; 8] {
    let mask = ((1_u32 << B) - 1) as u16;
    match B {
        // These a compiler can make vectors of.
        4 => std::array::from_fn(|i| u16::from(bytes[i / 2] >> (4 * (i % 2)) & 15)),
        8 => std::array::from_fn(|i| u16::from(bytes[i])),
        16 => std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
        ..8 => {
            let word = bytes.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            std::array::from_fn(|i| (word >> (i * B)) as u16 & mask)
        }
        _ => {
            let word = bytes.iter().rev().fold(0_u128, |word, byte| word << 8 | u128::from(*byte));
            std::array::from_fn(|i| (word >> (i * B)) as u16 & mask)
        }
    }
}
