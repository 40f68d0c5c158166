//! Scales of the blocks of a tile.

use super::super::super::RowEncoder;
use super::super::super::encode::{self as plain, Fitted, Kind};
use super::super::super::ops::{self, Element, Unit};
use super::codes::{self, UNSIGNED, magnitude};
use super::extremes::{Extremes, flip};
use super::tiles::{BLOCKS, Rows, TILE};
use super::{divides_exactly, reciprocals};
use std::arch::x86_64::*;
use std::ops::Range;

/// What divides or multiplies the values of the blocks of a tile, in whole lines as `Fitted`.
#[repr(align(64))]
pub(super) struct Params {
    pub(super) scales: [f32; BLOCKS],
    pub(super) high: [f32; BLOCKS],
    pub(super) low: [f32; BLOCKS],
    pub(super) zeros: [f32; BLOCKS],
    /// Whether values lie within the range of [`codes::fixed`].
    pub(super) fixed: bool,
}

impl Params {
    pub(super) const ONE: Self =
        Self { scales: [1.0; BLOCKS], high: [1.0; BLOCKS], low: [0.0; BLOCKS], zeros: [0.0; BLOCKS], fixed: false };
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
    pub(super) fn begin<const KIND: u8, const KEPT: usize>(
        &mut self,
        rows: &mut Rows<'_>,
        params: &mut Params,
    ) -> Option<bool> {
        if self.plan.unit == Unit::Keep {
            return Some(true);
        }
        for i in 0..rows.tiles.min(rows.per_block + 1) {
            self.extremes.take_tile::<KIND, KEPT>(rows.tile(i));
            if self.count == 1 {
                self.extremes.take_block::<KIND>(rows.tile / 64, i % rows.per_block == 0);
            }
            if i + 1 == rows.per_block {
                self.phases::<KIND>(0..Self::PHASES, rows, 0, params)?;
            }
        }
        Some(self.possible)
    }

    /// Blocks whose scales are computed: whole vectors.
    fn padded(&self) -> usize {
        self.count.next_multiple_of(16)
    }

    /// Does some phases for the blocks from the `first` on; `None` when the reference must decide. Called cold, so that the
    /// loop around it keeps its registers.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn phases<const KIND: u8>(
        &mut self,
        phases: Range<usize>,
        rows: &mut Rows<'_>,
        first: usize,
        params: &mut Params,
    ) -> Option<()> {
        for phase in phases {
            match phase {
                0 => self.extremes::<KIND>()?,
                1 => {
                    let out = rows.scales.get_mut(first * rows.stored..(first + self.count) * rows.stored)?;
                    match self.plan.halves() {
                        Some((divisor, least)) => self.halves(divisor, least, out)?,
                        None => self.scales(out)?,
                    }
                }
                2 => {
                    self.reciprocals();
                    if KIND == UNSIGNED {
                        self.zeros(rows.zeros, first);
                    }
                }
                _ => self.give::<KIND>(params),
            }
        }
        Some(())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn extremes<const KIND: u8>(&mut self) -> Option<()> {
        self.extremes.store::<KIND>(self.count, self.fitted);
        if KIND == UNSIGNED { self.ranges() } else { Some(()) }
    }

    /// From bits to the ends of ranges with zero as the plain kernels take them, or for [`Self::halves`] to widths and what of
    /// them lies below zero; `None` when a value is not finite.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn ranges(&mut self) -> Option<()> {
        let (zero, infinite) = (_mm512_setzero_si512(), _mm512_set1_epi32(ops::INFINITE.cast_signed()));
        let (mut refused, count, widths) = (0, self.padded(), self.plan.halves().is_some());
        let least = self.fitted.scales[..count].as_chunks_mut::<16>().0.iter_mut();
        for (least, most) in least.zip(self.fitted.zeros.as_chunks_mut::<16>().0) {
            // SAFETY: both are references to 16 floats.
            unsafe {
                let low = _mm512_min_epi32(_mm512_loadu_si512(least.as_ptr().cast()), zero);
                let high = _mm512_max_epi32(flip(_mm512_loadu_si512(most.as_ptr().cast())), zero);
                let (low, high) = (_mm512_castsi512_ps(low), _mm512_castsi512_ps(high));
                let largest = _mm512_max_epu32(magnitude(low), magnitude(high));
                refused |= _mm512_cmpge_epu32_mask(largest, infinite);
                let (first, second) = if widths { width(low, high) } else { (low, high) };
                _mm512_storeu_ps(least.as_mut_ptr(), first);
                _mm512_storeu_ps(most.as_mut_ptr(), second);
            }
        }
        (refused == 0).then_some(())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn scales(&mut self, out: &mut [u8]) -> Option<()> {
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

    /// Writes zero points; divides what lies below zero where scales are those of [`Self::halves`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn zeros(&mut self, out: &mut [u8], first: usize) {
        if let Some((levels, _)) = self.plan.halves() {
            let (levels, count) = (_mm512_set1_ps(levels), self.padded());
            let scales = self.fitted.scales[..count].as_chunks::<16>().0.iter();
            for (scale, zero) in scales.zip(self.fitted.zeros.as_chunks_mut::<16>().0) {
                // SAFETY: both are references to 16 floats.
                unsafe {
                    let point = _mm512_div_ps(_mm512_loadu_ps(zero.as_ptr()), _mm512_loadu_ps(scale.as_ptr()));
                    let point = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(_mm512_min_ps(point, levels));
                    _mm512_storeu_ps(zero.as_mut_ptr(), point);
                }
            }
        }
        self.plan.write_zeros(&self.fitted.zeros[..self.count], first, out);
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
    fn give<const KIND: u8>(&mut self, params: &mut Params) {
        let count = self.padded();
        let copy = |from: &[f32; ops::BLOCKS], to: &mut [f32; BLOCKS]| {
            let sixteens = from.as_chunks::<16>().0.iter().zip(to.as_chunks_mut::<16>().0);
            for (from, to) in sixteens.take(count / 16) {
                // SAFETY: both are references to 16 floats.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_loadu_ps(from.as_ptr())) };
            }
        };
        copy(&self.fitted.scales, &mut params.scales);
        if KIND == UNSIGNED {
            copy(&self.fitted.zeros, &mut params.zeros);
        }
        if self.plan.unit == Unit::Divide {
            copy(&self.fitted.high, &mut params.high);
            if !self.fixed {
                copy(&self.fitted.low, &mut params.low);
            }
        }
        params.fixed = self.fixed;
    }
}

/// Widths of ranges with zero and what of them lies below; of those that are zero alone, the range is -1 to 1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn width(low: __m512, high: __m512) -> (__m512, __m512) {
    let (width, below) = (_mm512_sub_ps(high, low), _mm512_sub_ps(_mm512_setzero_ps(), low));
    let flat = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(width, _mm512_setzero_ps());
    (_mm512_mask_mov_ps(width, flat, _mm512_set1_ps(2.0)), _mm512_mask_mov_ps(below, flat, _mm512_set1_ps(1.0)))
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
