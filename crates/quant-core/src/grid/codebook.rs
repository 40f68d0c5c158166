//! Code books of 16 values, scaled by the largest magnitude of a block.
//!
//! `v = clamp(x · (1/max(amax, 1e-38)), −1, 1)`, one multiplication by the reciprocal as bitsandbytes
//! does it; the code is found by comparing `v` with the midpoints of neighbouring entries.

use super::{BlockParams, Range};
use crate::{Codebook, Error, ScaleType};

pub(super) fn fit(kind: ScaleType, range: &Range) -> Result<BlockParams, Error> {
    // The largest magnitude itself, 0 for a zero block: every code then decodes to zero.
    let bits = kind.store(range.amax())?;
    Ok(BlockParams::plain(kind.load(bits), 0.0, bits))
}

pub(super) fn encode(book: Codebook, x: f32, p: &BlockParams) -> u16 {
    let v = (x * (1.0 / p.step.max(1e-38))).clamp(-1.0, 1.0);
    book.nearest(v)
}
