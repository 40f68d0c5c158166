//! The kernels in the instructions that every CPU of the target has (on aarch64 that includes NEON).

use super::{Backend, ops};

/// Needs no proof.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Backend for Portable {
    #[inline(always)]
    fn stream_bytes(self, from: &[u8], to: &mut [u8]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn stream_floats(self, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn amax_blocks(self, x: &[f32], group: usize, out: &mut [f32]) {
        ops::amax_blocks(x, group, out);
    }

    #[inline(always)]
    fn range_blocks(self, x: &[f32], group: usize, least: &mut [f32], most: &mut [f32]) -> bool {
        ops::range_blocks(x, group, least, most)
    }

    #[inline(always)]
    fn encode_blocks(self, strip: &ops::Strip<'_>, _ahead: usize, codes: &mut [u8]) {
        ops::encode_blocks(strip, codes);
    }

    #[inline(always)]
    fn lookup16(self, codes: &[u8], table: &[f32; 16], out: &mut [f32]) {
        ops::lookup16(codes, table, out);
    }

    #[inline(always)]
    fn encode_book(self, x: &[f32], reciprocal: f32, bins: &ops::Bins, codes: &mut [u8]) {
        ops::encode_book(x, reciprocal, bins, codes);
    }
}
