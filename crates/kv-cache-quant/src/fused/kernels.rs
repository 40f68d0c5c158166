//! The loops of [`super::ints`].
#![expect(unsafe_code, reason = "loads through pointers, and calls of functions compiled for found instructions")]

use super::avx512::{Avx512, Rows, ask_for_line, load_floats, load_words, prefetch, store};
use super::generated::attention::{dot_tiles, interleave, weigh_tiles};
use super::ints::{IntPlan, RUN};
use super::plan::LANES;
use super::queries::IntQueries;
use std::arch::x86_64::*;
use std::ops::Range;

/// Codes of a register.
pub(super) type Line = [u8; 64];

/// Codes and weights on their way, kept between calls.
#[derive(Debug)]
pub(super) struct Turned {
    pub(super) codes: Vec<Line>,
    pub(super) padded: [u8; LANES * PADDED],
    /// `[head][member][four rows][high, low]`; where there are several groups, `[four rows][high, low]` of sixteen at a time:
    /// see [`IntPlan::place`]. Of 8 bits there is no high byte.
    pub(super) weights: Vec<i32>,
    /// Of each group, sixteen at a time.
    pub(super) steps: Vec<[f32; LANES]>,
    /// `[head][member][group]`, 16 of each: what the values of code 0 add.
    pub(super) parts: Vec<f32>,
}

/// Fours of rows of a run.
pub(super) const QUADS: usize = RUN / 4;

impl Default for Turned {
    fn default() -> Self {
        Self {
            codes: Vec::new(),
            padded: [0; LANES * PADDED],
            weights: Vec::new(),
            steps: Vec::new(),
            parts: Vec::new(),
        }
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
        packs: impl Iterator<Item = (&'a IntQueries, usize)>,
        (out, stride): (&mut [f32], usize),
        turned: &mut Turned,
    ) {
        let mut rows = *rows;
        let codes = if plan.turned {
            rows.codes.as_chunks().0
        } else {
            turned.codes.resize(RUN / LANES * plan.turned_words(), [0; 64]);
            for first in (0..rows.count).step_by(LANES) {
                // SAFETY: a value of `Self` proves the instructions.
                unsafe {
                    match plan.width {
                        64 => turn_rows::<64>(plan, &rows, first, turned),
                        32 => turn_rows::<32>(plan, &rows, first, turned),
                        _ => turn_rows::<16>(plan, &rows, first, turned),
                    }
                }
            }
            rows.ahead = &[];
            turned.codes.as_slice()
        };
        for (queries, at) in packs {
            // SAFETY: as above.
            unsafe { dot_tiles(plan, queries, codes, &rows, (&mut out[at..], stride)) }
            rows.ahead = &[];
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

    /// `sums[register][member] += Σ_row weight · row` of turned codes, without the values of code 0, whose part is added to
    /// `zeros[member][block]`. Members are those from `item` on of what was rounded.
    pub(super) fn weigh_integers(
        self,
        plan: &IntPlan,
        (item, members): (usize, usize),
        rows: &Rows<'_>,
        (sums, zeros): (&mut [f32], &mut [f32]),
        turned: &Turned,
    ) {
        zeros.iter_mut().zip(&turned.parts[item * LANES..]).for_each(|(zero, part)| *zero += part);
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { weigh_tiles(plan, (item, members), rows, turned, sums) }
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

/// Sixteen rows of sixteen words become columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    let four = |g: usize| turn_quarters([rows[4 * g], rows[4 * g + 1], rows[4 * g + 2], rows[4 * g + 3]]);
    turn_sixteen([four(0), four(1), four(2), four(3)])
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
            let turned = transpose(&std::array::from_fn(load));
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
        let out = &mut out[first / LANES * plan.turned_words() + from / 4..][..W / 4];
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
                    store_turned(&transpose(&x), signs, out);
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

/// Twice the values of E2M1, and 12 more, so that none is negative.
const DOUBLED: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// The numbers above the least that the codes of a register stand for, field by field.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fields_of<const BITS: u32, const FIELDS: usize, const E2M1: bool>(x: __m512i) -> [__m512i; FIELDS] {
    let mask = _mm512_set1_epi8((u8::MAX >> (8 - BITS)).cast_signed());
    let codes: [__m512i; FIELDS] = std::array::from_fn(|field| match (BITS, field) {
        (8, _) => x,
        (_, 0) => _mm512_and_si512(x, mask),
        (4, _) => _mm512_and_si512(_mm512_srli_epi16::<4>(x), mask),
        (_, 1) => _mm512_and_si512(_mm512_srli_epi16::<2>(x), mask),
        (_, 2) => _mm512_and_si512(_mm512_srli_epi16::<4>(x), mask),
        _ => _mm512_and_si512(_mm512_srli_epi16::<6>(x), mask),
    });
    if !E2M1 {
        return codes;
    }
    // SAFETY: 16 bytes.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(DOUBLED.as_ptr().cast()) });
    codes.map(|codes| _mm512_shuffle_epi8(table, codes))
}

/// What is asked for while codes are worked on: a line for each of theirs, so that requests are spread evenly and none waits for
/// those before.
#[derive(Clone, Copy)]
struct Soon {
    from: *const Line,
    step: usize,
}

impl Soon {
    /// Of the rows' part that lies ahead; where there is none, what is at hand.
    fn new(ahead: &[u8], codes: &[Line]) -> Self {
        match ahead {
            [] => Self { from: codes.as_ptr(), step: 0 },
            ahead => Self { from: ahead.as_ptr().cast(), step: 1 },
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn ask(self, line: usize) {
        ask_for_line(self.from.wrapping_add(self.step * line).cast());
    }
}

/// Scores of turned rows, sixteen at a time. `SETS` are sums side by side, so that none waits for the one before.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dot_tile<
    const BITS: u32,
    const FIELDS: usize,
    const E2M1: bool,
    const PARTS: usize,
    const G: usize,
    const SETS: usize,
>(
    plan: &IntPlan,
    queries: &IntQueries,
    codes: &[Line],
    rows: &Rows<'_>,
    (out, stride): (&mut [f32], usize),
) {
    let (words, per_word) = (plan.words(), FIELDS * G * PARTS);
    let lines = if plan.turned { words } else { plan.turned_words() };
    let tiles = rows.count.div_ceil(LANES);
    let soon = Soon::new(rows.ahead, codes);
    let steps: [__m512; G] = std::array::from_fn(|g| _mm512_set1_ps(queries.steps[g]));
    for (tile, codes) in codes.chunks_exact(lines).take(tiles).enumerate() {
        let first = tile * LANES;
        let mut scores = [_mm512_setzero_ps(); G];
        for block in 0..plan.blocks {
            let from = block * plan.block_words;
            let to = words.min(from + plan.block_words);
            // Of high bytes, then of low ones.
            let mut sums = [[[_mm512_setzero_si512(); G]; PARTS]; SETS];
            if rows.zeros.is_empty() {
                sums[0][PARTS - 1] = std::array::from_fn(|g| _mm512_set1_epi32(queries.least[block * G + g]));
            }
            macro_rules! add {
                ($set:literal, $codes:expr, $queries:expr) => {{
                    let codes = fields_of::<BITS, FIELDS, E2M1>(load_line($codes));
                    let queries: &[i32] = $queries;
                    for field in 0..FIELDS {
                        let set = ($set * FIELDS + field) % SETS;
                        for g in 0..G {
                            for part in 0..PARTS {
                                let query = _mm512_set1_epi32(queries[(field * G + g) * PARTS + part]);
                                let sum = &mut sums[set][part][g];
                                *sum = _mm512_dpbusd_epi32(*sum, codes[field], query);
                            }
                        }
                    }
                }};
            }
            let (fours, rest) = codes[from..to].as_chunks::<4>();
            let mut queries_of_words = queries.words[from * per_word..to * per_word].chunks_exact(4 * per_word);
            for (index, (codes, queries)) in fours.iter().zip(&mut queries_of_words).enumerate() {
                (0..4).for_each(|word| soon.ask(tile * words + from + 4 * index + word));
                add!(0, &codes[0], &queries[..per_word]);
                add!(1, &codes[1], &queries[per_word..2 * per_word]);
                add!(2, &codes[2], &queries[2 * per_word..3 * per_word]);
                add!(3, &codes[3], &queries[3 * per_word..]);
            }
            let rest = (4 * fours.len()..).zip(rest.iter().zip(queries_of_words.remainder().chunks_exact(per_word)));
            for (word, (codes, queries)) in rest {
                soon.ask(tile * words + from + word);
                add!(0, codes, queries);
            }
            let scale = load_floats(rows.scales, block * rows.meta_stride + first);
            for g in 0..G {
                let mut sum = _mm512_setzero_si512();
                for part in 0..PARTS {
                    sum = _mm512_slli_epi32::<8>(sum);
                    for sums in &sums {
                        sum = _mm512_add_epi32(sum, sums[part][g]);
                    }
                }
                scores[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, scores[g]);
                if !rows.zeros.is_empty() {
                    let zero = load_floats(rows.zeros, block * rows.meta_stride + first);
                    scores[g] = _mm512_fmadd_ps(zero, _mm512_set1_ps(queries.sums[block * G + g]), scores[g]);
                }
            }
        }
        let some = LANES.min(rows.count - first);
        for g in 0..G {
            store(_mm512_mul_ps(scores[g], steps[g]), &mut out[g * stride + first..][..some]);
        }
    }
}

/// Adds weighted rows to sums: `G` members from `member` on of those that start at `item`, `J` registers at a time where
/// there are as many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn weigh_tile<
    const BITS: u32,
    const FIELDS: usize,
    const E2M1: bool,
    const PARTS: usize,
    const G: usize,
    const J: usize,
>(
    plan: &IntPlan,
    (item, member, members): (usize, usize, usize),
    rows: &Rows<'_>,
    turned: &Turned,
    sums: &mut [f32],
) {
    let (mut at, registers) = (0, plan.lane_blocks.len());
    while at < registers {
        macro_rules! some {
            ($count:expr) => {{
                if plan.blocks == 1 {
                    weigh_registers::<BITS, FIELDS, E2M1, PARTS, G, { $count }, 1>(
                        plan,
                        at,
                        (item, member, members),
                        rows,
                        turned,
                        sums,
                    );
                } else {
                    weigh_registers::<BITS, FIELDS, E2M1, PARTS, G, { $count }, LANES>(
                        plan,
                        at,
                        (item, member, members),
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
fn weigh_registers<
    const BITS: u32,
    const FIELDS: usize,
    const E2M1: bool,
    const PARTS: usize,
    const G: usize,
    const J: usize,
    const W: usize,
>(
    plan: &IntPlan,
    first: usize,
    (item, member, members): (usize, usize, usize),
    rows: &Rows<'_>,
    turned: &Turned,
    sums: &mut [f32],
) {
    let registers = plan.lane_blocks.len();
    let codes: &[Line] = if plan.turned { rows.codes.as_chunks().0 } else { &turned.codes };
    let quads = rows.count.div_ceil(4).min(QUADS);
    let soon = Soon::new(if plan.turned && member == 0 { rows.ahead } else { &[] }, codes);
    // Where the groups of each member are, and in sixteen that of each lane.
    let (mut places, mut groups) = ([(0, 0); G], [[_mm512_setzero_si512(); J]; G]);
    for g in 0..G {
        places[g] = plan.place(item + member + g);
        let first_group = _mm512_set1_epi32(i32::try_from(places[g].1).unwrap_or(0));
        for (group, blocks) in groups[g].iter_mut().zip(&plan.lane_blocks[first..]) {
            *group = _mm512_add_epi32(load_words(blocks), first_group);
        }
    }
    let weights: [&[[[i32; W]; PARTS]; QUADS]; G] = std::array::from_fn(|g| {
        let index = if W < LANES { item + member + g } else { places[g].0 };
        let own = turned.weights[index * PARTS * QUADS * W..].as_chunks::<W>().0.as_chunks::<PARTS>().0;
        own.first_chunk().unwrap_or(&[[[0; W]; PARTS]; QUADS])
    });
    // Of high bytes, then of low ones.
    let mut products = [[[[_mm512_setzero_si512(); G]; FIELDS]; J]; PARTS];
    for (quad, codes) in (0..quads).zip(codes.chunks_exact(registers)) {
        let codes = &codes[first..][..J];
        for j in 0..J {
            soon.ask(quad * registers + first + j);
            let codes = fields_of::<BITS, FIELDS, E2M1>(load_line(&codes[j]));
            for g in 0..G {
                for (own, products) in weights[g][quad].iter().zip(&mut products) {
                    let own = if W < LANES {
                        _mm512_set1_epi32(own[0])
                    } else {
                        // SAFETY: 16 words.
                        _mm512_permutexvar_epi32(groups[g][j], unsafe { _mm512_loadu_si512(own.as_ptr().cast()) })
                    };
                    for field in 0..FIELDS {
                        products[j][field][g] = _mm512_dpbusd_epi32(products[j][field][g], codes[field], own);
                    }
                }
            }
        }
    }
    for j in 0..J {
        for g in 0..G {
            let (sixteen, at) = places[g];
            let step = if W < LANES {
                _mm512_set1_ps(turned.steps[sixteen][at])
            } else {
                _mm512_permutexvar_ps(groups[g][j], load_floats(&turned.steps[sixteen], 0))
            };
            for field in 0..FIELDS {
                let mut sum = _mm512_setzero_si512();
                for products in &products {
                    sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(sum), products[j][field][g]);
                }
                let sums = &mut sums[(((first + j) * FIELDS + field) * members + member + g) * LANES..][..LANES];
                store(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, load_floats(sums, 0)), sums);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::Coding;
    use quant_core::FloatKind;

    #[test]
    fn bytes_of_e2m1_are_its_steps_above_the_least() {
        let least = Coding::E2m1.integers().map(|integers| integers.least);
        for (code, byte) in (0..).zip(DOUBLED) {
            assert_eq!(Some(f32::from(byte) - 2.0 * FloatKind::E2m1.decode(code)), least.map(|least| -least));
        }
    }
}
