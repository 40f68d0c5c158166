//! The little-endian bit stream: code `i` of `b` bits takes bits `[i·b, i·b + b)`; bit `k` of the
//! stream is bit `k % 8` of byte `k / 8`. Ternary codes go five to a byte in base 3, the first digit
//! least significant.

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
                for &code in codes {
                    pending |= u32::from(code) << filled;
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
