//! Sums of products.

/// Lanes a sum is formed in; they are added pairwise at the end, the same on every machine.
const LANES: usize = 16;

/// `out[i] = Σ inputs[i]·weights`, the rows of `inputs` being as long as `weights`.
///
/// Element `k` is added to lane `k mod 16`; lanes are then folded by halves. No product is fused
/// with its sum.
#[inline(always)]
pub(crate) fn dots(inputs: &[f32], weights: &[f32], out: &mut [f32]) {
    let columns = weights.len().max(1);
    let mut inputs = inputs.chunks_exact(4 * columns);
    let (fours, rest) = out.split_at_mut(out.len() / 4 * 4);
    for (rows, out) in (&mut inputs).zip(fours.as_chunks_mut::<4>().0) {
        *out = dot_rows::<4>(rows, weights);
    }
    for (row, out) in inputs.remainder().chunks_exact(columns).zip(rest) {
        [*out] = dot_rows::<1>(row, weights);
    }
}

/// Several rows at once: their sums do not wait for each other, and the weights are read once.
#[inline(always)]
fn dot_rows<const N: usize>(rows: &[f32], weights: &[f32]) -> [f32; N] {
    let columns = weights.len();
    let mut lanes = [[0.0_f32; LANES]; N];
    let (blocks, tail) = weights.as_chunks::<LANES>();
    let inputs: [&[f32]; N] = std::array::from_fn(|n| &rows[n * columns..][..columns]);
    let parts: [&[[f32; LANES]]; N] = std::array::from_fn(|n| &inputs[n].as_chunks::<LANES>().0[..blocks.len()]);
    for (k, w) in blocks.iter().enumerate() {
        for n in 0..N {
            let x = &parts[n][k];
            for i in 0..LANES {
                lanes[n][i] += x[i] * w[i];
            }
        }
    }
    let mut sums = [0.0; N];
    for n in 0..N {
        let lanes = &mut lanes[n];
        for (lane, (x, w)) in lanes.iter_mut().zip(inputs[n][blocks.len() * LANES..].iter().zip(tail)) {
            *lane += x * w;
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        sums[n] = lanes[0];
    }
    sums
}
