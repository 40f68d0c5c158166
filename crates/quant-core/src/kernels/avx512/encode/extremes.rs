//! Extremes of the blocks of a tile.

use super::super::{fold_pairs, fold_quads, fold_words, max_of_each, prefetch};
use super::codes::{UNSIGNED, load, magnitude};
use super::tiles::{AHEAD, PIECES, Piece};
use std::arch::x86_64::*;

/// What scales follow from: largest magnitudes, or ranges that include zero.
///
/// As unsigned numbers the bits of negative values are larger than those of all others, and among themselves they order as
/// magnitudes do: the largest are those of the least value. With signs flipped they are those of the largest value.
pub(super) struct Extremes {
    /// Values of a block, in a tile, and whether that is all of the tile.
    pub(super) group: usize,
    alone: bool,
    /// Of magnitudes, or of values.
    bits: Largest,
    /// Of values, for ranges alone.
    flipped: Largest,
}

impl Extremes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn new(group: usize, alone: bool) -> Self {
        Self { group, alone, bits: Largest::new(), flipped: Largest::new() }
    }

    /// Takes 64 values, the `piece`-th of a tile; there are `KEPT` blocks of them, or they are a part of one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn take<const KIND: u8, const KEPT: usize>(&mut self, piece: usize, x: &Piece) {
        let (x, piece) = (load(x), piece % PIECES);
        if KIND == UNSIGNED {
            let x = x.map(|x| _mm512_castps_si512(x));
            self.bits.pieces[piece] = fold::<KEPT>(x, |a, b| _mm512_max_epu32(a, b), |x| x);
            self.flipped.pieces[piece] = fold::<KEPT>(x, |a, b| _mm512_max_epi32(a, b), |x| flip(x));
        } else {
            let x = x.map(|x| magnitude(x));
            self.bits.pieces[piece] = fold::<KEPT>(x, |a, b| _mm512_max_epu32(a, b), |x| x);
        }
    }

    /// Takes a tile before its time.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn take_tile<const KIND: u8, const KEPT: usize>(&mut self, x: &[Piece]) {
        for (piece, x) in x.iter().enumerate() {
            for line in x.as_chunks::<16>().0 {
                prefetch(line, AHEAD);
            }
            self.take::<KIND, KEPT>(piece, x);
        }
    }

    /// The largest magnitudes of the `i`-th 16 blocks, in order; some stand in for those that fill up a vector.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn magnitudes(&self, i: usize) -> __m512i {
        self.bits.blocks(self.group, self.alone, i)
    }

    /// Likewise the largest bits of values, and with signs flipped.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn ranges(&self, i: usize) -> [__m512i; 2] {
        [&self.bits, &self.flipped].map(|of| of.blocks(self.group, self.alone, i))
    }

    /// Folds a tile of a block of several; the first, or further ones.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn take_block<const KIND: u8>(&mut self, pieces: usize, first: bool) {
        self.bits.take_block(pieces, first);
        if KIND == UNSIGNED {
            self.flipped.take_block(pieces, first);
        }
    }
}

/// The bits of values with their signs flipped.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn flip(x: __m512i) -> __m512i {
    _mm512_xor_si512(x, _mm512_set1_epi32(i32::MIN))
}

/// Folds the vectors of a piece by `max`, and where `KEPT` blocks part them, after they were put in `order`, as unsigned
/// numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn fold<const KEPT: usize>(
    [a, b, c, d]: [__m512i; 4],
    max: impl Fn(__m512i, __m512i) -> __m512i,
    order: impl Fn(__m512i) -> __m512i,
) -> __m512i {
    match KEPT {
        4 => fold_pairs(fold_words(order(a), order(b)), fold_words(order(c), order(d))),
        2 => fold_words(order(max(a, b)), order(max(c, d))),
        _ => order(max(max(a, b), max(c, d))),
    }
}

/// Largest bits of the pieces of a tile, a vector each: of blocks of 64 values and more in each lane; of shorter ones folded
/// until one vector holds all blocks.
struct Largest {
    pieces: [__m512i; PIECES],
    /// Of the tiles so far of a block that is longer than one.
    block: __m512i,
}

impl Largest {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn new() -> Self {
        let nothing = _mm512_setzero_si512();
        Self { pieces: [nothing; PIECES], block: nothing }
    }

    /// Folds a tile of a block of several; the first, or further ones.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn take_block(&mut self, pieces: usize, first: bool) {
        let mut all = self.pieces[0];
        for &piece in &self.pieces[1..pieces] {
            all = _mm512_max_epu32(all, piece);
        }
        self.block = if first { all } else { _mm512_max_epu32(self.block, all) };
    }

    /// The maxima of the `i`-th 16 blocks, in order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn blocks(&self, group: usize, alone: bool, i: usize) -> __m512i {
        let pieces = &self.pieces;
        match group {
            16 => fold_quads(pieces.as_chunks().0[i % (PIECES / 4)]),
            32 => {
                let words: &[_; 8] = &pieces.as_chunks().0[i % (PIECES / 8)];
                fold_quads([0, 2, 4, 6].map(|i| fold_pairs(words[i], words[i + 1])))
            }
            64 => max_of_each(*pieces),
            _ if alone => _mm512_set1_epi32(_mm512_reduce_max_epu32(self.block).cast_signed()),
            128 => max_of_each(self.blocks_of::<2>()),
            256 => max_of_each(self.blocks_of::<4>()),
            _ => max_of_each(self.blocks_of::<8>()),
        }
    }

    /// Blocks of `N` pieces, as many as a tile has at most, then the same again.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn blocks_of<const N: usize>(&self) -> [__m512i; 16] {
        let blocks = self.pieces.as_chunks::<N>().0;
        std::array::from_fn(|i| {
            let block = blocks[i % (PIECES / N)];
            block[1..].iter().fold(block[0], |all, &piece| _mm512_max_epu32(all, piece))
        })
    }
}
