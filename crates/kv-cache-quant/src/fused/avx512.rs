//! Products with packed rows in AVX-512.
//!
//! Codes are turned into f32 in registers: those of 4 bits by a permutation of a table of 16, which looks at the low four
//! bits of each lane only, those of 2 bits by a table that repeats every 4 entries. Integers and E2M1 have kernels of
//! their own, in [`super::kernels`], but where rows are channels.
#![expect(unsafe_code, reason = "loads through pointers, and calls of functions compiled for found instructions")]

use super::generated::attention::{MOST, skip_codes};
use super::ints::RUN;
use super::plan::{Chunk, LANES, Plan, Queries};
use crate::packed::{Coding, Stored};
use quant_core::ScaleType;
use std::arch::x86_64::*;

/// Some rows of one head.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// From the first row's codes of the head on.
    pub(super) codes: &'a [u8],
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    pub(super) count: usize,
    /// From the first row's groups of the head on, `LANES` readable from each row's first; empty: all are 1.
    pub(super) scales: &'a [f32],
    /// The values of code 0; empty: all are 0.
    pub(super) zeros: &'a [f32],
    /// Groups from a row to the next.
    pub(super) meta_stride: usize,
    /// What is needed soon, and how many bytes of it a row asks for, whole cache lines.
    pub(super) ahead: &'a [u8],
    pub(super) ahead_step: usize,
}

/// Proof that the processor has what the kernels are compiled for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(()))
    }

    /// Reads `count` scales of each group, `stride` from one group to the next, to `[group][RUN]`, each times the factor of its
    /// token.
    pub(super) fn read_scales(
        self,
        kind: Stored,
        scales: (&[u8], usize),
        count: usize,
        factors: &[f32; RUN],
        out: &mut [f32],
    ) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { read_scales_of(kind, scales, count, factors, out) }
    }

    /// Asks for what is needed later.
    pub(super) fn ask(self, bytes: &[u8]) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { ask_for(bytes) }
    }

    /// `out[member · stride + row] = query · row`.
    pub(super) fn dot(self, plan: &Plan, queries: &Queries, rows: &Rows<'_>, (out, stride): (&mut [f32], usize)) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe {
            match queries.members {
                1 => dot_floats_of::<1>(plan, queries, rows, out, stride),
                2 => dot_floats_of::<2>(plan, queries, rows, out, stride),
                _ => dot_floats_of::<4>(plan, queries, rows, out, stride),
            }
        }
    }

    /// `sums[vector][member] += Σ_row weights[member · stride + row] · row` without the values of code 0, whose part is
    /// added to `zeros[member][block]`.
    pub(super) fn weigh(
        self,
        plan: &Plan,
        members: usize,
        weights: (&[f32], usize),
        rows: &Rows<'_>,
        (sums, zeros): (&mut [f32], &mut [f32]),
    ) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe {
            match members {
                1 => weigh_of::<1, 8>(plan, weights, rows, sums, zeros),
                2 => weigh_of::<2, 8>(plan, weights, rows, sums, zeros),
                _ => weigh_of::<4, 4>(plan, weights, rows, sums, zeros),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn read_scales_of(kind: Stored, scales: (&[u8], usize), count: usize, factors: &[f32; RUN], out: &mut [f32]) {
    match kind {
        Stored::Float(ScaleType::F16) => {
            read_scales_as::<2>(scales, count, factors, out, |x| _mm512_cvtph_ps(_mm512_castsi512_si256(x)));
        }
        Stored::Float(ScaleType::Bf16) => read_scales_as::<2>(scales, count, factors, out, |x| {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x))))
        }),
        Stored::Float(ScaleType::F32) => {
            read_scales_as::<4>(scales, count, factors, out, |x| _mm512_castsi512_ps(x));
        }
        Stored::E8m0 => read_scales_as::<1>(scales, count, factors, out, |x| {
            // 2^(code − 127); code 0 lies among the subnormal numbers.
            let exponents = _mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(x)));
            _mm512_castsi512_ps(_mm512_max_epu32(exponents, _mm512_set1_epi32(1 << 22)))
        }),
        Stored::E4m3 => read_scales_as::<1>(scales, count, factors, out, |x| e4m3(_mm512_castsi512_si128(x))),
    }
}

/// Scales of `BYTES` bytes each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn read_scales_as<const BYTES: usize>(
    (scales, stride): (&[u8], usize),
    count: usize,
    factors: &[f32; RUN],
    out: &mut [f32],
    convert: impl Fn(__m512i) -> __m512,
) {
    for (group, out) in out.chunks_exact_mut(RUN).enumerate() {
        let scales = &scales[BYTES * group * stride..][..BYTES * count];
        for (at, (scales, out)) in scales.chunks(BYTES * LANES).zip(out.chunks_mut(LANES)).enumerate() {
            let mask = u64::MAX >> (64 - scales.len()).min(63);
            // SAFETY: the mask names the bytes that there are.
            let scales = unsafe { _mm512_maskz_loadu_epi8(mask, scales.as_ptr().cast()) };
            store(_mm512_mul_ps(convert(scales), load_floats(factors, at * LANES)), out);
        }
    }
}

/// Values of E4M3: as f16 with the exponent of E4M3, which is 8 too small; of the copies of the sign one is kept.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn e4m3(codes: __m128i) -> __m512 {
    let half = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(codes));
    let half = _mm256_and_si256(half, _mm256_set1_epi16(0xbf80_u16.cast_signed()));
    _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_floats(values: &[f32], at: usize) -> __m512 {
    let values = &values[at..at + LANES];
    // SAFETY: 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_words(words: &[u32; LANES]) -> __m512i {
    // SAFETY: 16 words.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// The words of a chunk, repeated as often as the plan says, each lane shifted to its first code.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_chunk(row: &[u8], chunk: &Chunk, copies: usize, shifts: __m512i) -> __m512i {
    let bytes = &row[chunk.offset..chunk.offset + 4 * chunk.words];
    // SAFETY: exactly these bytes are read: 16 or 32 where there are copies, else the words of the mask.
    let words = unsafe {
        match copies {
            1 => {
                let mask = u16::MAX >> (LANES - chunk.words).min(15);
                return _mm512_maskz_loadu_epi32(mask, bytes.as_ptr().cast());
            }
            2 => _mm512_broadcast_i64x4(_mm256_loadu_si256(bytes.as_ptr().cast())),
            _ => _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())),
        }
    };
    _mm512_srlv_epi32(words, shifts)
}

#[target_feature(enable = "avx512f")]
fn ask_for(bytes: &[u8]) {
    let start = bytes.as_ptr();
    // The first line perhaps not from its start.
    let lines = (start.addr() % 64 + bytes.len()).div_ceil(64);
    (0..lines).for_each(|line| ask_for_line(start.wrapping_add(64 * line)));
}

/// Asks the second-level cache for a line. Asking the first, attention took 9 to 23 % longer on Zen 4.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn ask_for_line(line: *const u8) {
    // A hint about an address that is not there is no fault.
    _mm_prefetch::<_MM_HINT_T1>(line.cast());
}

/// Asks for what is needed soon: the part of some rows.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch(rows: &Rows<'_>, first: usize, count: usize) {
    let from = rows.ahead.as_ptr().wrapping_add(first * rows.ahead_step);
    let bytes = if rows.ahead.is_empty() { 0 } else { count * rows.ahead_step };
    let mut at = 0;
    while at < bytes {
        ask_for_line(from.wrapping_add(at));
        at += 64;
    }
}

/// Lane `i` becomes what the lanes of `parts[i]` are together, such as their sum.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn combine_each(parts: &[__m512; LANES], both: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    // Halves, then quarters, then pairs, then single lanes: at every step two registers become one.
    let halves = |a: __m512, b: __m512| {
        both(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
    };
    let quarters = |a: __m512, b: __m512| {
        both(_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    };
    let pairs = |a: __m512, b: __m512| both(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let singles = |a: __m512, b: __m512| {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        both(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    };
    // Each register then holds four parts, a quarter each.
    let four = |i: usize| quarters(halves(parts[i], parts[4 + i]), halves(parts[8 + i], parts[12 + i]));
    singles(pairs(four(0), four(1)), pairs(four(2), four(3)))
}

/// Writes as many lanes as there is room for.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(values: __m512, out: &mut [f32]) {
    let mask = if out.len() >= LANES { u16::MAX } else { (1 << out.len()) - 1 };
    // SAFETY: as many lanes as `out` has room for.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, values) }
}

/// Calls a kernel with two closures: one reads what the vectors of a chunk from some vector on share, one values of up to
/// eight vectors from some vector on.
macro_rules! with_reader {
    ($plan:expr, $kernel:ident::<$($const:ident),*>($($arg:expr),*)) => {{
        let plan: &Plan = $plan;
        let columns = plan.rows.columns;
        let nothing = |_: &[u8], _: &Chunk, _| _mm512_setzero_si512();
        let table = load_floats(&plan.table, 0);
        macro_rules! wide {
            (|$lanes:ident| $value:expr) => {{
                if columns.is_multiple_of(LANES) {
                    wide!(true, |$lanes| $value);
                } else {
                    wide!(false, |$lanes| $value);
                }
            }};
            ($whole:literal, |$lanes:ident| $value:expr) => {
                $kernel::<$($const,)* _, _>($($arg,)* nothing, |row: &[u8], _, first: usize, count: usize| {
                    let mut values = [_mm512_setzero_ps(); MOST];
                    for (index, value) in values.iter_mut().enumerate().take(count) {
                        let $lanes = Lanes::<$whole>::new(row, columns, first + index);
                        *value = $value;
                    }
                    values
                })
            };
        }
        macro_rules! dense {
            ($bits:literal) => {
                $kernel::<$($const,)* _, _>(
                    $($arg,)*
                    |row: &[u8], chunk: &Chunk, from| load_dense(plan, row, chunk, from),
                    |_: &[u8], words, _, _| skip_codes::<$bits>(words).map(|codes| _mm512_permutexvar_ps(codes, table)),
                )
            };
        }
        match plan.rows.coding {
            Coding::Int { bits: 2, .. } => dense!(2),
            Coding::Int { bits: 8, signed: true } => wide!(|lanes| {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(lanes.bytes()))
            }),
            Coding::Int { bits: 8, .. } => wide!(|lanes| {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(lanes.bytes()))
            }),
            Coding::Int { .. } | Coding::E2m1 | Coding::Table(_) => dense!(4),
            Coding::Word => wide!(|lanes| _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(lanes.halves()))),
            Coding::E4m3 => wide!(|lanes| e4m3(lanes.bytes())),
            Coding::E5m2 => wide!(|lanes| {
                _mm512_cvtph_ps(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(lanes.bytes())))
            }),
            Coding::F16 => wide!(|lanes| _mm512_cvtph_ps(lanes.halves())),
            Coding::Bf16 => wide!(|lanes| {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(lanes.halves())))
            }),
            Coding::F32 => wide!(|lanes| lanes.words()),
        }
    }};
}

/// The codes of a vector in a row. `WHOLE`: all vectors are, else the last may have fewer lanes.
struct Lanes<'a, const WHOLE: bool> {
    row: &'a [u8],
    first: usize,
    mask: u16,
}

impl<'a, const WHOLE: bool> Lanes<'a, WHOLE> {
    #[inline(always)]
    fn new(row: &'a [u8], columns: usize, vector: usize) -> Self {
        let first = vector * LANES;
        debug_assert!(first < columns && (!WHOLE || columns.is_multiple_of(LANES)), "a vector has elements");
        let mask = if WHOLE { u16::MAX } else { u16::MAX >> (LANES - (columns - first).min(LANES)).min(15) };
        Self { row, first, mask }
    }

    /// Where they start: there are as many of so many bytes as the mask names.
    #[inline(always)]
    fn start(&self, bytes: usize) -> *const u8 {
        debug_assert!(bytes * (self.first + self.mask.count_ones() as usize) <= self.row.len(), "rows have all bytes");
        self.row.as_ptr().wrapping_add(bytes * self.first)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn bytes(&self) -> __m128i {
        let from = self.start(1).cast();
        // SAFETY: the kernels below cut rows so that they have all of their bytes.
        unsafe { if WHOLE { _mm_loadu_si128(from) } else { _mm_maskz_loadu_epi8(self.mask, from.cast()) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn halves(&self) -> __m256i {
        let from = self.start(2).cast();
        // SAFETY: as above.
        unsafe { if WHOLE { _mm256_loadu_si256(from) } else { _mm256_maskz_loadu_epi16(self.mask, from.cast()) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn words(&self) -> __m512 {
        let from = self.start(4).cast();
        // SAFETY: as above.
        unsafe { if WHOLE { _mm512_loadu_ps(from) } else { _mm512_maskz_loadu_ps(self.mask, from) } }
    }
}

/// The words of a chunk, shifted to the code `from` of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_dense(plan: &Plan, row: &[u8], chunk: &Chunk, from: usize) -> __m512i {
    let words = load_chunk(row, chunk, plan.copies, load_words(&plan.word_shifts));
    match i32::try_from(from * plan.rows.coding.bits()) {
        Ok(bits) if bits > 0 => _mm512_srl_epi32(words, _mm_cvtsi32_si128(bits)),
        _ => words,
    }
}

/// Rows that each vector of a query is loaded once for.
const ABREAST: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot_floats_of<const G: usize>(plan: &Plan, queries: &Queries, rows: &Rows<'_>, out: &mut [f32], stride: usize) {
    with_reader!(plan, dot_floats::<G>(plan, queries, rows, (out, stride)));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot_floats<const G: usize, L, F>(
    plan: &Plan,
    queries: &Queries,
    rows: &Rows<'_>,
    (out, stride): (&mut [f32], usize),
    load: L,
    get: F,
) where
    L: Fn(&[u8], &Chunk, usize) -> __m512i,
    F: Fn(&[u8], __m512i, usize, usize) -> [__m512; MOST],
{
    // Rows whose scores, of all members, are a vector.
    let together = LANES / G;
    for first in (0..rows.count).step_by(together) {
        let some = together.min(rows.count - first);
        let mut parts = [_mm512_setzero_ps(); LANES];
        for from in (0..some).step_by(ABREAST) {
            prefetch(rows, first + from, ABREAST.min(some - from));
            let sums = dot_abreast::<G, _, _>(plan, queries, rows, first + from, &load, &get);
            for g in 0..G {
                for r in 0..ABREAST {
                    parts[g * together + from + r] = sums[r][g];
                }
            }
        }
        let scores = combine_each(&parts, |a, b| _mm512_add_ps(a, b));
        for (g, out) in out.chunks_mut(stride).enumerate().take(G) {
            let out = &mut out[first..first + some];
            let mask = (u16::MAX >> (LANES - some)) << (g * together);
            // SAFETY: lanes of the mask, of which `g · together` is the first, are written to `out`.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_sub(g * together), mask, scores) };
        }
    }
}

/// Products of each member with the rows from `first` on, not yet added up across lanes. Behind the last row there is that one again.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot_abreast<const G: usize, L, F>(
    plan: &Plan,
    queries: &Queries,
    rows: &Rows<'_>,
    first: usize,
    load: &L,
    get: &F,
) -> [[__m512; G]; ABREAST]
where
    L: Fn(&[u8], &Chunk, usize) -> __m512i,
    F: Fn(&[u8], __m512i, usize, usize) -> [__m512; MOST],
{
    let head_bytes = plan.rows.head_bytes();
    let (vectors, _) = queries.values.as_chunks::<LANES>();
    let code_bits = _mm_cvtsi32_si128(i32::try_from(plan.rows.coding.bits()).unwrap_or(0));
    let (mut codes, mut meta) = ([rows.codes; ABREAST], [0; ABREAST]);
    for r in 0..ABREAST {
        let row = (first + r).min(rows.count - 1);
        codes[r] = &rows.codes[row * rows.stride..][..head_bytes];
        meta[r] = row * rows.meta_stride;
    }
    let mut totals = [[_mm512_setzero_ps(); G]; ABREAST];
    for chunk in &plan.chunks {
        let mut sums = [[_mm512_setzero_ps(); G]; ABREAST];
        let mut words = [_mm512_setzero_si512(); ABREAST];
        for r in 0..ABREAST {
            words[r] = load(codes[r], chunk, 0);
        }
        let queries = &vectors[chunk.first * G..][..chunk.vectors * G];
        for (vector, queries) in queries.chunks_exact(G).enumerate() {
            for r in 0..ABREAST {
                let x = get(codes[r], words[r], chunk.first + vector, 1)[0];
                words[r] = _mm512_srl_epi32(words[r], code_bits);
                for g in 0..G {
                    sums[r][g] = _mm512_fmadd_ps(x, load_floats(&queries[g], 0), sums[r][g]);
                }
            }
        }
        for r in 0..ABREAST {
            if rows.scales.is_empty() {
                for g in 0..G {
                    totals[r][g] = _mm512_add_ps(sums[r][g], totals[r][g]);
                }
            } else {
                let scale = _mm512_permutexvar_ps(load_words(&chunk.blocks), load_floats(rows.scales, meta[r]));
                for g in 0..G {
                    totals[r][g] = _mm512_fmadd_ps(sums[r][g], scale, totals[r][g]);
                }
            }
        }
    }
    if !rows.zeros.is_empty() {
        for r in 0..ABREAST {
            let zeros = load_floats(rows.zeros, meta[r]);
            #[expect(clippy::needless_range_loop, reason = "sums whose address is taken are kept in memory")]
            for g in 0..G {
                totals[r][g] = _mm512_fmadd_ps(zeros, load_floats(&queries.blocks[g], 0), totals[r][g]);
            }
        }
    }
    totals
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn weigh_of<const G: usize, const V: usize>(
    plan: &Plan,
    weights: (&[f32], usize),
    rows: &Rows<'_>,
    sums: &mut [f32],
    zeros: &mut [f32],
) {
    with_reader!(plan, weigh_floats::<G, V>(plan, weights, rows, sums, zeros));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn weigh_floats<const G: usize, const V: usize, L, F>(
    plan: &Plan,
    weights: (&[f32], usize),
    rows: &Rows<'_>,
    sums: &mut [f32],
    zeros: &mut [f32],
    load: L,
    get: F,
) where
    L: Fn(&[u8], &Chunk, usize) -> __m512i,
    F: Fn(&[u8], __m512i, usize, usize) -> [__m512; MOST],
{
    let mut ahead = rows.ahead;
    for chunk in &plan.chunks {
        let (mut vector, end) = (chunk.first, chunk.first + chunk.vectors);
        while vector < end {
            let rows = Rows { ahead: std::mem::take(&mut ahead), ..*rows };
            // As many vectors at a time as registers hold sums of.
            if vector + V <= end {
                weigh_vectors::<G, V, _, _>(plan, chunk, vector, weights, &rows, sums, zeros, &load, &get);
                vector += V;
            } else if vector + 2 <= end {
                weigh_vectors::<G, 2, _, _>(plan, chunk, vector, weights, &rows, sums, zeros, &load, &get);
                vector += 2;
            } else {
                weigh_vectors::<G, 1, _, _>(plan, chunk, vector, weights, &rows, sums, zeros, &load, &get);
                vector += 1;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[expect(clippy::too_many_arguments, reason = "a loop of its own for every number of vectors")]
fn weigh_vectors<const G: usize, const V: usize, L, F>(
    plan: &Plan,
    chunk: &Chunk,
    first: usize,
    (weights, stride): (&[f32], usize),
    rows: &Rows<'_>,
    sums: &mut [f32],
    zeros: &mut [f32],
    load: &L,
    get: &F,
) where
    L: Fn(&[u8], &Chunk, usize) -> __m512i,
    F: Fn(&[u8], __m512i, usize, usize) -> [__m512; MOST],
{
    let head_bytes = plan.rows.head_bytes();
    let sums = &mut sums[first * G * LANES..][..V * G * LANES];
    let mut kept: [[__m512; G]; V] =
        std::array::from_fn(|v| std::array::from_fn(|g| load_floats(sums, (v * G + g) * LANES)));
    let mut kept_zeros: [__m512; G] = std::array::from_fn(|g| load_floats(zeros, g * LANES));
    let blocks = load_words(&chunk.blocks);
    let weights: [&[f32]; G] = std::array::from_fn(|g| &weights[g * stride..][..rows.count]);
    #[expect(clippy::needless_range_loop, reason = "a row has a weight of each member")]
    for row in 0..rows.count {
        prefetch(rows, row, 1);
        let codes = &rows.codes[row * rows.stride..][..head_bytes];
        let factors: [__m512; G] = if rows.scales.is_empty() {
            std::array::from_fn(|g| _mm512_set1_ps(weights[g][row]))
        } else {
            let scale = _mm512_permutexvar_ps(blocks, load_floats(rows.scales, row * rows.meta_stride));
            std::array::from_fn(|g| _mm512_mul_ps(scale, _mm512_set1_ps(weights[g][row])))
        };
        let words = load(codes, chunk, first - chunk.first);
        let x = get(codes, words, first, V);
        for (kept, &x) in kept.iter_mut().zip(&x) {
            for g in 0..G {
                kept[g] = _mm512_fmadd_ps(x, factors[g], kept[g]);
            }
        }
        if first == 0 && !rows.zeros.is_empty() {
            let zeros = load_floats(rows.zeros, row * rows.meta_stride);
            for g in 0..G {
                kept_zeros[g] = _mm512_fmadd_ps(zeros, _mm512_set1_ps(weights[g][row]), kept_zeros[g]);
            }
        }
    }
    for (kept, sums) in kept.iter().flatten().zip(sums.chunks_exact_mut(LANES)) {
        store(*kept, sums);
    }
    for (kept, zeros) in kept_zeros.iter().zip(zeros.chunks_exact_mut(LANES)) {
        store(*kept, zeros);
    }
}
