//! Element types of safetensors.

use half::f16;
use quant_core::FloatKind;
use std::fmt;

/// An element type; declared in the order in which writers place tensors (largest alignment first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    I64,
    /// IEEE binary64.
    F64,
    /// Two binary32: real and imaginary part.
    C64,
    /// IEEE binary32.
    F32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// bfloat16.
    BF16,
    /// IEEE binary16.
    F16,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 16-bit integer.
    I16,
    /// E5M2 with one NaN and no infinity.
    F8E5M2Fnuz,
    /// E4M3 with bias 8, one NaN and no infinity.
    F8E4M3Fnuz,
    /// A power of two in one byte.
    F8E8M0,
    /// OCP E4M3 (E4M3FN).
    F8E4M3,
    /// OCP E5M2.
    F8E5M2,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// FP6 E3M2, a bit stream.
    F6E3M2,
    /// FP6 E2M3, a bit stream.
    F6E2M3,
    /// FP4 E2M1, element 0 in the low nibble.
    F4,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every type, in writing order.
    pub const ALL: [Self; 22] = [
        Self::U64,
        Self::I64,
        Self::F64,
        Self::C64,
        Self::F32,
        Self::U32,
        Self::I32,
        Self::BF16,
        Self::F16,
        Self::U16,
        Self::I16,
        Self::F8E5M2Fnuz,
        Self::F8E4M3Fnuz,
        Self::F8E8M0,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::I8,
        Self::U8,
        Self::F6E3M2,
        Self::F6E2M3,
        Self::F4,
        Self::Bool,
    ];

    /// Bits of one element.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::U64 | Self::I64 | Self::F64 | Self::C64 => 64,
            Self::F32 | Self::U32 | Self::I32 => 32,
            Self::BF16 | Self::F16 | Self::U16 | Self::I16 => 16,
            Self::F6E3M2 | Self::F6E2M3 => 6,
            Self::F4 => 4,
            _ => 8,
        }
    }

    /// The name in a header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::U64 => "U64",
            Self::I64 => "I64",
            Self::F64 => "F64",
            Self::C64 => "C64",
            Self::F32 => "F32",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::BF16 => "BF16",
            Self::F16 => "F16",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::F6E3M2 => "F6_E3M2",
            Self::F6E2M3 => "F6_E2M3",
            Self::F4 => "F4",
            Self::Bool => "BOOL",
        }
    }

    /// The type of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Whether it is a float of 16 bits or more: what a weight is stored in before compression.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// Converts little-endian elements to f32, rounding to nearest even where f32 is narrower.
    ///
    /// Returns false for complex numbers, which have no such reading. `bytes` and `out` must hold the
    /// same number of elements; what is missing on either side is left alone.
    pub fn decode_f32(self, bytes: &[u8], out: &mut [f32]) -> bool {
        match self {
            Self::F32 => fill(bytes, out, f32::from_le_bytes),
            Self::F16 => fill(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            // The upper half of an f32.
            Self::BF16 => fill(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            #[expect(clippy::cast_possible_truncation, reason = "rounds to nearest even, as documented")]
            Self::F64 => fill(bytes, out, |b| f64::from_le_bytes(b) as f32),
            #[expect(clippy::cast_precision_loss, reason = "rounds to nearest even, as documented")]
            Self::U64 => fill(bytes, out, |b| u64::from_le_bytes(b) as f32),
            #[expect(clippy::cast_precision_loss, reason = "rounds to nearest even, as documented")]
            Self::I64 => fill(bytes, out, |b| i64::from_le_bytes(b) as f32),
            #[expect(clippy::cast_precision_loss, reason = "rounds to nearest even, as documented")]
            Self::U32 => fill(bytes, out, |b| u32::from_le_bytes(b) as f32),
            #[expect(clippy::cast_precision_loss, reason = "rounds to nearest even, as documented")]
            Self::I32 => fill(bytes, out, |b| i32::from_le_bytes(b) as f32),
            Self::U16 => fill(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
            Self::I16 => fill(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
            Self::U8 | Self::Bool => fill(bytes, out, |[b]| f32::from(b)),
            Self::I8 => fill(bytes, out, |[b]| f32::from(b.cast_signed())),
            Self::F8E4M3 => fill_table(FloatKind::E4m3Fn, bytes, out),
            Self::F8E5M2 => fill_table(FloatKind::E5m2, bytes, out),
            Self::F8E4M3Fnuz => fill_table(FloatKind::E4m3Fnuz, bytes, out),
            Self::F8E5M2Fnuz => fill_table(FloatKind::E5m2Fnuz, bytes, out),
            Self::F8E8M0 => fill(bytes, out, |[b]| match b {
                0 => f32::from_bits(0x40_0000),
                255 => f32::NAN,
                _ => f32::from_bits(u32::from(b) << 23),
            }),
            Self::F4 => fill_stream(FloatKind::E2m1, bytes, out),
            Self::F6E2M3 => fill_stream(FloatKind::E2m3, bytes, out),
            Self::F6E3M2 => fill_stream(FloatKind::E3m2, bytes, out),
            Self::C64 => return false,
        }
        true
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn fill<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (element, value) in elements.iter().zip(out) {
        *value = convert(*element);
    }
}

fn fill_table(kind: FloatKind, bytes: &[u8], out: &mut [f32]) {
    let table: [f32; 256] = std::array::from_fn(|code| kind.decode(u16::try_from(code).unwrap_or(0)));
    for (&byte, value) in bytes.iter().zip(out) {
        *value = table[usize::from(byte)];
    }
}

/// Element `i` takes bits `[i·b, i·b + b)` of the little-endian bit stream.
fn fill_stream(kind: FloatKind, bytes: &[u8], out: &mut [f32]) {
    let bits = kind.bits() as usize;
    for (i, value) in out.iter_mut().enumerate() {
        let at = |k: usize| u16::from(bytes.get(i * bits / 8 + k).copied().unwrap_or(0));
        let window = at(0) | at(1) << 8;
        *value = kind.decode((window >> (i * bits % 8)) & ((1 << bits) - 1));
    }
}
