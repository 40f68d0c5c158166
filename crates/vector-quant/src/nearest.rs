//! The best entry of a table for each of many vectors: `argmax_c x·c + bias_c`.
//!
//! With `bias = −|c|²/2` that is the nearest entry in the Euclidean sense; with unit entries and no bias
//! the entry of the closest direction. Entries stand in blocks of 16 side by side, so that a running
//! maximum is kept for 16 entries and [`TILE`] vectors at a time and no matrix of scores is written.
//!
//! Each score is a chain of fused multiply-adds in the order of the coordinates, which rounds alike
//! everywhere; ties go to the lowest index. The result is the same on every machine and for any
//! number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Entries side by side.
const LANES: usize = 16;
/// Vectors that share one pass over the table.
const TILE: usize = 8;
/// Vectors of one piece of work.
const PIECE: usize = 512;

/// A table laid out for search.
#[derive(Clone, Debug)]
pub(crate) struct SearchTable {
    dim: usize,
    entries: usize,
    /// `[block][1 + dim][16]`: biases, then coordinates. Entries that fill the last block score −∞.
    blocks: Vec<[f32; LANES]>,
}

impl SearchTable {
    /// Lays out `rows` `[entries, dim]` with a bias for each.
    pub(crate) fn new(rows: &[f32], dim: usize, bias: impl Fn(&[f32]) -> f32) -> Self {
        let entries = rows.len() / dim;
        let mut blocks = vec![[0.0; LANES]; entries.div_ceil(LANES) * (dim + 1)];
        for (block, part) in blocks.chunks_exact_mut(dim + 1).zip(rows.chunks(dim * LANES)) {
            block[0] = [f32::NEG_INFINITY; LANES];
            for (lane, row) in part.chunks_exact(dim).enumerate() {
                block[0][lane] = bias(row);
                for (axis, value) in row.iter().enumerate() {
                    block[1 + axis][lane] = *value;
                }
            }
        }
        Self { dim, entries, blocks }
    }

    /// A table whose best entry is the nearest one.
    pub(crate) fn euclidean(rows: &[f32], dim: usize) -> Self {
        Self::new(rows, dim, |row| -0.5 * row.iter().map(|c| c * c).sum::<f32>())
    }

    /// Entries of the table.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Writes the index of the best entry for each of `points` `[n, dim]`.
    pub(crate) fn search(&self, points: &[f32], out: &mut [u32]) {
        let arch = Arch::new();
        let work = points.par_chunks(PIECE * self.dim).zip(out.par_chunks_mut(PIECE));
        work.for_each(|(points, out)| arch.dispatch(Search { table: self, points, out }));
    }

    /// The best entry for one vector.
    pub(crate) fn search_one(&self, point: &[f32]) -> u32 {
        let mut out = [0];
        Arch::new().dispatch(Search { table: self, points: point, out: &mut out });
        out[0]
    }

    #[inline(always)]
    fn tile<S: Simd>(&self, simd: S, points: &[f32], out: &mut [u32]) {
        if out.len() == TILE {
            return self.scan::<S, TILE>(simd, points, out);
        }
        for (point, out) in points.chunks_exact(self.dim).zip(out.chunks_mut(1)) {
            self.scan::<S, 1>(simd, point, out);
        }
    }

    /// One pass over the table for each register that the lanes fill.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "tables have at most 2^24 entries")]
    fn scan<S: Simd, const N: usize>(&self, simd: S, points: &[f32], out: &mut [u32]) {
        let mut winners = [(f32::NEG_INFINITY, 0); N];
        for register in 0..LANES / S::F32_LANES {
            let mut best = [simd.splat_f32s(f32::NEG_INFINITY); N];
            let mut at = [simd.splat_u32s(0); N];
            for (block, columns) in self.blocks.chunks_exact(self.dim + 1).enumerate() {
                let mut scores = [S::as_simd_f32s(&columns[0]).0[register]; N];
                for (axis, column) in columns[1..].iter().enumerate() {
                    let column = S::as_simd_f32s(column).0[register];
                    for n in 0..N {
                        scores[n] = simd.mul_add_f32s(simd.splat_f32s(points[n * self.dim + axis]), column, scores[n]);
                    }
                }
                let block = simd.splat_u32s(block as u32);
                for n in 0..N {
                    let better = simd.greater_than_f32s(scores[n], best[n]);
                    best[n] = simd.max_f32s(scores[n], best[n]);
                    at[n] = simd.select_u32s(better, block, at[n]);
                }
            }
            for n in 0..N {
                let (mut scores, mut blocks) = ([0.0; LANES], [0; LANES]);
                S::as_mut_simd_f32s(&mut scores).0[0] = best[n];
                S::as_mut_simd_u32s(&mut blocks).0[0] = at[n];
                for (lane, (score, block)) in scores.iter().zip(blocks).enumerate().take(S::F32_LANES) {
                    let index = block * LANES as u32 + (register * S::F32_LANES + lane) as u32;
                    let (lead, winner) = winners[n];
                    if *score > lead || (*score == lead && index < winner) {
                        winners[n] = (*score, index);
                    }
                }
            }
        }
        for (out, (_, winner)) in out.iter_mut().zip(winners) {
            *out = winner;
        }
    }
}

/// A piece of work. It is no closure because the body of a closure that could be called twice may end up in a function
/// of its own, without the instructions that were asked for.
struct Search<'a> {
    table: &'a SearchTable,
    points: &'a [f32],
    out: &'a mut [u32],
}

impl WithSimd for Search<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let tiles = self.points.chunks(TILE * self.table.dim);
        for (points, out) in tiles.zip(self.out.chunks_mut(TILE)) {
            self.table.tile(simd, points, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SearchTable;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn the_search_finds_what_a_plain_scan_finds_for_any_shape() {
        for dim in [1, 2, 3, 8, 16] {
            for (entries, points) in [(1, 1), (2, 7), (15, 9), (16, 8), (17, 600), (100, 33)] {
                let (rows, x) = (random(entries * dim, 1), random(points * dim, 2));
                let table = SearchTable::euclidean(&rows, dim);
                let mut found = vec![0; points];
                table.search(&x, &mut found);
                for (point, found) in x.chunks_exact(dim).zip(&found) {
                    let score = |row: &[f32]| {
                        let bias = -0.5 * row.iter().map(|c| c * c).sum::<f32>();
                        point.iter().zip(row).fold(bias, |sum, (x, c)| x.mul_add(*c, sum))
                    };
                    let mut best = 0;
                    for (index, row) in rows.chunks_exact(dim).enumerate() {
                        if score(row) > score(&rows[best * dim..][..dim]) {
                            best = index;
                        }
                    }
                    assert_eq!(*found as usize, best, "dim {dim}, {entries} entries");
                    assert_eq!(table.search_one(point), *found, "alone and in a tile");
                }
            }
        }
    }

    #[test]
    fn of_equal_entries_the_first_wins() {
        let rows: Vec<f32> = [0.5, 1.0].repeat(40);
        let table = SearchTable::euclidean(&rows, 2);
        assert_eq!(table.search_one(&[0.4, 0.9]), 0, "all forty entries are the same");
    }
}
