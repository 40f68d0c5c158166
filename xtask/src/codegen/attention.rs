//! Attention on packed integers with AVX-512: the shapes of its tiles, and what differs by the width of codes and of loads.

use super::fill;

/// Codes: a pattern of bits and whether they are E2M1, both.
const CODES: [(&str, usize, bool); 4] =
    [("2, _", 2, false), ("4, false", 4, false), ("4, true", 4, true), ("_, _", 8, false)];

/// How many queries are taken together.
const TOGETHER: [usize; 3] = [1, 2, 4];

/// Sums that are in registers at a time.
const SUMS: usize = 16;

/// Bytes of a row that are loaded at once: the register, what its intrinsics are called, its mask of words, and how the signs
/// become one.
const LOADS: [(usize, [&str; 5]); 3] = [
    (64, ["__m512i", "_mm512", "si512", "mask", "signs(plan)"]),
    (32, ["__m256i", "_mm256", "si256", "mask.to_le_bytes()[0]", "_mm512_castsi512_si256(signs(plan))"]),
    (16, ["__m128i", "_mm", "si128", "mask.to_le_bytes()[0]", "_mm512_castsi512_si128(signs(plan))"]),
];

/// Vectors of 32-bit lanes whose codes are read at once.
const VECTORS: usize = 8;

pub(super) fn write() -> String {
    // The last of a list stands for what else there might be.
    let pattern = |index: usize, value: usize| if index == 2 { "_".to_owned() } else { value.to_string() };
    let (mut scores, mut sums) = (String::new(), String::new());
    for (parts, (codes, bits, e2m1)) in [1, 2].into_iter().flat_map(|parts| CODES.map(|codes| (parts, codes))) {
        let fields = 8 / bits;
        let kind = format!("{bits}, {fields}, {e2m1}, {parts}");
        for (place, together) in TOGETHER.into_iter().enumerate() {
            let arm = format!("({}, {codes}, {})", if parts == 1 { "1" } else { "_" }, pattern(place, together));
            // Sums side by side, so that none waits for the one before. E2M1 comes in short groups, whose sums are soon added up.
            let sets = if e2m1 { 1 } else { (SUMS / (parts * together)).min(4) };
            scores += &format!("{arm} => dot_tile::<{kind}, {together}, {sets}>(plan, queries, codes, rows, out),\n");
            // So many queries are in registers at a time, for so many registers of codes; heads of 128 have as many as codes bits.
            let members = together.min(SUMS / (parts * fields));
            let registers = (SUMS / (parts * fields * members)).min(bits);
            let tile = format!("weigh_tile::<{kind}, {members}, {registers}>");
            let call = |first: usize| format!("{tile}(plan, (item, {first}, members), rows, turned, sums);");
            let calls: String = (0..together).step_by(members).map(call).collect();
            sums += &format!("{arm} => {{ {calls} }}\n");
        }
    }
    let skip = |bits: usize| {
        let shifts = (1..VECTORS).map(|code| format!(", _mm512_srli_epi32::<{}>(words)", bits * code));
        format!("[words{}]", shifts.collect::<String>())
    };
    let (mut chosen, mut interleaved) = (String::new(), String::new());
    for (index, (bytes, [register, mm, si, mask, low])) in LOADS.into_iter().enumerate() {
        let bytes = bytes.to_string();
        chosen += &format!("{} => interleave{bytes}(plan, rows, turned),\n", pattern(index, LOADS[index].0));
        let values = [("bytes", bytes.as_str()), ("register", register), ("mm", mm), ("si", si)];
        interleaved += &fill(INTERLEAVE, &[&values[..], &[("mask", mask), ("low", low)]].concat());
    }
    let values = [("scores", scores), ("sums", sums), ("two", skip(2)), ("four", skip(4)), ("chosen", chosen)];
    fill(&fill(MODULE, &values), &[("interleaved", interleaved), ("vectors", VECTORS.to_string())])
}

const MODULE: &str = "//! What attention does for each width of codes and of loads.
#![expect(unsafe_code, reason = \"loads through pointers\")]

use super::super::avx512::{Rows, prefetch};
use super::super::ints::IntPlan;
use super::super::kernels::{Line, PADDED, Turned, dot_tile, pad, signs, start, weigh_tile};
use super::super::plan::LANES;
use super::super::queries::IntQueries;
use std::arch::x86_64::*;

/// Vectors that are read at once.
pub(in super::super) const MOST: usize = $vectors;

/// The words, and the words without their first codes.
#[inline]
#[target_feature(enable = \"avx512f\")]
pub(in super::super) fn skip_codes<const BITS: u32>(words: __m512i) -> [__m512i; MOST] {
    if BITS == 2 { $two } else { $four }
}

/// Scores of turned rows.
#[inline]
#[target_feature(enable = \"avx512f,avx512bw,avx512vnni\")]
pub(in super::super) fn dot_tiles(
    plan: &IntPlan,
    queries: &IntQueries,
    codes: &[Line],
    rows: &Rows<'_>,
    out: (&mut [f32], usize),
) {
    match (plan.parts, plan.bits, plan.e2m1, queries.members) {
        $scores
    }
}

/// Adds weighted rows to sums.
#[inline]
#[target_feature(enable = \"avx512f,avx512bw,avx512vl,avx512vnni\")]
pub(in super::super) fn weigh_tiles(
    plan: &IntPlan,
    (item, members): (usize, usize),
    rows: &Rows<'_>,
    turned: &Turned,
    sums: &mut [f32],
) {
    match (plan.parts, plan.bits, plan.e2m1, members) {
        $sums
    }
}

/// Turns rows for sums of values: four side by side, so that a lane has a byte of each.
#[inline]
#[target_feature(enable = \"avx512f,avx512bw,avx512vl\")]
pub(in super::super) fn interleave(plan: &IntPlan, rows: &Rows<'_>, turned: &mut Turned) {
    match plan.width {
        $chosen
    }
}
$interleaved";

const INTERLEAVE: &str = "
#[inline]
#[target_feature(enable = \"avx512f,avx512bw,avx512vl\")]
fn interleave$bytes(plan: &IntPlan, rows: &Rows<'_>, turned: &mut Turned) {
    let Turned { codes: out, padded, .. } = turned;
    let signs: $register = $low;
    let (start, quad_bytes) = (start(plan, rows), plan.loads * 4 * $bytes);
    let out = out.as_flattened_mut();
    for (quad, out) in out.chunks_exact_mut(quad_bytes).take(rows.count.div_ceil(4)).enumerate() {
        let some = (rows.count - 4 * quad).min(4);
        prefetch(rows, 4 * quad, some);
        for (load, out) in out.chunks_exact_mut(4 * $bytes).enumerate() {
            let from = load * $bytes;
            let bytes = (plan.head_bytes - from).min($bytes);
            let mask = u16::MAX >> (LANES - bytes / 4);
            // SAFETY: `start` has checked that the words of the mask can be read of rows that are there; of padded ones
            // 64 bytes can.
            let x = unsafe {
                let (start, stride) = if some == 4 {
                    (start.add(4 * quad * rows.stride + from), rows.stride)
                } else {
                    // The weights of rows that are not there are 0.
                    (pad(rows, 4 * quad..4 * quad + some, from..from + bytes, padded), PADDED)
                };
                [
                    $mm_xor_$si($mm_maskz_loadu_epi32($mask, start.cast()), signs),
                    $mm_xor_$si($mm_maskz_loadu_epi32($mask, start.add(stride).cast()), signs),
                    $mm_xor_$si($mm_maskz_loadu_epi32($mask, start.add(2 * stride).cast()), signs),
                    $mm_xor_$si($mm_maskz_loadu_epi32($mask, start.add(3 * stride).cast()), signs),
                ]
            };
            let (ab, ab2) = ($mm_unpacklo_epi8(x[0], x[1]), $mm_unpackhi_epi8(x[0], x[1]));
            let (cd, cd2) = ($mm_unpacklo_epi8(x[2], x[3]), $mm_unpackhi_epi8(x[2], x[3]));
            let turned = [
                $mm_unpacklo_epi16(ab, cd),
                $mm_unpackhi_epi16(ab, cd),
                $mm_unpacklo_epi16(ab2, cd2),
                $mm_unpackhi_epi16(ab2, cd2),
            ];
            for (out, x) in out.chunks_exact_mut($bytes).zip(turned) {
                // SAFETY: a register has as many bytes.
                unsafe { $mm_storeu_$si(out.as_mut_ptr().cast(), x) }
            }
        }
    }
}
";
