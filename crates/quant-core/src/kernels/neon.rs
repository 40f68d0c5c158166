//! What the lanes of NEON are made of that is no stable intrinsic, or that takes several.

use std::arch::aarch64::*;
use std::arch::asm;

/// Adds to each lane the sum of the products of its four bytes with those of `b`.
///
/// `vdotq_s32`, which is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: the instruction is one of those enabled here; it reads and writes the named registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Asks for the line of an address; any address will do.
#[inline(always)]
pub(super) fn prefetch(address: *const i8) {
    // SAFETY: a prefetch changes nothing and faults on no address.
    unsafe {
        asm!("prfm pldl1keep, [{address}]", address = in(reg) address, options(readonly, nostack, preserves_flags));
    }
}

/// Four bytes as integers of 32 bits.
///
/// # Safety
///
/// Four bytes can be read at `bytes`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn widen(bytes: *const u8) -> uint32x4_t {
    // SAFETY: the caller's.
    let four = unsafe { bytes.cast::<u32>().read_unaligned() };
    vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(u64::from(four)))))
}

/// Four f16 as f32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn halves(x: uint16x4_t) -> float32x4_t {
    vcvt_f32_f16(vreinterpret_f16_u16(x))
}
