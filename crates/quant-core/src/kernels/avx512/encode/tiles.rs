//! Rows of whole tiles in one pass.
//!
//! While the codes of a tile are made, the extremes of a later one are found in the same loop, so that neither memory nor the
//! core waits for the other. The scales of the blocks between them are computed before each tile, 16 at a time, in so few
//! instructions that the codes that follow are made while those wait for each other.

use super::super::super::RowEncoder;
use super::super::super::encode::{Fitted, Kind};
use super::super::super::ops::{self, Bins, Element, SmallFloat, Unit};
use super::super::lines::Lines;
use super::super::prefetch;
use super::codes::{
    self, BOOK, Constants, DIVIDE, FLOAT, KEEP, Lanes, MULTIPLY, QUOTIENT, SIGNED, UNSIGNED, load, magnitude,
};
use super::fit::{Fitting, Params};
use std::arch::x86_64::*;

/// Values whose extremes are found together: so many, or half where blocks are an odd multiple of that. Twice as many would
/// share the latency of computing scales among more, but three tiles and what is asked for shall fit a cache of 32 KiB.
pub(super) const TILE: usize = 1024;
const LEAST_TILE: usize = 512;
/// Pieces of a tile.
pub(super) const PIECES: usize = TILE / 64;
/// Blocks of a tile, at most.
pub(super) const BLOCKS: usize = TILE / 16;
/// Bytes between the values whose extremes are found and those that are asked for.
pub(super) const AHEAD: usize = 16 << 10;

/// 64 values.
pub(super) type Piece = [f32; 64];

/// How many tiles are done exactly after one in which more than half of the pieces had to be: its values are multiples of
/// their scales, zero for instance.
const EXACT_TILES: u32 = 8;

/// Encodes the tiles of rows, see [`tiles`].
type Coder = unsafe fn(&Constants, Fitting<'_>, Lines<'_>, Rows<'_>) -> Option<usize>;

/// See [`Backend::encode_tiles`](super::super::super::Backend::encode_tiles).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn encode_tiles(
    plan: &RowEncoder,
    fitted: &mut Fitted,
    x: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
    zeros: &mut [u8],
) -> Option<usize> {
    let extremes = plan.fits_magnitudes() || plan.fits_ranges_with_zero();
    if !Lines::fit(codes, plan.stream) || !extremes || plan.negative_zero.is_some() {
        return Some(0);
    }
    let element = match &plan.element {
        Kind::Float16(kind) => return cast_to_halves(plan, *kind, x, codes),
        Kind::Small(element) => element,
    };
    let group = matches!(plan.group, 16 | 32 | 64 | 128 | 256) || plan.group.is_multiple_of(LEAST_TILE);
    if !(group || plan.unit == Unit::Keep) {
        return Some(0);
    }
    let Some(coder) = coder(plan, element, is_x86_feature_detected!("avx512vbmi")) else { return Some(0) };
    let rows = Rows::new(plan, x, scales, zeros);
    if rows.tiles == 0 {
        return Some(0);
    }
    let fitting = Fitting::new(plan, fitted, &rows);
    let codes = &mut codes[..rows.tiles * rows.tile / 8 * plan.code_bits as usize];
    // SAFETY: coders need the features of this function.
    unsafe { coder(&codes::constants(element, plan.positive_zero), fitting, Lines::new(codes, plan.stream), rows) }
}

/// The loop for a format, for a processor that permutes bytes (VBMI) or does not; `None` where there is none.
fn coder(plan: &RowEncoder, element: &Element, vbmi: bool) -> Option<Coder> {
    match (element, plan.unit) {
        (Element::Int { .. }, Unit::Multiply) => of_bits::<MULTIPLY, SIGNED>(plan, vbmi),
        (&Element::Int { low, .. }, Unit::Divide) if low < 0.0 => of_bits::<QUOTIENT, SIGNED>(plan, vbmi),
        (Element::Int { .. }, Unit::Divide) => of_bits::<QUOTIENT, UNSIGNED>(plan, vbmi),
        (Element::Float(_), Unit::Keep) => of_bits::<KEEP, FLOAT>(plan, vbmi),
        (Element::Float(_), Unit::Multiply) => of_bits::<MULTIPLY, FLOAT>(plan, vbmi),
        (Element::Float(_), Unit::Divide) => of_bits::<QUOTIENT, FLOAT>(plan, vbmi),
        (Element::Book(Bins { cells: Some(_), .. }), Unit::Multiply) => of_group::<MULTIPLY, BOOK, 4>(plan, vbmi),
        _ => None,
    }
}

fn of_bits<const UNIT: u8, const KIND: u8>(plan: &RowEncoder, vbmi: bool) -> Option<Coder> {
    match plan.code_bits {
        4 => of_group::<UNIT, KIND, 4>(plan, vbmi),
        6 => of_group::<UNIT, KIND, 6>(plan, vbmi),
        8 => of_group::<UNIT, KIND, 8>(plan, vbmi),
        _ => None,
    }
}

fn of_group<const UNIT: u8, const KIND: u8, const BITS: u32>(plan: &RowEncoder, vbmi: bool) -> Option<Coder> {
    Some(match plan.group {
        _ if UNIT == KEEP => tiles::<UNIT, KIND, BITS, 0>,
        16 => of_kept::<UNIT, KIND, BITS, 4>(vbmi),
        32 => of_kept::<UNIT, KIND, BITS, 2>(vbmi),
        _ => of_kept::<UNIT, KIND, BITS, 1>(vbmi),
    })
}

fn of_kept<const UNIT: u8, const KIND: u8, const BITS: u32, const KEPT: usize>(vbmi: bool) -> Coder {
    if vbmi && BITS == 4 && can_be_fixed::<UNIT, KIND, BITS>() {
        tiles_by_bytes::<UNIT, KIND, BITS, KEPT>
    } else {
        tiles::<UNIT, KIND, BITS, KEPT>
    }
}

/// Casts to a 16-bit float by the operations of `SmallFloat::encode16`, for f16 by the instruction.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn cast_to_halves(plan: &RowEncoder, kind: SmallFloat, x: &[f32], codes: &mut [u8]) -> Option<usize> {
    let half = kind.shift == 13;
    let largest = _mm512_set1_ps(f32::from_bits(kind.max));
    let mut most = _mm512_setzero_si512();
    let mut code = |x: &[f32]| {
        // SAFETY: the slice is checked to hold 16 floats.
        let x = unsafe { _mm512_loadu_ps(x[..16].as_ptr()) };
        most = _mm512_max_epu32(most, magnitude(x));
        // The lesser magnitude of the two with the sign of x.
        let x = _mm512_range_ps::<0b0010>(x, largest);
        if half {
            return _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        }
        // All but the lowest binade of bf16 are those of f32, and that one has the same steps.
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
    };
    let pieces = x.as_chunks::<32>().0;
    let mut lines = Lines::new(&mut codes[..64 * pieces.len()], plan.stream);
    for piece in pieces {
        prefetch(piece, plan.ahead);
        prefetch(&piece[16..], plan.ahead);
        lines.push(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(code(piece)), code(&piece[16..])));
    }
    lines.finish();
    (_mm512_reduce_max_epu32(most) < ops::INFINITE).then_some(32 * pieces.len())
}

/// What is encoded, in tiles.
pub(super) struct Rows<'a> {
    x: &'a [f32],
    /// Where scales go.
    pub(super) scales: &'a mut [u8],
    /// Bytes of one.
    pub(super) stored: usize,
    /// Where zero points go.
    pub(super) zeros: &'a mut [u8],
    /// Values of a tile.
    pub(super) tile: usize,
    /// Tiles of a block, if it has several.
    pub(super) per_block: usize,
    /// Tiles there are; blocks are whole.
    pub(super) tiles: usize,
}

impl<'a> Rows<'a> {
    fn new(plan: &RowEncoder, x: &'a [f32], scales: &'a mut [u8], zeros: &'a mut [u8]) -> Self {
        let group = if plan.unit == Unit::Keep { TILE } else { plan.group };
        let tile =
            if TILE.is_multiple_of(group) { TILE } else { 1 << group.trailing_zeros().min(TILE.trailing_zeros()) };
        let per_block = group.div_ceil(tile);
        let tiles = x.len() / (per_block * tile) * per_block;
        Self { x, scales, stored: plan.scale_bytes(), zeros, tile, per_block, tiles }
    }

    /// Where scales of so many blocks go.
    pub(super) fn stored_scales(&mut self, first: usize, count: usize) -> &mut [u8] {
        &mut self.scales[first * self.stored..][..count * self.stored]
    }

    pub(super) fn tile(&self, i: usize) -> &'a [Piece] {
        self.x[i * self.tile..][..self.tile].as_chunks().0
    }
}

/// [`go_through`], compiled for the features that all processors with AVX-512 here have.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn tiles<const UNIT: u8, const KIND: u8, const BITS: u32, const KEPT: usize>(
    all: &Constants,
    fitting: Fitting<'_>,
    lines: Lines<'_>,
    rows: Rows<'_>,
) -> Option<usize> {
    go_through::<UNIT, KIND, BITS, KEPT, false>(all, fitting, lines, rows)
}

/// The same, compiled for processors that permute bytes (VBMI) as well.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi2")]
fn tiles_by_bytes<const UNIT: u8, const KIND: u8, const BITS: u32, const KEPT: usize>(
    all: &Constants,
    fitting: Fitting<'_>,
    lines: Lines<'_>,
    rows: Rows<'_>,
) -> Option<usize> {
    go_through::<UNIT, KIND, BITS, KEPT, true>(all, fitting, lines, rows)
}

/// Goes through the tiles. The extremes that are found belong to the tile one block and one tile further, so that those
/// of a block are complete one tile before its codes are made: in that tile it is fitted. `KEPT` of four vectors have scales
/// of their own, and a tile as many sixteens of blocks, if blocks are so short. With `BY_BYTES`, only for callers with VBMI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn go_through<const UNIT: u8, const KIND: u8, const BITS: u32, const KEPT: usize, const BY_BYTES: bool>(
    all: &Constants,
    mut fitting: Fitting<'_>,
    mut lines: Lines<'_>,
    mut rows: Rows<'_>,
) -> Option<usize> {
    let all = *all;
    let mut params = [Params::ONE; 2];
    if !fitting.begin::<KIND, KEPT>(&mut rows, &mut params[0])? {
        return Some(0);
    }
    // Pieces that fill whole lines.
    let step = match BITS {
        8 => 1,
        4 => 2,
        _ => 4,
    };
    let shift = (fitting.extremes.group / 64).max(1).trailing_zeros();
    let mut turn = false;
    let mut largest = _mm512_setzero_si512();
    let mut exact_tiles = 0_u32;
    let mut done = rows.tiles;
    // Tiles left of the block whose codes are made, and the number of the next.
    let (mut left, mut block) = (rows.per_block, fitting.count);
    for i in 0..rows.tiles {
        if i == done {
            break;
        }
        left -= 1;
        let fits = UNIT != KEEP && left == 0 && i + 1 < rows.tiles;
        // After the last there is nothing to find; finding something again spares a branch.
        let later = i + rows.per_block + 1;
        let (x, next) = (rows.tile(i), rows.tile(if UNIT != KEEP && later < rows.tiles { later } else { i }));
        let ahead = AHEAD + 4 * (if UNIT == KEEP { 0 } else { later - i }) * rows.tile;
        let [a, b] = &mut params;
        let (params, next_params) = if turn { (&*b, a) } else { (&*a, b) };
        let fixed = can_be_fixed::<UNIT, KIND, BITS>() && params.fixed && exact_tiles == 0;
        let mut uncertain = 0_usize;
        if fits {
            fitting.fit::<KIND, KEPT>(&mut rows, block, next_params)?;
        }
        for (at, (x, next)) in x.chunks_exact(step).zip(next.chunks_exact(step)).enumerate() {
            let first = step * at;
            let mut look_ahead = |p: usize| {
                for line in x[p].as_chunks::<16>().0 {
                    prefetch(line, ahead);
                }
                if UNIT == KEEP {
                    for x in load(&x[p]) {
                        largest = _mm512_max_epu32(largest, magnitude(x));
                    }
                } else {
                    fitting.extremes.take::<KIND, KEPT>(first + p, &next[p]);
                }
            };
            let blocks = |p: usize| blocks_of::<KEPT>(first + p, shift);
            let numbers = |p: usize| {
                let of = |params: &[f32; BLOCKS]| blocks(p).map(|i| _mm512_set1_ps(params[i]));
                codes::numbers::<KIND, BITS>(load(&x[p]), of(&params.high), of(&params.zeros), &all)
            };
            if BY_BYTES && fixed {
                look_ahead(0);
                look_ahead(1);
                let n = [numbers(0), numbers(1)];
                if codes::certain(_mm512_min_epu16(codes::least_fractions(n[0]), codes::least_fractions(n[1]))) {
                    // SAFETY: callers have the feature.
                    lines.push(unsafe { codes::nibbles_of_numbers(n, &all) });
                    continue;
                }
            }
            let mut bytes = [_mm512_setzero_si512(); 4];
            for (p, (bytes, x)) in bytes.iter_mut().zip(x).enumerate() {
                if !(BY_BYTES && fixed) {
                    look_ahead(p);
                }
                // Products may be out of reach under some rules for all tiles.
                *bytes = if !can_be_fixed::<UNIT, KIND, BITS>() || (UNIT == MULTIPLY && !fixed) {
                    any_piece::<UNIT, KIND>(load(x), blocks(p), params, &all)
                } else if fixed
                    && let n = numbers(p)
                    && codes::certain(codes::least_fractions(n))
                {
                    codes::bytes_of_numbers::<KIND>(n, &all)
                } else {
                    uncertain += usize::from(fixed);
                    exact_piece::<UNIT, KIND>(x, blocks(p), params, &all)
                };
            }
            match BITS {
                8 => lines.push(codes::in_order(bytes[0])),
                4 => lines.push(codes::nibbles_of_quarters::<KIND>(bytes[0], bytes[1])),
                _ => {
                    let sixes = bytes.map(|bytes| codes::sixes(codes::in_order(bytes)));
                    for i in 0..3 {
                        lines.push(_mm512_permutex2var_epi32(sixes[i], codes::quarters(i), sixes[i + 1]));
                    }
                }
            }
        }
        exact_tiles = if uncertain > TILE / 128 { EXACT_TILES } else { exact_tiles.saturating_sub(1) };
        if fits {
            turn = !turn;
            block += fitting.count;
            if !fitting.possible {
                done = i + 1;
            }
        }
        if UNIT != KEEP && fitting.count == 1 {
            // A block begins one block and one tile further than another's last tile.
            fitting.extremes.take_block::<KIND>(rows.tile / 64, left == 0);
        }
        left = if left == 0 { rows.per_block } else { left };
    }
    lines.finish();
    (_mm512_reduce_max_epu32(largest) < ops::INFINITE).then_some(done * rows.tile)
}

/// Whether [`codes::numbers`] knows such codes.
const fn can_be_fixed<const UNIT: u8, const KIND: u8, const BITS: u32>() -> bool {
    match KIND {
        FLOAT => BITS == 4 && UNIT != KEEP,
        SIGNED | UNSIGNED => UNIT == QUOTIENT,
        _ => false,
    }
}

/// Which block of a tile each vector of a piece belongs to; a block of several pieces has two to the `shift`.
#[inline]
fn blocks_of<const KEPT: usize>(piece: usize, shift: u32) -> [usize; 4] {
    let blocks = match KEPT {
        4 => [0, 1, 2, 3].map(|i| 4 * piece + i),
        2 => [0, 0, 1, 1].map(|i| 2 * piece + i),
        _ => [piece >> shift; 4],
    };
    blocks.map(|block| block % BLOCKS)
}

/// The bytes of a piece, as the reference computes them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn any_piece<const UNIT: u8, const KIND: u8>(
    x: [__m512; 4],
    blocks: [usize; 4],
    params: &Params,
    all: &Constants,
) -> __m512i {
    let code = std::array::from_fn(|i| {
        let of = |params: &[f32; BLOCKS]| _mm512_set1_ps(params[blocks[i]]);
        let (scale, high, low, zero) = (of(&params.scales), of(&params.high), of(&params.low), of(&params.zeros));
        let lanes = Lanes { scale, high, low, zero };
        codes::sixteen::<UNIT, KIND>(x[i], lanes, *all)
    });
    codes::bytes::<KIND>(code, *all)
}

/// The same where quotients are taken in fixed point otherwise: rarely.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn exact_piece<const UNIT: u8, const KIND: u8>(
    x: &Piece,
    blocks: [usize; 4],
    params: &Params,
    all: &Constants,
) -> __m512i {
    match UNIT {
        QUOTIENT => any_piece::<DIVIDE, KIND>(load(x), blocks, params, all),
        _ => any_piece::<UNIT, KIND>(load(x), blocks, params, all),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::Isa;
    use super::*;
    use crate::{Format, FormatGrid, Layout};

    /// How many of a row's 4096 values go through tiles.
    fn in_tiles(name: &str) -> Option<usize> {
        let format: Format = name.parse().expect("the format has a name");
        let (grid, layout) = (FormatGrid::new(format, 1.0).unwrap(), Layout::new(format, &[1, 4096]).unwrap());
        let plan = RowEncoder::new(&grid, &layout).expect("kernels encode the format");
        let x: Vec<f32> = (0..4096_u16).map(|i| f32::from(i * 13 % 1009) / 512.0 - 1.0).collect();
        let mut sections = [layout.code_bytes(), layout.scale_bytes(), layout.zero_bytes()].map(|len| vec![0; len]);
        let [codes, scales, zeros] = &mut sections;
        Isa::Avx512.backend().encode_tiles(&plan, &mut Fitted::NEW.clone(), &x, codes, scales, zeros)
    }

    /// Codes are made with and without instructions that permute bytes; other tests see one of the two.
    #[test]
    fn nibbles_do_not_depend_on_how_bytes_are_permuted() {
        if !(Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vbmi")) {
            eprintln!("skipped: the CPU lacks AVX-512 or VBMI");
            return;
        }
        let mut state = 1_u32;
        let mut x: Vec<f32> = (0..16 * TILE)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let spread = if i % 97 == 0 { 8.0 } else { 1.0 };
                spread * (f32::from((state >> 16) as u16) / 32768.0 - 1.0)
            })
            .collect();
        // Quotients on thresholds, and zeros.
        x[3 * TILE..4 * TILE].iter_mut().zip(0_u16..).for_each(|(x, i)| *x = f32::from(i % 29) / 4.0 - 3.0);
        for name in
            ["int4-g32", "int4-g128", "int4-asym-g32", "int4-asym-g128", "nvfp4", "nvint4", "mxfp4", "fp4-e2m1-g16"]
        {
            let format: Format = name.parse().expect("the format has a name");
            let grid = FormatGrid::new(format, 8.0).unwrap();
            let layout = Layout::new(format, &[1, x.len()]).unwrap();
            let plan = RowEncoder::new(&grid, &layout).expect("kernels encode the format");
            let Kind::Small(element) = &plan.element else { panic!("{name} is small") };
            let [by_words, by_bytes] = [false, true].map(|vbmi| {
                let mut sections = [layout.code_bytes(), layout.scale_bytes(), layout.zero_bytes()].map(|n| vec![0; n]);
                let [codes, scales, zeros] = &mut sections;
                let mut fitted = Fitted::NEW.clone();
                let rows = Rows::new(&plan, &x, scales, zeros);
                let coder = coder(&plan, element, vbmi).expect("there is a loop");
                // SAFETY: the features were looked for.
                let done = unsafe {
                    let fitting = Fitting::new(&plan, &mut fitted, &rows);
                    coder(&codes::constants(element, plan.positive_zero), fitting, Lines::new(codes, false), rows)
                };
                assert_eq!(done, Some(x.len()), "{name}");
                sections
            });
            assert_eq!(by_words, by_bytes, "{name}");
        }
    }

    #[test]
    fn the_usual_formats_are_encoded_in_one_pass() {
        if !Isa::Avx512.is_available() {
            eprintln!("skipped: the CPU lacks AVX-512");
            return;
        }
        let ranges =
            ["int8-asym", "int4-asym", "int6-asym-g64", "int4-asym-g32", "int4-asym-g128-bf16", "int8-asym-g16-f32"];
        let magnitudes = ["int8", "int4-g32", "int4-g128", "fp8-e4m3", "mxfp4", "mxfp6-e2m3", "nvfp4", "nf4", "bf16"];
        for name in ranges.into_iter().chain(magnitudes) {
            assert_eq!(in_tiles(name), Some(4096), "{name}");
        }
        for name in ["int4-awqasym-g32", "int3-asym-g128", "int8-asym-g40"] {
            assert_eq!(in_tiles(name), Some(0), "{name}");
        }
    }
}
