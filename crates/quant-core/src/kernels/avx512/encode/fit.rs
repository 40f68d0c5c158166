//! Scales of the blocks of a tile, 16 blocks at a time.

use super::super::super::RowEncoder;
use super::super::super::encode::{self as plain, Fit, Fitted, Kind, Nested, Power, Store};
use super::super::super::ops::{self, Element, Unit};
use super::codes::{self, UNSIGNED, magnitude};
use super::extremes::{Extremes, flip};
use super::tiles::{BLOCKS, Rows, TILE};
use crate::IntRule;
use std::arch::x86_64::*;

/// What divides or multiplies the values of the blocks of a tile, in whole lines as `Fitted`.
#[repr(align(64))]
pub(super) struct Params {
    pub(super) scales: [f32; BLOCKS],
    pub(super) high: [f32; BLOCKS],
    pub(super) low: [f32; BLOCKS],
    pub(super) zeros: [f32; BLOCKS],
    /// Whether values lie within the range of [`codes::numbers`].
    pub(super) fixed: bool,
}

impl Params {
    pub(super) const ONE: Self =
        Self { scales: [1.0; BLOCKS], high: [1.0; BLOCKS], low: [0.0; BLOCKS], zeros: [0.0; BLOCKS], fixed: false };
}

/// From extremes to what divides or multiplies.
pub(super) struct Fitting<'a> {
    plan: &'a RowEncoder,
    fitted: &'a mut Fitted,
    /// Blocks of a tile.
    pub(super) count: usize,
    pub(super) extremes: Extremes,
    rule: Rule<'a>,
    divisor: Divisor,
    /// Whether codes of all blocks so far can be made as in these loops.
    pub(super) possible: bool,
}

/// How scales follow from extremes, where vectors say so.
#[derive(Clone, Copy)]
enum Rule<'a> {
    /// A power of two.
    Power(&'a Power),
    /// E4M3 under a tensor scale.
    Nested(&'a Nested),
    /// Largest magnitudes, or widths of ranges, divided.
    Float(Float),
    /// Largest magnitudes themselves, stored as f16 or else as f32; values are multiplied with their reciprocals.
    Magnitude { f16: bool },
    /// As the plain kernels say.
    Plain,
}

#[derive(Clone, Copy)]
struct Float {
    divisor: f32,
    /// Least magnitude.
    least: f32,
    /// Scales are stored as f16, else as f32.
    f16: bool,
    /// See [`RowEncoder::reach`]; where one is subnormal, the second.
    reach: [f32; 2],
}

/// How values are brought to the unit of their block.
#[derive(Clone, Copy)]
enum Divisor {
    /// By [`codes::numbers`] if they are at most so many scales large, else by divisions: up to the second number.
    Fixed(f32, f32),
    /// By [`codes::numbers`] likewise, where they are multiplied.
    FixedProduct(f32),
    Quotient,
    /// They are multiplied; finite products become integers.
    Finite,
    Nothing,
}

/// What blocks were fitted to.
#[derive(Clone, Copy)]
struct Scales {
    /// What values are divided by or multiplied with.
    scale: __m512,
    /// Zero points.
    zero: __m512,
    /// No value is larger than so many scales.
    reach: f32,
}

impl<'a> Fitting<'a> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn new(plan: &'a RowEncoder, fitted: &'a mut Fitted, rows: &Rows<'_>) -> Self {
        let group = if plan.unit == Unit::Keep { TILE } else { plan.group.min(rows.tile) };
        let float = |divisor, least, f16| {
            Rule::Float(Float { divisor, least, f16, reach: [false, true].map(|below| plan.reach(divisor, below)) })
        };
        let f16 = matches!(plan.store, Store::Two(kind) if kind.shift == 13);
        let rule = match &plan.fit {
            Fit::Power(power) => Rule::Power(power),
            Fit::Nested(nested) => Rule::Nested(nested),
            &Fit::Amax { divisor, least } if f16 || plan.store == Store::F32 => float(divisor, least, f16),
            &Fit::Asymmetric { rule: IntRule::Asymmetric, levels } if f16 => float(levels, 0.0, f16),
            Fit::Magnitude if f16 || plan.store == Store::F32 => Rule::Magnitude { f16 },
            _ => Rule::Plain,
        };
        let divisor = match (plan.unit, &plan.element) {
            (Unit::Divide, Kind::Small(element)) if codes::fixed_reach(element) > 0.0 => {
                // Beyond, rounded quotients may be no 32-bit integers.
                let exact = if matches!(element, Element::Float(_)) { f32::INFINITY } else { codes::EXACT_RANGE };
                Divisor::Fixed(codes::fixed_reach(element), exact)
            }
            (Unit::Divide, _) => Divisor::Quotient,
            (_, Kind::Small(Element::Float(_))) if plan.code_bits == 4 && matches!(rule, Rule::Power(_)) => {
                Divisor::FixedProduct(codes::FLOAT_REACH)
            }
            (_, Kind::Small(Element::Int { .. })) => Divisor::Finite,
            _ => Divisor::Nothing,
        };
        let extremes = Extremes::new(group, rows.tile == group);
        Self { plan, fitted, count: rows.tile / group, extremes, rule, divisor, possible: true }
    }

    /// Fits the first block or tile and finds the extremes of the tile after it. False when codes cannot be made in these
    /// loops, `None` when the reference must decide.
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
                self.fit::<KIND, KEPT>(rows, 0, params)?;
            }
        }
        Some(self.possible)
    }

    /// Fits the blocks of a tile, `KEPT` sixteens or fewer blocks than one, from the `first` on; `None` when the reference must
    /// decide. What does it is cold, so that the loop around it keeps its registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn fit<const KIND: u8, const KEPT: usize>(
        &mut self,
        rows: &mut Rows<'_>,
        first: usize,
        params: &mut Params,
    ) -> Option<()> {
        if KIND == UNSIGNED {
            self.fit_ranges(KEPT, rows, first, params)
        } else {
            self.fit_magnitudes(KEPT, rows, first, params)
        }
    }

    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn fit_magnitudes(
        &mut self,
        sixteens: usize,
        rows: &mut Rows<'_>,
        first: usize,
        params: &mut Params,
    ) -> Option<()> {
        for i in 0..sixteens {
            let bits = self.extremes.magnitudes(i);
            if !finite(bits) {
                return None;
            }
            let amax = _mm512_castsi512_ps(bits);
            let out = rows.stored_scales(first + 16 * i, self.count.min(16));
            let scales = match self.rule {
                Rule::Power(power) => powers(amax, power, out),
                Rule::Nested(nested) => nested_scales(amax, nested, self.plan.unit == Unit::Divide, out)?,
                Rule::Float(float) => floats(_mm512_max_ps(amax, _mm512_set1_ps(float.least)), float, out)?,
                Rule::Magnitude { f16 } => {
                    let one = _mm512_set1_ps(1.0);
                    let scale = store_scales(amax, f16, out)?;
                    let scale = _mm512_div_ps(one, _mm512_max_ps(scale, _mm512_set1_ps(plain::LEAST_MAGNITUDE)));
                    Scales { scale, zero: _mm512_setzero_ps(), reach: 1.0 }
                }
                Rule::Plain => self.plainly(amax, _mm512_setzero_ps(), out)?,
            };
            self.give(scales, 16 * i, params);
        }
        Some(())
    }

    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn fit_ranges(&mut self, sixteens: usize, rows: &mut Rows<'_>, first: usize, params: &mut Params) -> Option<()> {
        for i in 0..sixteens {
            // The ends of ranges with zero.
            let ([bits, flipped], zero) = (self.extremes.ranges(i), _mm512_setzero_si512());
            let low = _mm512_castsi512_ps(_mm512_min_epi32(bits, zero));
            let high = _mm512_castsi512_ps(_mm512_max_epi32(flip(flipped), zero));
            if !finite(_mm512_max_epu32(magnitude(low), magnitude(high))) {
                return None;
            }
            let (first, count) = (first + 16 * i, self.count.min(16));
            let out = rows.stored_scales(first, count);
            let scales = match self.rule {
                Rule::Float(float) => {
                    let (width, below) = width(low, high);
                    let scales = floats(width, float, out)?;
                    let point = _mm512_min_ps(_mm512_div_ps(below, scales.scale), _mm512_set1_ps(float.divisor));
                    Scales { zero: _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(point), ..scales }
                }
                _ => self.plainly(low, high, out)?,
            };
            let mut zeros = [0.0; 16];
            // SAFETY: 16 floats are written.
            unsafe { _mm512_storeu_ps(zeros.as_mut_ptr(), scales.zero) };
            self.plan.write_zeros(&zeros[..count], first, rows.zeros);
            store_sixteen(&mut params.zeros, 16 * i, scales.zero);
            self.give(scales, 16 * i, params);
        }
        Some(())
    }

    /// As the plain kernels: from largest magnitudes, or from the ends of ranges.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn plainly(&mut self, least: __m512, most: __m512, out: &mut [u8]) -> Option<Scales> {
        let mut stored = [0; 64];
        // SAFETY: 16 floats are written and read, of slices that are checked to hold them.
        unsafe {
            _mm512_storeu_ps(self.fitted.scales[..16].as_mut_ptr(), least);
            _mm512_storeu_ps(self.fitted.zeros[..16].as_mut_ptr(), most);
        }
        if !plain::fit(self.plan, self.fitted, 16, &mut stored) {
            return None;
        }
        out.copy_from_slice(&stored[..out.len()]);
        let Fitted { scales, zeros, reach, .. } = &*self.fitted;
        // SAFETY: as above.
        let [scale, zero] = [scales, zeros].map(|of| unsafe { _mm512_loadu_ps(of[..16].as_ptr()) });
        Some(Scales { scale, zero, reach: *reach })
    }

    /// Hands over what makes codes, reciprocals of scales among it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn give(&mut self, Scales { scale, reach, .. }: Scales, at: usize, params: &mut Params) {
        store_sixteen(&mut params.scales, at, scale);
        self.possible &= match self.divisor {
            Divisor::Fixed(fixed, exact) => {
                store_sixteen(&mut params.high, at, codes::near_reciprocals(scale));
                params.fixed = reach <= fixed && codes::has_reciprocals(scale) && (at == 0 || params.fixed);
                reach <= exact
            }
            Divisor::FixedProduct(fixed) => {
                store_sixteen(&mut params.high, at, scale);
                params.fixed = reach <= fixed;
                true
            }
            Divisor::Quotient => {
                let high = _mm512_div_ps(_mm512_set1_ps(1.0), scale);
                store_sixteen(&mut params.high, at, high);
                let rest = _mm512_fnmadd_ps(high, scale, _mm512_set1_ps(1.0));
                store_sixteen(&mut params.low, at, _mm512_mul_ps(rest, high));
                codes::has_reciprocals(scale) && reach <= codes::EXACT_RANGE
            }
            Divisor::Finite => reach.is_finite(),
            Divisor::Nothing => true,
        };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn store_sixteen(to: &mut [f32; BLOCKS], at: usize, v: __m512) {
    // SAFETY: the slice is checked to hold 16 floats.
    unsafe { _mm512_storeu_ps(to[at % BLOCKS..][..16].as_mut_ptr(), v) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn finite(magnitudes: __m512i) -> bool {
    _mm512_cmpge_epu32_mask(magnitudes, _mm512_set1_epi32(ops::INFINITE.cast_signed())) == 0
}

/// Fills `out` with the first bytes of a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn store(out: &mut [u8], v: __m512i) {
    // SAFETY: only bytes within `out` are written.
    unsafe {
        match out.len() {
            16 => _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_castsi512_si128(v)),
            32 => _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_castsi512_si256(v)),
            64.. => _mm512_storeu_si512(out.as_mut_ptr().cast(), v),
            len => _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), (1 << len) - 1, v),
        }
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

/// As `fit_amax` of the plain kernels, for scales in f32 and in f16, which instructions round to.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn floats(amax: __m512, Float { divisor, f16, reach, .. }: Float, out: &mut [u8]) -> Option<Scales> {
    let quotient = _mm512_div_ps(amax, _mm512_set1_ps(divisor));
    let quotient = _mm512_max_ps(quotient, _mm512_set1_ps(f32::from_bits(1)));
    let zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(amax, _mm512_setzero_ps());
    let scale = _mm512_mask_mov_ps(quotient, zero, _mm512_set1_ps(1.0));
    let scale = store_scales(scale, f16, out)?;
    let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(scale, _mm512_set1_ps(plain::LEAST_NORMAL)) != 0;
    Some(Scales { scale, zero: _mm512_setzero_ps(), reach: reach[usize::from(below)] })
}

/// Stores scales as f16, of which only zero becomes zero, or as f32; returns what was stored, `None` where one is too large.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn store_scales(scale: __m512, f16: bool, out: &mut [u8]) -> Option<__m512> {
    if !f16 {
        store(out, _mm512_castps_si512(scale));
        return Some(scale);
    }
    if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scale, _mm512_set1_ps(65504.0)) != 0 {
        return None;
    }
    let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scale);
    let some = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(scale, _mm512_setzero_ps());
    let half = _mm256_mask_max_epu16(half, some, half, _mm256_set1_epi16(1));
    store(out, _mm512_castsi256_si512(half));
    Some(_mm512_cvtph_ps(half))
}

/// Powers of two, as `fit_amax` of the plain kernels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn powers(amax: __m512, power: &Power, out: &mut [u8]) -> Scales {
    let number = |x: u32| _mm512_set1_epi32(x.cast_signed());
    let q = power.largest.map_or(amax, |largest| _mm512_div_ps(amax, _mm512_set1_ps(largest)));
    let subnormal = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(q, _mm512_set1_ps(f32::MIN_POSITIVE));
    let [normal, below] = power.bias.map(number);
    let sum = _mm512_add_epi32(_mm512_castps_si512(q), _mm512_mask_mov_epi32(normal, subnormal, below));
    let code = _mm512_sub_epi32(_mm512_srli_epi32::<23>(sum), _mm512_set1_epi32(power.emax));
    let code = _mm512_min_epi32(_mm512_max_epi32(code, _mm512_setzero_si512()), number(254));
    store(out, _mm512_castsi128_si512(_mm512_cvtepi32_epi8(code)));
    let reciprocal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(number(254), code));
    let scale = _mm512_castsi512_ps(_mm512_max_epu32(reciprocal, number(0x40_0000)));
    Scales { scale, zero: _mm512_setzero_ps(), reach: power.reach }
}

/// E4M3 under a tensor scale, as `fit_amax` of the plain kernels; `None` when a scale is lost that way.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn nested_scales(amax: __m512, nested: &Nested, divides: bool, out: &mut [u8]) -> Option<Scales> {
    let number = |x: u32| _mm512_set1_epi32(x.cast_signed());
    let Nested { largest, second, factor, least, of_zero, instead_of_zero, kind, steps, unit } = nested;
    let t = _mm512_div_ps(_mm512_div_ps(amax, _mm512_set1_ps(*largest)), _mm512_set1_ps(*second));
    let t = _mm512_mul_ps(t, _mm512_set1_ps(*factor));
    let zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(amax, _mm512_setzero_ps());
    if _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(t, _mm512_setzero_ps()) & !zero != 0 {
        return None;
    }
    // As `SmallFloat::encode`.
    let t = _mm512_castps_si512(_mm512_max_ps(t, _mm512_set1_ps(*least)));
    let (t, normal) = (_mm512_min_epu32(t, number(kind.max)), number(kind.smallest_normal));
    let binade = _mm512_max_epu32(_mm512_and_si512(t, number(0x7f80_0000)), normal);
    let magic = _mm512_add_epi32(binade, number(kind.shift << 23));
    let sum = _mm512_add_ps(_mm512_castsi512_ps(t), _mm512_castsi512_ps(magic));
    let value = _mm512_sub_ps(sum, _mm512_castsi512_ps(magic));
    let rounded = _mm512_sub_epi32(_mm512_castps_si512(sum), magic);
    let first = _mm512_srl_epi32(_mm512_sub_epi32(binade, normal), _mm_cvtsi32_si128(kind.shift.cast_signed()));
    let code = _mm512_add_epi32(first, rounded);
    let none = _mm512_testn_epi32_mask(code, code);
    let code = _mm512_mask_mov_epi32(code, none, number(*instead_of_zero));
    let code = _mm512_mask_mov_epi32(code, zero, number(*of_zero));
    store(out, _mm512_castsi128_si512(_mm512_cvtepi32_epi8(code)));
    let step = match *unit {
        Some(unit) => {
            let step = _mm512_mul_ps(value, _mm512_set1_ps(unit));
            _mm512_mask_mov_ps(step, none, _mm512_set1_ps(steps[*instead_of_zero as usize % 128]))
        }
        None => lookup128(steps, code),
    };
    let (value, unit) = if divides { (amax, step) } else { (_mm512_mul_ps(amax, step), _mm512_set1_ps(1.0)) };
    let beyond = |limit| {
        let limit = _mm512_mul_ps(unit, _mm512_set1_ps(limit));
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(value, limit) != 0
    };
    let reach = match plain::NESTED_REACHES {
        [near, _] if !beyond(near) => near,
        [_, far] if !beyond(far) => far,
        _ => f32::INFINITY,
    };
    // Any scale makes zeros of a zero block.
    let scale = _mm512_mask_mov_ps(step, zero, _mm512_set1_ps(1.0));
    Some(Scales { scale, zero: _mm512_setzero_ps(), reach })
}

/// The entries of 16 numbers below 128 in a table, by permutations, which are quicker than reading them one by one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn lookup128(table: &[f32; 128], codes: __m512i) -> __m512 {
    let (parts, _) = table.as_chunks::<16>();
    // SAFETY: a part has 16 floats.
    let part = |i: usize| unsafe { _mm512_loadu_ps(parts[i].as_ptr()) };
    // Of 32 entries; the low five bits count.
    let of = |i: usize| _mm512_permutex2var_ps(part(2 * i), codes, part(2 * i + 1));
    let bit = |bit: i32| _mm512_test_epi32_mask(codes, _mm512_set1_epi32(bit));
    let (low, high) = (_mm512_mask_blend_ps(bit(32), of(0), of(1)), _mm512_mask_blend_ps(bit(32), of(2), of(3)));
    _mm512_mask_blend_ps(bit(64), low, high)
}
