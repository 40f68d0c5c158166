//! The best entry of a table for each of many vectors: `argmax_c x·c + bias_c`.
//!
//! With `bias = −|c|²/2` that is the nearest entry in the Euclidean sense; with unit entries and no bias
//! the entry of the closest direction. Entries stand in blocks of 16 side by side, so that a running
//! maximum is kept for 16 entries and [`TILE`] vectors at a time and no matrix of scores is written. A part of
//! the table that fits the first cache serves all vectors of a piece before the next is looked at.
//!
//! The maximum is taken over a group of blocks before it meets the running one, which remembers the group; which
//! of its blocks it was is found by computing the scores of the winner again.
//!
//! Each score is a chain of fused multiply-adds in the order of the coordinates, which rounds alike
//! everywhere; ties go to the lowest index. The result is the same on every machine and for any
//! number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Entries side by side.
const LANES: usize = 16;
/// Blocks of a group.
const GROUP: usize = 4;
/// Vectors that share one pass over the table.
const TILE: usize = 4;
/// Vectors of one piece of work.
const PIECE: usize = 512;
/// Bytes of the table that are gone through at a time.
const PART: usize = 16 << 10;

/// A table laid out for search.
#[derive(Clone, Debug)]
pub(crate) struct SearchTable {
    dim: usize,
    /// `dim` rounded up to a power of two; coordinates beyond `dim` are 0.
    width: usize,
    entries: usize,
    /// `[block][1 + width][16]`: biases, then coordinates, in whole groups. Entries that fill them up score −∞.
    blocks: Vec<[f32; LANES]>,
}

/// The best scores so far and the groups they were found in, for 16 entries side by side.
#[derive(Clone, Copy)]
struct Best {
    scores: [f32; LANES],
    groups: [u32; LANES],
}

const NONE: Best = Best { scores: [f32::NEG_INFINITY; LANES], groups: [0; LANES] };

impl SearchTable {
    /// Lays out `rows` `[entries, dim]` with a bias for each.
    pub(crate) fn new(rows: &[f32], dim: usize, bias: impl Fn(&[f32]) -> f32) -> Self {
        let (entries, width) = (rows.len() / dim, dim.next_power_of_two());
        let mut blocks = vec![[0.0; LANES]; entries.div_ceil(LANES * GROUP) * GROUP * (width + 1)];
        let mut parts = rows.chunks(dim * LANES);
        for block in blocks.chunks_exact_mut(width + 1) {
            block[0] = [f32::NEG_INFINITY; LANES];
            for (lane, row) in parts.next().unwrap_or_default().chunks_exact(dim).enumerate() {
                block[0][lane] = bias(row);
                for (axis, value) in row.iter().enumerate() {
                    block[1 + axis][lane] = *value;
                }
            }
        }
        Self { dim, width, entries, blocks }
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

    /// Searches for all vectors of a piece; `W` is the width of the table.
    #[inline(always)]
    fn piece<S: Simd, const W: usize>(&self, simd: S, points: &[f32], out: &mut [u32]) {
        let pad = |point: &[f32]| {
            let mut padded = [0.0; W];
            padded[..self.dim].copy_from_slice(&point[..self.dim]);
            padded
        };
        if let [out] = out {
            let (point, mut best) = (pad(points), [NONE]);
            scan(simd, &self.blocks, 0, &[point], &mut best);
            *out = self.winner(&point, &best[0]);
            return;
        }
        let padded: Vec<[f32; W]> = points.chunks_exact(self.dim).map(pad).collect();
        let mut best = vec![NONE; out.len()];
        let group = GROUP * (W + 1);
        let part = (PART / size_of::<[f32; LANES]>() / group).max(1);
        for (index, blocks) in self.blocks.chunks(part * group).enumerate() {
            let (tiles, rest) = padded.as_chunks::<TILE>();
            let (best, best_of_rest) = best.as_chunks_mut::<TILE>();
            for (points, best) in tiles.iter().zip(best) {
                scan(simd, blocks, index * part, points, best);
            }
            for (point, best) in rest.iter().zip(best_of_rest) {
                scan(simd, blocks, index * part, std::array::from_ref(point), std::array::from_mut(best));
            }
        }
        for ((out, point), best) in out.iter_mut().zip(&padded).zip(&best) {
            *out = self.winner(point, best);
        }
    }

    /// The entry with the best score, the first of equals. Without closures, so that fused operations are instructions.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "tables have at most 2^24 entries")]
    fn winner<const W: usize>(&self, point: &[f32; W], best: &Best) -> u32 {
        let score = best.scores.iter().fold(f32::NEG_INFINITY, |m, score| m.max(*score));
        let mut winner = u32::MAX;
        for lane in 0..LANES {
            if best.scores[lane] != score {
                continue;
            }
            let first = best.groups[lane] as usize * GROUP;
            for block in first..first + GROUP {
                let columns = &self.blocks[block * (W + 1)..][..W + 1];
                let mut sum = columns[0][lane];
                for axis in 0..W {
                    sum = point[axis].mul_add(columns[1 + axis][lane], sum);
                }
                if sum == score {
                    winner = winner.min((block * LANES + lane) as u32);
                    break;
                }
            }
        }
        // Scores of vectors that leave the range of f32 need not have an order.
        if winner == u32::MAX { 0 } else { winner }
    }
}

/// Goes through a part of a table, whose first group has the index `first`, for `N` vectors at a time.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "tables have at most 2^24 entries")]
fn scan<S: Simd, const W: usize, const N: usize>(
    simd: S,
    blocks: &[[f32; LANES]],
    first: usize,
    points: &[[f32; W]; N],
    best: &mut [Best; N],
) {
    for register in 0..LANES / S::F32_LANES {
        let mut top: [_; N] = std::array::from_fn(|n| S::as_simd_f32s(&best[n].scores).0[register]);
        let mut at: [_; N] = std::array::from_fn(|n| S::as_simd_u32s(&best[n].groups).0[register]);
        for (group, columns) in blocks.chunks_exact(GROUP * (W + 1)).enumerate() {
            let column = |block: usize, axis: usize| S::as_simd_f32s(&columns[block * (W + 1) + axis]).0[register];
            let mut scores: [[_; GROUP]; N] = [std::array::from_fn(|block| column(block, 0)); N];
            for axis in 0..W {
                let columns: [_; GROUP] = std::array::from_fn(|block| column(block, 1 + axis));
                for (point, scores) in points.iter().zip(&mut scores) {
                    let x = simd.splat_f32s(point[axis]);
                    for (score, column) in scores.iter_mut().zip(&columns) {
                        *score = simd.mul_add_f32s(x, *column, *score);
                    }
                }
            }
            let group = simd.splat_u32s((first + group) as u32);
            for n in 0..N {
                let [a, b, c, d] = scores[n];
                let score = simd.max_f32s(simd.max_f32s(a, b), simd.max_f32s(c, d));
                let better = simd.greater_than_f32s(score, top[n]);
                top[n] = simd.max_f32s(score, top[n]);
                at[n] = simd.select_u32s(better, group, at[n]);
            }
        }
        for n in 0..N {
            S::as_mut_simd_f32s(&mut best[n].scores).0[register] = top[n];
            S::as_mut_simd_u32s(&mut best[n].groups).0[register] = at[n];
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
        let Self { table, points, out } = self;
        match table.width {
            1 => table.piece::<S, 1>(simd, points, out),
            2 => table.piece::<S, 2>(simd, points, out),
            4 => table.piece::<S, 4>(simd, points, out),
            8 => table.piece::<S, 8>(simd, points, out),
            16 => table.piece::<S, 16>(simd, points, out),
            // A weight a coordinate doubles the dimensions, of which there are at most 16.
            _ => table.piece::<S, 32>(simd, points, out),
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
