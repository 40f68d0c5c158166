//! Sums of products.

use super::ops::SmallFloat;

/// Lanes a sum is formed in; they are added pairwise at the end, the same on every machine.
const LANES: usize = 16;

/// `out[i] = Σ inputs[i]·weights`, the rows of `inputs` being as long as `weights`.
///
/// Element `k` is added to lane `k mod 16`; lanes are then folded by halves. No product is fused
/// with its sum.
#[inline(always)]
pub(crate) fn dots(inputs: &[f32], weights: &[f32], out: &mut [f32]) {
    let columns = weights.len().max(1);
    inputs.chunks_exact(columns).zip(out).for_each(|(row, out)| *out = dot(row, weights));
}

/// One row at a time: sums of several rows side by side are what compilers make a mess of.
#[inline(always)]
fn dot(x: &[f32], weights: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((x, x_tail), (w, w_tail)) = (x.as_chunks(), weights.as_chunks());
    x.iter().zip(w).for_each(|(x, w)| add_products(&mut lanes, x, w));
    for (lane, (x, w)) in lanes.iter_mut().zip(x_tail.iter().zip(w_tail)) {
        *lane += x * w;
    }
    fold(lanes)
}

/// The same sum for one row of inputs and weights that are 16-bit floats, little-endian.
#[inline(always)]
pub(crate) fn dot_float16(kind: SmallFloat, x: &[f32], weights: &[u8]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for (x, weights) in x.chunks(LANES).zip(weights.chunks(2 * LANES)) {
        for (lane, (x, &code)) in lanes.iter_mut().zip(x.iter().zip(weights.as_chunks::<2>().0)) {
            *lane += x * kind.decode(u32::from(u16::from_le_bytes(code)));
        }
    }
    fold(lanes)
}

/// The sum of lanes, by halves.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn add_products(lanes: &mut [f32; LANES], x: &[f32; LANES], w: &[f32; LANES]) {
    for i in 0..LANES {
        lanes[i] += x[i] * w[i];
    }
}
