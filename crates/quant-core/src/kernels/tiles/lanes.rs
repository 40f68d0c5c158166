//! Sixteen lanes of 32 bits: what the products need of an instruction set, and the plain form of it.

use super::Line;
use super::pack::Codec;
use half::{bf16, f16};

/// Operations on sixteen lanes. A value proves that the CPU has the instructions.
///
/// Integer operations give the same bits everywhere; `mul_add` may round once or twice.
pub(super) trait Lanes: Copy {
    /// Sixteen f32.
    type Floats: Copy;
    /// Sixteen 32-bit integers, or four bytes in each lane.
    type Ints: Copy;
    /// A table of sixteen f32.
    type Table: Copy;
    /// Whether sixteen f32 are one register of 32: then sums of more rows of inputs fit.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::Floats;
    fn load(self, x: &[f32; 16]) -> Self::Floats;
    fn store(self, x: Self::Floats, out: &mut [f32; 16]);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a·b + c`.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    fn line(self, line: &Line) -> Self::Ints;
    fn store_line(self, x: Self::Ints, out: &mut Line);
    fn int(self, x: i32) -> Self::Ints;
    fn plus(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Bits of `a` where the mask has ones, else of `b`.
    fn select(self, mask: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Each lane shifted right, zeros entering.
    fn right(self, x: Self::Ints, bits: u32) -> Self::Ints;
    /// Each lane rotated right.
    fn rotate(self, x: Self::Ints, bits: u32) -> Self::Ints;
    fn to_floats(self, x: Self::Ints) -> Self::Floats;
    /// Byte `index` of each lane as a signed number.
    fn signed_byte(self, x: Self::Ints, index: u32) -> Self::Floats;

    fn table(self, values: &[f32; 16]) -> Self::Table;
    /// The entry that the low four bits of each lane name; higher bits are ignored.
    fn lookup(self, table: Self::Table, index: Self::Ints) -> Self::Floats;
    /// A table of bytes for [`Lanes::lookup_bytes`].
    fn byte_table(self, values: &[u8; 16]) -> Self::Ints;
    /// The entries that bytes below 16 name.
    fn lookup_bytes(self, table: Self::Ints, index: Self::Ints) -> Self::Ints;
    /// Sums of bytes, modulo 256.
    fn plus_bytes(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Lane `r` is four copies of byte `r`.
    fn repeat_bytes(self, bytes: &[u8; 16]) -> Self::Ints;
    /// Adds to each lane the sum of four products: unsigned bytes of the lane times the signed bytes of `x`.
    fn dot(self, sum: Self::Ints, bytes: Self::Ints, x: i32) -> Self::Ints;

    /// Four columns of 8-bit floats whose upper byte as f16 is the code (`wide`: five exponent bits), or the code
    /// with a zero bit put after its sign (four exponent bits).
    fn small_floats(self, line: &Line, wide: bool) -> [Self::Floats; 4];
    /// Sixteen stored scales.
    fn scales(self, codec: Codec, bytes: &[u8]) -> Self::Floats;

    /// Asks for what lies so many bytes ahead.
    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        let _ = (from, ahead);
    }
}

/// Arrays and loops, in the instructions that every CPU of the target has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

#[inline(always)]
fn each<T: Copy, U>(x: [T; 16], f: impl Fn(T) -> U) -> [U; 16] {
    x.map(f)
}

#[inline(always)]
fn both<T: Copy, U: Copy, V>(a: [T; 16], b: [U; 16], f: impl Fn(T, U) -> V) -> [V; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Plain {
    type Floats = [f32; 16];
    type Ints = [u32; 16];
    type Table = [f32; 16];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }

    #[inline(always)]
    fn store(self, x: [f32; 16], out: &mut [f32; 16]) {
        *out = x;
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        both(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        both(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn line(self, line: &Line) -> [u32; 16] {
        let words = line.0.as_chunks::<4>().0;
        std::array::from_fn(|i| u32::from_le_bytes(words[i]))
    }

    #[inline(always)]
    fn store_line(self, x: [u32; 16], out: &mut Line) {
        for (bytes, x) in out.0.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            *bytes = x.to_le_bytes();
        }
    }

    #[inline(always)]
    fn int(self, x: i32) -> [u32; 16] {
        [x.cast_unsigned(); 16]
    }

    #[inline(always)]
    fn plus(self, a: [u32; 16], b: [u32; 16]) -> [u32; 16] {
        both(a, b, u32::wrapping_add)
    }

    #[inline(always)]
    fn and(self, a: [u32; 16], b: [u32; 16]) -> [u32; 16] {
        both(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn select(self, mask: [u32; 16], a: [u32; 16], b: [u32; 16]) -> [u32; 16] {
        std::array::from_fn(|i| (a[i] & mask[i]) | (b[i] & !mask[i]))
    }

    #[inline(always)]
    fn right(self, x: [u32; 16], bits: u32) -> [u32; 16] {
        each(x, |x| x >> bits)
    }

    #[inline(always)]
    fn rotate(self, x: [u32; 16], bits: u32) -> [u32; 16] {
        each(x, |x| x.rotate_right(bits))
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rounded to nearest even, as the vector instructions do")]
    fn to_floats(self, x: [u32; 16]) -> [f32; 16] {
        each(x, |x| x.cast_signed() as f32)
    }

    #[inline(always)]
    fn signed_byte(self, x: [u32; 16], index: u32) -> [f32; 16] {
        each(x, |x| f32::from(x.to_le_bytes()[index as usize & 3].cast_signed()))
    }

    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> [f32; 16] {
        *values
    }

    #[inline(always)]
    fn lookup(self, table: [f32; 16], index: [u32; 16]) -> [f32; 16] {
        each(index, |i| table[(i & 15) as usize])
    }

    #[inline(always)]
    fn byte_table(self, values: &[u8; 16]) -> [u32; 16] {
        each(*values, u32::from)
    }

    #[inline(always)]
    fn lookup_bytes(self, table: [u32; 16], index: [u32; 16]) -> [u32; 16] {
        let entry = |byte: u32| table[(byte & 15) as usize];
        each(index, |i| entry(i) | entry(i >> 8) << 8 | entry(i >> 16) << 16 | entry(i >> 24) << 24)
    }

    #[inline(always)]
    fn plus_bytes(self, a: [u32; 16], b: [u32; 16]) -> [u32; 16] {
        // The top bit of each byte is added apart, so that no carry leaves it.
        const LOW: u32 = 0x7f7f_7f7f;
        both(a, b, |a, b| ((a & LOW) + (b & LOW)) ^ ((a ^ b) & !LOW))
    }

    #[inline(always)]
    fn repeat_bytes(self, bytes: &[u8; 16]) -> [u32; 16] {
        each(*bytes, |byte| u32::from(byte) * 0x0101_0101)
    }

    #[inline(always)]
    fn dot(self, sum: [u32; 16], bytes: [u32; 16], x: i32) -> [u32; 16] {
        let x = x.to_le_bytes().map(|x| i32::from(x.cast_signed()));
        both(sum, bytes, |sum, bytes| {
            let w = bytes.to_le_bytes().map(i32::from);
            let products = w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
            sum.wrapping_add(products.cast_unsigned())
        })
    }

    #[inline(always)]
    fn small_floats(self, line: &Line, wide: bool) -> [[f32; 16]; 4] {
        std::array::from_fn(|column| {
            std::array::from_fn(|row| {
                let code = u16::from(line.0[32 * (column / 2) + 2 * row + column % 2]);
                f16::from_bits(if wide { code << 8 } else { (code & 0x80) << 8 | (code & 0x7f) << 7 }).to_f32()
            })
        })
    }

    #[inline(always)]
    fn scales(self, codec: Codec, bytes: &[u8]) -> [f32; 16] {
        let two = |i: usize| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
        let four = |i: usize| [bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]];
        std::array::from_fn(|i| match codec {
            Codec::F32 => f32::from_le_bytes(four(i)),
            Codec::F16 => f16::from_bits(two(i)).to_f32(),
            Codec::Bf16 => bf16::from_bits(two(i)).to_f32(),
            Codec::E8m0 => f32::from_bits((u32::from(bytes[i]) << 23).max(1 << 22)),
            Codec::E4m3 => f16::from_bits(u16::from(bytes[i]) << 7).to_f32(),
            Codec::Byte => f32::from(bytes[i]),
        })
    }
}
