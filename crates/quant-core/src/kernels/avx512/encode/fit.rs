//! Scales of the blocks of a tile.

use super::super::super::RowEncoder;
use super::super::super::encode::{self as plain, Fitted, Kind};
use super::super::super::ops::{self, Element, Unit};
use super::super::{fold_pairs, fold_quads, fold_words, max_of_each, prefetch};
use super::codes::{self, load, magnitude};
use super::tiles::{AHEAD, BLOCKS, PIECES, Piece, Rows, TILE};
use super::{divides_exactly, reciprocals};
use std::arch::x86_64::*;
use std::ops::Range;

/// What divides or multiplies the values of the blocks of a tile.
pub(super) struct Params {
    pub(super) scales: [f32; BLOCKS],
    pub(super) high: [f32; BLOCKS],
    pub(super) low: [f32; BLOCKS],
    /// Whether values lie within the range of [`codes::fixed`].
    pub(super) fixed: bool,
}

impl Params {
    pub(super) const ONE: Self = Self { scales: [1.0; BLOCKS], high: [1.0; BLOCKS], low: [0.0; BLOCKS], fixed: false };
}

/// Largest magnitudes of the pieces of a tile, a vector each: of blocks of 64 values and more in each lane; of shorter ones
/// folded until one vector holds all blocks.
pub(super) struct Extremes {
    pieces: [__m512i; PIECES],
    /// Values of a block, in a tile.
    pub(super) group: usize,
    /// Of the tiles so far of a block that is longer than one.
    block: __m512i,
}

impl Extremes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn new(group: usize) -> Self {
        let nothing = _mm512_setzero_si512();
        Self { pieces: [nothing; PIECES], group, block: nothing }
    }

    /// Takes 64 values, the `piece`-th of a tile; there are `KEPT` blocks of them, or they are a part of one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn take<const KEPT: usize>(&mut self, piece: usize, x: &Piece) {
        let [a, b, c, d] = load(x).map(|x| magnitude(x));
        self.pieces[piece % PIECES] = match KEPT {
            4 => fold_pairs(fold_words(a, b), fold_words(c, d)),
            2 => fold_words(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d)),
            _ => _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d)),
        };
    }

    /// The same whatever blocks are made of.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn take_tile(&mut self, x: &[Piece], group: usize) {
        for (piece, x) in x.iter().enumerate() {
            for line in x.as_chunks::<16>().0 {
                prefetch(line, AHEAD);
            }
            match group {
                16 => self.take::<4>(piece, x),
                32 => self.take::<2>(piece, x),
                _ => self.take::<1>(piece, x),
            }
        }
    }

    /// Folds a tile of a block of several; the first, or further ones.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn take_block(&mut self, pieces: usize, first: bool) {
        let mut all = self.pieces[0];
        for &piece in &self.pieces[1..pieces] {
            all = _mm512_max_epu32(all, piece);
        }
        self.block = if first { all } else { _mm512_max_epu32(self.block, all) };
    }

    /// Writes the maxima of blocks, in order. Some stand in for those that fill up a vector, as zero may have a slow
    /// reciprocal.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn store(&self, count: usize, out: &mut [f32; ops::BLOCKS]) {
        let pieces = &self.pieces;
        let mut put = |i: usize, v: __m512i| {
            // SAFETY: the slice is checked to hold 16 floats.
            unsafe { _mm512_storeu_si512(out[16 * i..][..16].as_mut_ptr().cast(), v) };
        };
        match self.group {
            16 => {
                for (i, &quads) in pieces.as_chunks::<4>().0.iter().enumerate().take(count / 16) {
                    put(i, fold_quads(quads));
                }
            }
            32 => {
                for (i, words) in pieces.as_chunks::<8>().0.iter().enumerate().take(count / 16) {
                    put(i, fold_quads([0, 2, 4, 6].map(|i| fold_pairs(words[i], words[i + 1]))));
                }
            }
            64 => {
                for (i, &blocks) in pieces.as_chunks::<16>().0.iter().enumerate().take(count / 16) {
                    put(i, max_of_each(blocks));
                }
            }
            _ if count == 1 => put(0, max_of_each([self.block; 16])),
            128 => put(0, max_of_each(self.blocks_of::<2>())),
            256 => put(0, max_of_each(self.blocks_of::<4>())),
            _ => put(0, max_of_each(self.blocks_of::<8>())),
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

/// From extremes to what divides or multiplies, in phases. Counts are constants here, which makes straight lines of loops.
pub(super) struct Fitting<'a> {
    plan: &'a RowEncoder,
    fitted: &'a mut Fitted,
    /// Blocks of a tile.
    pub(super) count: usize,
    pub(super) extremes: Extremes,
    /// Whether codes of the blocks fitted last can be made as in these loops.
    pub(super) possible: bool,
    /// Whether [`codes::fixed`] can make them.
    fixed: bool,
}

impl<'a> Fitting<'a> {
    pub(super) const PHASES: usize = 4;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn new(plan: &'a RowEncoder, fitted: &'a mut Fitted, rows: &Rows<'_>) -> Self {
        let group = if plan.unit == Unit::Keep { TILE } else { plan.group.min(rows.tile) };
        Self { plan, fitted, count: rows.tile / group, extremes: Extremes::new(group), possible: true, fixed: false }
    }

    /// Fits the first block and finds the extremes of the tile after it. False when codes cannot be made in these loops,
    /// `None` when the reference must decide.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn begin(&mut self, rows: &mut Rows<'_>, params: &mut Params) -> Option<bool> {
        if self.plan.unit == Unit::Keep {
            return Some(true);
        }
        for i in 0..rows.tiles.min(rows.per_block + 1) {
            self.extremes.take_tile(rows.tile(i), self.plan.group);
            if self.count == 1 {
                self.extremes.take_block(rows.tile / 64, i % rows.per_block == 0);
            }
            if i + 1 == rows.per_block {
                self.phases(0..Self::PHASES, &mut rows.scales[..rows.stored], params)?;
            }
        }
        Some(self.possible)
    }

    /// Blocks whose scales are computed: whole vectors.
    fn padded(&self) -> usize {
        self.count.next_multiple_of(16)
    }

    /// Does some phases; `None` when the reference must decide. Called cold, so that the loop around it keeps its registers.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn phases(&mut self, phases: Range<usize>, out: &mut [u8], params: &mut Params) -> Option<()> {
        for phase in phases {
            match phase {
                0 => self.extremes(),
                1 => self.scales(out)?,
                2 => self.reciprocals(),
                _ => self.give(params),
            }
        }
        Some(())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn extremes(&mut self) {
        self.extremes.store(self.count, &mut self.fitted.scales);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn scales(&mut self, out: &mut [u8]) -> Option<()> {
        if let Some((divisor, least)) = self.plan.halves() {
            return self.halves(divisor, least, out);
        }
        let by_vectors = |steps: &[f32; 128], codes: &[u8], taken: &mut [f32]| {
            for (codes, taken) in codes.as_chunks().0.iter().zip(taken.as_chunks_mut().0) {
                lookup128(steps, codes, taken);
            }
        };
        let done = match self.count {
            16 => plain::fit_by(self.plan, self.fitted, 16, out, by_vectors),
            32 => plain::fit_by(self.plan, self.fitted, 32, out, by_vectors),
            64 => plain::fit_by(self.plan, self.fitted, 64, out, by_vectors),
            _ => {
                let mut stored = [0; 64];
                let done = plain::fit_by(self.plan, self.fitted, 16, &mut stored, by_vectors);
                out.copy_from_slice(&stored[..out.len()]);
                done
            }
        };
        done.then_some(())
    }

    /// As `fit_amax` of the plain kernels for scales in f16, which instructions round to.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn halves(&mut self, divisor: f32, least: f32, out: &mut [u8]) -> Option<()> {
        let (divisors, one) = (_mm512_set1_ps(divisor), _mm512_set1_ps(1.0));
        let (mut refused, mut subnormal) = (0, 0);
        let count = self.padded();
        for (i, scales) in self.fitted.scales[..count].as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // SAFETY: `scales` is a reference to 16 floats.
            let amax = unsafe { _mm512_loadu_ps(scales.as_ptr()) };
            let infinite = _mm512_set1_epi32(ops::INFINITE.cast_signed());
            refused |= _mm512_cmpge_epu32_mask(_mm512_castps_si512(amax), infinite);
            let amax = _mm512_max_ps(amax, _mm512_set1_ps(least));
            let quotient = _mm512_max_ps(_mm512_div_ps(amax, divisors), _mm512_set1_ps(f32::from_bits(1)));
            let zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(amax, _mm512_setzero_ps());
            let scale = _mm512_mask_mov_ps(quotient, zero, one);
            refused |= _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scale, _mm512_set1_ps(65504.0));
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scale);
            let half = _mm256_max_epu16(half, _mm256_set1_epi16(1));
            let scale = _mm512_cvtph_ps(half);
            subnormal |= _mm512_cmp_ps_mask::<_CMP_LT_OQ>(scale, _mm512_set1_ps(plain::LEAST_NORMAL));
            let mut stored = [0_u8; 32];
            // SAFETY: 16 floats and 32 bytes are written, of references to as many.
            unsafe {
                _mm512_storeu_ps(scales.as_mut_ptr(), scale);
                match out.get_mut(32 * i..).and_then(<[u8]>::first_chunk_mut::<32>) {
                    Some(out) => _mm256_storeu_si256(out.as_mut_ptr().cast(), half),
                    None => _mm256_storeu_si256(stored.as_mut_ptr().cast(), half),
                }
            }
            if let Some(part) = out.get_mut(32 * i..).filter(|part| part.len() < 32) {
                part.copy_from_slice(&stored[..part.len()]);
            }
        }
        self.fitted.reach = self.plan.reach(divisor, subnormal != 0);
        (refused == 0).then_some(())
    }

    /// Reciprocals of scales for [`codes::fixed`], or for the quotients of other elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn reciprocals(&mut self) {
        let (count, reach) = (self.padded(), self.fitted.reach);
        self.possible = match (self.plan.unit, &self.plan.element) {
            (Unit::Divide, Kind::Small(element)) if codes::fixed_reach(element) > 0.0 => {
                self.fixed = codes::near_reciprocals(&self.fitted.scales[..count], &mut self.fitted.high[..count])
                    && reach <= codes::fixed_reach(element);
                // Beyond, rounded quotients may be no 32-bit integers.
                reach <= codes::EXACT_RANGE || matches!(element, Element::Float(_))
            }
            (Unit::Divide, _) => {
                reciprocals(self.plan, self.fitted, count);
                divides_exactly(&self.fitted.scales[..count], reach)
            }
            (_, Kind::Small(Element::Int { .. })) => reach.is_finite(),
            _ => true,
        };
    }

    /// Hands over what was computed.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn give(&mut self, params: &mut Params) {
        let count = self.padded();
        let copy = |from: &[f32; ops::BLOCKS], to: &mut [f32; BLOCKS]| {
            let sixteens = from.as_chunks::<16>().0.iter().zip(to.as_chunks_mut::<16>().0);
            for (from, to) in sixteens.take(count / 16) {
                // SAFETY: both are references to 16 floats.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_loadu_ps(from.as_ptr())) };
            }
        };
        copy(&self.fitted.scales, &mut params.scales);
        if self.plan.unit == Unit::Divide {
            copy(&self.fitted.high, &mut params.high);
            if !self.fixed {
                copy(&self.fitted.low, &mut params.low);
            }
        }
        params.fixed = self.fixed;
    }
}

/// The entries of 16 codes below 128 in a table, by permutations, which are quicker than reading them one by one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn lookup128(table: &[f32; 128], codes: &[u8; 16], out: &mut [f32; 16]) {
    let (parts, _) = table.as_chunks::<16>();
    // SAFETY: the loads read 16 bytes and 16 floats of references to as many, and 16 floats are written.
    unsafe {
        let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
        let part = |i: usize| _mm512_loadu_ps(parts[i].as_ptr());
        // Of 32 entries; the low five bits count.
        let of = |i: usize| _mm512_permutex2var_ps(part(2 * i), codes, part(2 * i + 1));
        let bit = |bit: i32| _mm512_test_epi32_mask(codes, _mm512_set1_epi32(bit));
        let (low, high) = (_mm512_mask_blend_ps(bit(32), of(0), of(1)), _mm512_mask_blend_ps(bit(32), of(2), of(3)));
        _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mask_blend_ps(bit(64), low, high));
    }
}
