//! The loops of [`super::ints`].
#![expect(unsafe_code, reason = "loads through pointers, and calls of functions compiled for found instructions")]

use super::avx512::{Avx512, Rows, load_floats, load_words, prefetch, store};
use super::generated::attention::{dot_tiles, interleave, weigh_tiles};
use super::ints::{IntPlan, IntQueries, MOST_STEPS, RUN};
use super::plan::LANES;
use std::arch::x86_64::*;
use std::ops::Range;

/// Codes of a register.
pub(super) type Line = [u8; 64];

/// Codes and weights on their way, kept between calls.
#[derive(Debug)]
pub(super) struct Turned {
    pub(super) codes: Vec<Line>,
    pub(super) padded: [u8; LANES * PADDED],
    /// `[member][four rows][high, low]`, where there are several groups for each of 16.
    weights: Vec<i32>,
    /// `[member][group]`, 16 of each.
    steps: Vec<f32>,
}

impl Default for Turned {
    fn default() -> Self {
        Self { codes: Vec::new(), padded: [0; LANES * PADDED], weights: Vec::new(), steps: Vec::new() }
    }
}

impl Avx512 {
    /// Turns `[count, width]` into `[width, RUN]`; what is beyond `count` stays.
    pub(super) fn turn_meta(self, from: &[f32], width: usize, count: usize, out: &mut [f32]) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { turn_meta_of(from, width, count, out) }
    }

    /// `out[member · stride + row] = query · row` of each pack: queries, and where its scores start.
    pub(super) fn dot_integers<'a>(
        self,
        plan: &IntPlan,
        rows: &Rows<'_>,
        packs: impl Iterator<Item = (&'a IntQueries, usize)> + Clone,
        (out, stride): (&mut [f32], usize),
        turned: &mut Turned,
    ) {
        turned.codes.resize(plan.turned_words(), [0; 64]);
        for first in (0..rows.count).step_by(LANES) {
            let codes = if plan.turned {
                // SAFETY: a value of `Self` proves the instructions.
                unsafe { prefetch(rows, first, LANES) }
                rows.codes[first * plan.head_bytes..][..LANES * plan.head_bytes].as_chunks().0
            } else {
                // SAFETY: as above.
                unsafe {
                    match plan.width {
                        64 => turn_rows::<64>(plan, rows, first, turned),
                        32 => turn_rows::<32>(plan, rows, first, turned),
                        _ => turn_rows::<16>(plan, rows, first, turned),
                    }
                }
                turned.codes.as_slice()
            };
            for (queries, at) in packs.clone() {
                // SAFETY: as above.
                unsafe { dot_tiles(plan, queries, codes, rows, first, (&mut out[at + first..], stride)) }
            }
        }
    }

    /// Turns the codes of at most `RUN` rows for sums of values, where they do not lie so.
    pub(super) fn turn_values(self, plan: &IntPlan, rows: &Rows<'_>, turned: &mut Turned) {
        if plan.turned {
            return;
        }
        turned.codes.resize(plan.lane_blocks.len() * (RUN / 4), [0; 64]);
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { interleave(plan, rows, turned) }
    }

    /// `sums[register][member] += Σ_row weights[member · stride + row] · row` of turned codes, without the values of code 0,
    /// whose part is added to `zeros[member][block]`.
    pub(super) fn weigh_integers(
        self,
        plan: &IntPlan,
        members: usize,
        (weights, stride): (&[f32], usize),
        rows: &Rows<'_>,
        (sums, zeros): (&mut [f32], &mut [f32]),
        turned: &mut Turned,
    ) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe {
            quantize_weights(plan, members, weights, stride, rows, zeros, turned);
            weigh_tiles(plan, members, rows, turned, sums);
        }
    }
}

/// Four registers of four rows each, a row's word a lane, become four of a word each: within each quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn_quarters(rows: [__m512i; 4]) -> [__m512i; 4] {
    let [a, b, c, d] = rows;
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab2, cd2),
        _mm512_unpackhi_epi64(ab2, cd2),
    ]
}

/// Lanes 0 and 2 of both, or 1 and 3.
#[inline]
#[target_feature(enable = "avx512f")]
fn even_odd(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    (_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b))
}

/// Quarter `g` of register `4 q + k` becomes quarter `q` of register `4 g + k`.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn_sixteen(parts: [[__m512i; 4]; 4]) -> [__m512i; LANES] {
    let mut out = [_mm512_setzero_si512(); LANES];
    for k in 0..4 {
        let (a, b) = even_odd(parts[0][k], parts[1][k]);
        let (c, d) = even_odd(parts[2][k], parts[3][k]);
        (out[k], out[8 + k]) = even_odd(a, c);
        (out[4 + k], out[12 + k]) = even_odd(b, d);
    }
    out
}

#[target_feature(enable = "avx512f,avx512vl")]
fn turn_meta_of(from: &[f32], width: usize, count: usize, out: &mut [f32]) {
    for column in (0..width).step_by(LANES) {
        let columns = LANES.min(width - column);
        let mask = u16::MAX >> (LANES - columns);
        for row in (0..count).step_by(LANES) {
            let load = |at: usize| {
                if row + at >= count {
                    return _mm512_setzero_si512();
                }
                let some = &from[(row + at) * width + column..][..columns];
                // SAFETY: the mask names the values of the slice.
                unsafe { _mm512_maskz_loadu_epi32(mask, some.as_ptr().cast()) }
            };
            let four = |g: usize| turn_quarters([load(4 * g), load(4 * g + 1), load(4 * g + 2), load(4 * g + 3)]);
            let turned = turn_sixteen([four(0), four(1), four(2), four(3)]);
            for (index, turned) in turned.into_iter().enumerate().take(columns) {
                store(_mm512_castsi512_ps(turned), &mut out[(column + index) * RUN + row..][..LANES]);
            }
        }
    }
}

/// The bits of a register of codes that are to be inverted.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn signs(plan: &IntPlan) -> __m512i {
    _mm512_set1_epi8(plan.flip.cast_signed())
}

/// Where the first row starts; of all rows the bytes of the head can be read.
pub(super) fn start(plan: &IntPlan, rows: &Rows<'_>) -> *const u8 {
    rows.codes[..rows.count.saturating_sub(1) * rows.stride + plan.head_bytes].as_ptr()
}

/// Codes of 16 rows from `first` on: `[word][row]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn turn_rows<const W: usize>(plan: &IntPlan, rows: &Rows<'_>, first: usize, turned: &mut Turned) {
    let Turned { codes: out, padded, .. } = turned;
    let signs = signs(plan);
    let some = LANES.min(rows.count - first);
    prefetch(rows, first, some);
    let start = start(plan, rows);
    for load in 0..plan.loads {
        let from = load * W;
        let bytes = W.min(plan.head_bytes - from);
        let mask = u16::MAX >> (LANES - bytes / 4);
        let out = &mut out[from / 4..][..W / 4];
        // SAFETY: `start` has checked that the words of the mask can be read of the rows; of padded ones 64 bytes can.
        unsafe {
            let (start, stride) = if some == LANES {
                (start.add(first * rows.stride + from), rows.stride)
            } else {
                (pad(rows, first..first + some, from..from + bytes, padded), PADDED)
            };
            match W {
                64 => {
                    let x = load_rows(start, stride, mask);
                    let four = |g: usize| turn_quarters([x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]]);
                    let turned = turn_sixteen([four(0), four(1), four(2), four(3)]);
                    store_turned(&turned, signs, out);
                }
                32 => {
                    let x = load_rows_in_halves(start, stride, mask.to_le_bytes()[0]);
                    let (a, b) = (turn_quarters([x[0], x[1], x[2], x[3]]), turn_quarters([x[4], x[5], x[6], x[7]]));
                    let mut turned = [_mm512_setzero_si512(); 8];
                    for k in 0..4 {
                        (turned[k], turned[4 + k]) = even_odd(a[k], b[k]);
                    }
                    store_turned(&turned, signs, out);
                }
                _ => {
                    let x = load_rows_in_quarters(start, stride, mask.to_le_bytes()[0]);
                    store_turned(&turn_quarters(x), signs, out);
                }
            }
        }
    }
}

/// Bytes of a padded row.
pub(super) const PADDED: usize = 64;

/// Copies some rows to where there is room for 16.
#[cold]
#[inline(never)]
pub(super) fn pad(
    rows: &Rows<'_>,
    some: Range<usize>,
    bytes: Range<usize>,
    padded: &mut [u8; LANES * PADDED],
) -> *const u8 {
    for (row, padded) in some.zip(padded.chunks_exact_mut(PADDED)) {
        padded[..bytes.len()].copy_from_slice(&rows.codes[row * rows.stride..][bytes.clone()]);
    }
    padded.as_ptr()
}

/// Sixteen rows of at most 16 words.
///
/// # Safety
///
/// The words of the mask can be read of 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_rows(start: *const u8, stride: usize, mask: u16) -> [__m512i; LANES] {
    let mut out = [_mm512_setzero_si512(); LANES];
    for (row, out) in out.iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        *out = unsafe { _mm512_maskz_loadu_epi32(mask, start.add(row * stride).cast()) };
    }
    out
}

/// Rows of at most 8 words, rows 0 to 3 beside 4 to 7, then 8 to 11 beside 12 to 15.
///
/// # Safety
///
/// As of [`load_rows`].
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn load_rows_in_halves(start: *const u8, stride: usize, mask: u8) -> [__m512i; 8] {
    let mut out = [_mm512_setzero_si512(); 8];
    for (index, out) in out.iter_mut().enumerate() {
        let row = index / 4 * 8 + index % 4;
        // SAFETY: as the caller promises.
        let (a, b) = unsafe {
            (
                _mm256_maskz_loadu_epi32(mask, start.add(row * stride).cast()),
                _mm256_maskz_loadu_epi32(mask, start.add((row + 4) * stride).cast()),
            )
        };
        *out = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
    }
    out
}

/// Rows of at most 4 words, every fourth side by side.
///
/// # Safety
///
/// As of [`load_rows`].
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn load_rows_in_quarters(start: *const u8, stride: usize, mask: u8) -> [__m512i; 4] {
    let mut out = [_mm512_setzero_si512(); 4];
    for (row, out) in out.iter_mut().enumerate() {
        let mut parts = [_mm_setzero_si128(); 4];
        for (index, part) in parts.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            *part = unsafe { _mm_maskz_loadu_epi32(mask, start.add((row + 4 * index) * stride).cast()) };
        }
        let [a, b, c, d] = parts;
        let x = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
        *out = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(x, c), d);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_turned<const N: usize>(turned: &[__m512i; N], signs: __m512i, out: &mut [Line]) {
    for (x, out) in turned.iter().zip(out) {
        store_line(_mm512_xor_si512(*x, signs), out);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_line(x: __m512i, out: &mut Line) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_line(line: &Line) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

/// The codes of a register, field by field.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fields_of<const BITS: u32, const FIELDS: usize>(x: __m512i) -> [__m512i; FIELDS] {
    let mask = _mm512_set1_epi8((u8::MAX >> (8 - BITS)).cast_signed());
    std::array::from_fn(|field| match (BITS, field) {
        (8, _) => x,
        (_, 0) => _mm512_and_si512(x, mask),
        (4, _) => _mm512_and_si512(_mm512_srli_epi16::<4>(x), mask),
        (_, 1) => _mm512_and_si512(_mm512_srli_epi16::<2>(x), mask),
        (_, 2) => _mm512_and_si512(_mm512_srli_epi16::<4>(x), mask),
        _ => _mm512_and_si512(_mm512_srli_epi16::<6>(x), mask),
    })
}

/// Scores of 16 turned rows from `first` on. `SETS` are sums side by side, so that none waits for the one before.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dot_tile<const BITS: u32, const FIELDS: usize, const G: usize, const SETS: usize>(
    plan: &IntPlan,
    queries: &IntQueries,
    codes: &[Line],
    rows: &Rows<'_>,
    first: usize,
    (out, stride): (&mut [f32], usize),
) {
    let lowest = _mm512_set1_ps(-f32::from(1_u8 << (BITS - 1)));
    let mut scores = [_mm512_setzero_ps(); G];
    let (words, per_word) = (plan.words(), FIELDS * G * 2);
    for block in 0..plan.blocks {
        let from = block * plan.block_words;
        let to = words.min(from + plan.block_words);
        let (mut high, mut low) = ([[_mm512_setzero_si512(); G]; SETS], [[_mm512_setzero_si512(); G]; SETS]);
        macro_rules! add {
            ($set:literal, $codes:expr, $queries:expr) => {{
                let codes = fields_of::<BITS, FIELDS>(load_line($codes));
                let queries: &[i32] = $queries;
                for field in 0..FIELDS {
                    let set = ($set * FIELDS + field) % SETS;
                    for g in 0..G {
                        let at = (field * G + g) * 2;
                        high[set][g] = _mm512_dpbusd_epi32(high[set][g], codes[field], _mm512_set1_epi32(queries[at]));
                        low[set][g] =
                            _mm512_dpbusd_epi32(low[set][g], codes[field], _mm512_set1_epi32(queries[at + 1]));
                    }
                }
            }};
        }
        let (fours, rest) = codes[from..to].as_chunks::<4>();
        let mut queries_of_words = queries.words[from * per_word..to * per_word].chunks_exact(4 * per_word);
        for (codes, queries) in fours.iter().zip(&mut queries_of_words) {
            add!(0, &codes[0], &queries[..per_word]);
            add!(1, &codes[1], &queries[per_word..2 * per_word]);
            add!(2, &codes[2], &queries[2 * per_word..3 * per_word]);
            add!(3, &codes[3], &queries[3 * per_word..]);
        }
        for (codes, queries) in rest.iter().zip(queries_of_words.remainder().chunks_exact(per_word)) {
            add!(0, codes, queries);
        }
        let scale = load_floats(rows.scales, block * rows.meta_stride + first);
        let zero = if plan.signed {
            _mm512_mul_ps(scale, lowest)
        } else if rows.zeros.is_empty() {
            _mm512_setzero_ps()
        } else {
            load_floats(rows.zeros, block * rows.meta_stride + first)
        };
        for g in 0..G {
            let (mut a, mut b) = (high[0][g], low[0][g]);
            for set in 1..SETS {
                a = _mm512_add_epi32(a, high[set][g]);
                b = _mm512_add_epi32(b, low[set][g]);
            }
            let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(a), b));
            scores[g] = _mm512_fmadd_ps(sum, scale, scores[g]);
            scores[g] = _mm512_fmadd_ps(zero, _mm512_set1_ps(queries.sums[block * G + g]), scores[g]);
        }
    }
    let some = LANES.min(rows.count - first);
    for (g, score) in scores.into_iter().enumerate() {
        store(_mm512_mul_ps(score, _mm512_set1_ps(queries.steps[g])), &mut out[g * stride..][..some]);
    }
}

/// Products of weights and scales as integers, and the part of the values of code 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quantize_weights(
    plan: &IntPlan,
    members: usize,
    weights: &[f32],
    stride: usize,
    rows: &Rows<'_>,
    zeros: &mut [f32],
    turned: &mut Turned,
) {
    let lanes = if plan.blocks == 1 { 1 } else { LANES };
    turned.weights.resize(RUN / 4 * members * 2 * lanes, 0);
    turned.steps.resize(members * LANES, 0.0);
    let vectors = rows.count.div_ceil(LANES);
    let mask = |at: usize| u16::MAX >> (LANES - (rows.count - at * LANES).min(LANES)).min(15);
    // The code that stands for 0, and one in the middle: rounding counts for what codes differ from it.
    let lowest = if plan.signed { -f32::from(1_u8 << (plan.bits - 1)) } else { 0.0 };
    let middle = if plan.signed { -lowest } else { f32::from(u8::MAX >> (8 - plan.bits)) / 2.0 };
    for g in 0..members {
        let weights = &weights[g * stride..][..rows.count];
        let mut own = [_mm512_setzero_ps(); RUN / LANES];
        for (at, own) in own.iter_mut().enumerate().take(vectors) {
            // SAFETY: the mask names weights that there are.
            *own = unsafe { _mm512_maskz_loadu_ps(mask(at), weights[at * LANES..].as_ptr()) };
        }
        for block in 0..plan.blocks {
            let mut products = [_mm512_setzero_ps(); RUN / LANES];
            let (mut largest, mut zero) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            let mut mass = _mm512_setzero_ps();
            for (at, (product, &own)) in products.iter_mut().zip(&own).enumerate().take(vectors) {
                let place = block * rows.meta_stride + at * LANES;
                *product = _mm512_mul_ps(own, load_floats(rows.scales, place));
                largest = _mm512_max_ps(largest, _mm512_abs_ps(*product));
                mass = _mm512_add_ps(mass, *product);
                if !rows.zeros.is_empty() {
                    zero = _mm512_fmadd_ps(own, load_floats(rows.zeros, place), zero);
                }
            }
            let largest = _mm512_reduce_max_ps(largest);
            // A step whose reciprocal is not finite belongs to weights that are nothing.
            let step = if largest > f32::MIN_POSITIVE * MOST_STEPS { largest / MOST_STEPS } else { f32::MAX };
            let inverse = _mm512_set1_ps(1.0 / step);
            let mut total = _mm512_setzero_ps();
            for (at, &product) in products.iter().enumerate().take(vectors) {
                let n = _mm512_cvtps_epi32(_mm512_mul_ps(product, inverse));
                total = _mm512_add_ps(total, _mm512_cvtepi32_ps(n));
                let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(n, _mm512_set1_epi32(128)));
                // The low byte of what is left is that of the number.
                let (high, low) = (_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(n));
                let mut pairs = [0_i32; 8];
                // SAFETY: twice 16 bytes.
                unsafe {
                    _mm_storeu_si128(pairs[..4].as_mut_ptr().cast(), _mm_unpacklo_epi32(high, low));
                    _mm_storeu_si128(pairs[4..].as_mut_ptr().cast(), _mm_unpackhi_epi32(high, low));
                }
                let weights = &mut turned.weights[(g * RUN / 4 + 4 * at) * 2 * lanes..][..8 * lanes];
                if lanes == 1 {
                    weights.copy_from_slice(&pairs);
                } else {
                    weights.iter_mut().skip(block).step_by(lanes).zip(pairs).for_each(|(weight, pair)| *weight = pair);
                }
            }
            turned.steps[g * LANES + block] = if step == f32::MAX { 0.0 } else { step };
            let step = turned.steps[g * LANES + block];
            let lost = _mm512_fnmadd_ps(total, _mm512_set1_ps(step), mass);
            let from_codes = _mm512_fmadd_ps(mass, _mm512_set1_ps(lowest), _mm512_mul_ps(lost, _mm512_set1_ps(middle)));
            let part = _mm512_reduce_add_ps(_mm512_add_ps(zero, from_codes));
            zeros[g * LANES + block] += part;
        }
    }
}

/// Adds weighted rows to sums: `G` members from `member` on, `J` registers at a time where there are as many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn weigh_tile<const BITS: u32, const FIELDS: usize, const G: usize, const J: usize>(
    plan: &IntPlan,
    member: usize,
    members: usize,
    rows: &Rows<'_>,
    turned: &Turned,
    sums: &mut [f32],
) {
    let (mut at, registers) = (0, plan.lane_blocks.len());
    while at < registers {
        macro_rules! some {
            ($count:expr) => {{
                if plan.blocks == 1 {
                    weigh_registers::<BITS, FIELDS, G, { $count }, false>(
                        plan,
                        at,
                        (member, members),
                        rows,
                        turned,
                        sums,
                    );
                } else {
                    weigh_registers::<BITS, FIELDS, G, { $count }, true>(
                        plan,
                        at,
                        (member, members),
                        rows,
                        turned,
                        sums,
                    );
                }
                at += $count;
            }};
        }
        if at + J <= registers {
            some!(J);
        } else if at + 2 <= registers {
            some!(2);
        } else {
            some!(1);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn weigh_registers<const BITS: u32, const FIELDS: usize, const G: usize, const J: usize, const GROUPS: bool>(
    plan: &IntPlan,
    first: usize,
    (member, members): (usize, usize),
    rows: &Rows<'_>,
    turned: &Turned,
    sums: &mut [f32],
) {
    let registers = plan.lane_blocks.len();
    let codes: &[Line] = if plan.turned { rows.codes.as_chunks().0 } else { &turned.codes };
    let asks = plan.turned && member + first == 0;
    const QUADS: usize = RUN / 4;
    let lanes = if GROUPS { LANES } else { 1 };
    let weights: [&[i32]; G] =
        std::array::from_fn(|g| &turned.weights[(member + g) * QUADS * 2 * lanes..][..QUADS * 2 * lanes]);
    let blocks: [__m512i; J] = std::array::from_fn(|j| load_words(&plan.lane_blocks[first + j]));
    let mut high = [[[_mm512_setzero_si512(); G]; FIELDS]; J];
    let mut low = high;
    for quad in 0..rows.count.div_ceil(4).min(QUADS) {
        if asks {
            prefetch(rows, 4 * quad, 4);
        }
        let codes = &codes[quad * registers + first..][..J];
        for j in 0..J {
            let codes = fields_of::<BITS, FIELDS>(load_line(&codes[j]));
            for g in 0..G {
                let (a, b) = if GROUPS {
                    let of = |part: usize| {
                        let some = &weights[g][(2 * quad + part) * LANES..][..LANES];
                        // SAFETY: 16 words.
                        let some = unsafe { _mm512_loadu_si512(some.as_ptr().cast()) };
                        _mm512_permutexvar_epi32(blocks[j], some)
                    };
                    (of(0), of(1))
                } else {
                    (_mm512_set1_epi32(weights[g][2 * quad]), _mm512_set1_epi32(weights[g][2 * quad + 1]))
                };
                for field in 0..FIELDS {
                    high[j][field][g] = _mm512_dpbusd_epi32(high[j][field][g], codes[field], a);
                    low[j][field][g] = _mm512_dpbusd_epi32(low[j][field][g], codes[field], b);
                }
            }
        }
    }
    for j in 0..J {
        for g in 0..G {
            let steps = load_floats(&turned.steps, (member + g) * LANES);
            let step = _mm512_permutexvar_ps(blocks[j], steps);
            for field in 0..FIELDS {
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[j][field][g]), low[j][field][g]);
                let sums = &mut sums[(((first + j) * FIELDS + field) * members + member + g) * LANES..][..LANES];
                store(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, load_floats(sums, 0)), sums);
            }
        }
    }
}
