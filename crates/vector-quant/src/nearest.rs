//! The best entry of a table for each of many vectors: `argmax_c x·c + bias_c`.
//!
//! With `bias = −|c|²/2` that is the nearest entry in the Euclidean sense; with unit entries and no bias
//! the entry of the closest direction. Entries stand in blocks of 16 side by side, so that a running
//! maximum is kept for 16 entries and [`TILE`] vectors at a time and no matrix of scores is written.
//!
//! Each score is a chain of fused multiply-adds in the order of the coordinates, which rounds alike
//! everywhere; ties go to the lowest index. The result is the same on every machine and for any
//! number of threads.

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
        let arch = pulp::Arch::new();
        let work = points.par_chunks(PIECE * self.dim).zip(out.par_chunks_mut(PIECE));
        work.for_each(|(points, out)| {
            for (points, out) in points.chunks(TILE * self.dim).zip(out.chunks_mut(TILE)) {
                arch.dispatch(
                    #[inline(always)]
                    || self.tile(points, out),
                );
            }
        });
    }

    /// The best entry for one vector.
    pub(crate) fn search_one(&self, point: &[f32]) -> u32 {
        let mut out = [0];
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || self.tile(point, &mut out),
        );
        out[0]
    }

    #[inline(always)]
    fn tile(&self, points: &[f32], out: &mut [u32]) {
        match out.len() {
            TILE => self.scan::<TILE>(points, out),
            1 => self.scan::<1>(points, out),
            _ => points.chunks_exact(self.dim).zip(out.chunks_mut(1)).for_each(|(x, out)| self.scan::<1>(x, out)),
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "tables have at most 2^24 entries")]
    fn scan<const N: usize>(&self, points: &[f32], out: &mut [u32]) {
        let mut best = [[f32::NEG_INFINITY; LANES]; N];
        let mut at = [[0_u32; LANES]; N];
        for (block, columns) in self.blocks.chunks_exact(self.dim + 1).enumerate() {
            let mut scores = [columns[0]; N];
            for (axis, column) in columns[1..].iter().enumerate() {
                for n in 0..N {
                    let x = points[n * self.dim + axis];
                    for lane in 0..LANES {
                        scores[n][lane] = x.mul_add(column[lane], scores[n][lane]);
                    }
                }
            }
            for n in 0..N {
                for lane in 0..LANES {
                    let better = scores[n][lane] > best[n][lane];
                    best[n][lane] = if better { scores[n][lane] } else { best[n][lane] };
                    at[n][lane] = if better { block as u32 } else { at[n][lane] };
                }
            }
        }
        for n in 0..N {
            let index = |lane: usize| at[n][lane] * LANES as u32 + lane as u32;
            let mut winner = 0;
            for lane in 1..LANES {
                let (score, lead) = (best[n][lane], best[n][winner]);
                if score > lead || (score == lead && index(lane) < index(winner)) {
                    winner = lane;
                }
            }
            out[n] = index(winner);
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
