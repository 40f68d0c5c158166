//! E8P: 2^16 points of a shifted E8 lattice in 16 bits, from a table of 256 patterns (QuIP#, arXiv 2402.04396).
//!
//! ```text
//! bit   15…8              7…1                          0
//!       pattern of |x_i|  signs of x_0 … x_6 (1 = −)   shift: 0 adds +¼, 1 adds −¼
//! ```
//!
//! Patterns are the magnitudes of points of D8 + ½: the 227 with squared norm up to 10 and 29 of the 56 with
//! five 3/2 and three ½ (norm 12). The sign of `x_7` follows from the sum of a point of D8 + ½ being even.
//!
//! Which 29 of the 56 patterns are taken does not matter for the error; ours are the first in ascending order,
//! coordinate by coordinate. Code books of other programs differ there.

use crate::VectorCodec;
use pulp::{Arch, Simd, WithSimd};
use std::sync::LazyLock;

/// Magnitudes in halves: 1, 3 or 5.
static PATTERNS: LazyLock<Vec<[f32; 8]>> = LazyLock::new(|| {
    let mut all = Vec::new();
    extend(&mut all, &mut [1; 8], 0);
    let square = |p: &[u8; 8]| p.iter().map(|c| u32::from(*c).pow(2)).sum::<u32>();
    all.sort_unstable();
    let (short, long): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| square(p) <= 40);
    let chosen = short.into_iter().chain(long.into_iter().take(29));
    chosen.map(|p| p.map(|c| f32::from(c) / 2.0)).collect()
});

/// What decoding needs, laid out so that a code becomes eight values in a few vector operations.
#[derive(Debug)]
pub(crate) struct Patterns {
    magnitudes: [[f32; 8]; 256],
    /// Whether the sum of the magnitudes is odd, in the highest bit.
    odd: [u8; 256],
    /// Sign bits of eight values for the bits of a byte, the last flipped where the number of the others is odd.
    signs: [[u32; 8]; 256],
    blocks: [Block; 256 / LANES],
}

/// Patterns side by side.
const LANES: usize = 16;

/// Sixteen patterns by axis, laid out for search.
#[derive(Debug)]
struct Block {
    axes: [[f32; LANES]; 8],
    squares: [f32; LANES],
    /// 1 where an even number of minus signs leaves an odd sum, else 0; then the same for an odd number.
    odd: [[f32; LANES]; 2],
}

impl Block {
    fn new(patterns: &[[f32; 8]]) -> Self {
        let odd = |lane: usize, signs| f32::from(u8::from(odd(patterns[lane].iter().sum(), signs)));
        Self {
            axes: std::array::from_fn(|axis| std::array::from_fn(|lane| patterns[lane][axis])),
            squares: std::array::from_fn(|lane| patterns[lane].iter().map(|p| p * p).sum()),
            odd: std::array::from_fn(|signs| std::array::from_fn(|lane| odd(lane, [0, 1][signs]))),
        }
    }
}

static TABLE: LazyLock<Patterns> = LazyLock::new(|| Patterns {
    magnitudes: std::array::from_fn(|i| PATTERNS[i]),
    odd: std::array::from_fn(|i| u8::from(odd(PATTERNS[i].iter().sum(), 0)) << 7),
    signs: std::array::from_fn(|signs| {
        std::array::from_fn(|i| {
            let flip = if i == 7 { (signs & 127).count_ones() & 1 } else { 0 };
            (u32::from(signs >> i & 1 == 1) ^ flip) << 31
        })
    }),
    blocks: std::array::from_fn(|i| Block::new(&PATTERNS[i * LANES..][..LANES])),
});

impl Patterns {
    pub(crate) fn get() -> &'static Self {
        &TABLE
    }

    /// The eight values of a code of 16 bits.
    #[inline(always)]
    pub(crate) fn decode(&self, code: u32) -> [f32; 8] {
        let pattern = (code >> 8) as usize & 255;
        let magnitudes = self.magnitudes[pattern];
        let signs = self.signs[(code >> 1 & 127) as usize | usize::from(self.odd[pattern])];
        let shift = SHIFTS[code as usize & 1];
        std::array::from_fn(|i| f32::from_bits(magnitudes[i].to_bits() ^ signs[i]) + shift)
    }
}

/// What the lowest bit of a code adds.
const SHIFTS: [f32; 2] = [0.25, -0.25];

/// Lists the patterns of squared norm up to 12, those of norm 12 only with magnitudes up to 3/2.
fn extend(all: &mut Vec<[u8; 8]>, pattern: &mut [u8; 8], axis: usize) {
    let square: u32 = pattern.iter().map(|c| u32::from(*c).pow(2)).sum();
    if square > 48 || (square > 40 && pattern.contains(&5)) {
        return;
    }
    if axis == 8 {
        all.push(*pattern);
        return;
    }
    for c in [1, 3, 5] {
        pattern[axis] = c;
        extend(all, pattern, axis + 1);
    }
    pattern[axis] = 1;
}

/// The 16-bit code book; the scale that suits a unit Gaussian source is applied by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct E8P;

impl E8P {
    /// Root mean square of the quantizer's input at which it serves Gaussian values best (QuIP#).
    pub const GAUSSIAN_SCALE: f32 = 1.03;

    /// What the remainder is multiplied by where the code book is applied twice (QuIP#).
    pub const RESIDUAL_GAIN: f32 = 3.45;

    /// The 256 magnitude patterns.
    #[must_use]
    pub fn patterns() -> &'static [[f32; 8]] {
        &PATTERNS
    }
}

/// The best point of D8 + ½ among the patterns for `y`: squared distance without `|y|²`, pattern, signs.
fn best_pattern(y: &[f32; 8]) -> (f32, usize, u8) {
    let a = y.map(f32::abs);
    let signs = y.iter().enumerate().fold(0_u8, |signs, (i, v)| signs | (u8::from(*v < 0.0) << i));
    let best = Arch::new().dispatch(Nearest { magnitudes: a, odd: signs.count_ones() % 2 == 1 });
    let p = &PATTERNS[best.1];
    let flip = if odd(p.iter().sum(), signs) {
        let cheapest = (1..8).fold(0, |least, i| if a[i] * p[i] < a[least] * p[least] { i } else { least });
        1 << cheapest
    } else {
        0
    };
    (best.0, best.1, signs ^ flip)
}

/// Search for the pattern with the least `|p|² − 2 a·p`, and what an odd sum adds to it.
struct Nearest {
    magnitudes: [f32; 8],
    odd: bool,
}

impl WithSimd for Nearest {
    type Output = (f32, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, usize) {
        let a = self.magnitudes.map(|a| simd.splat_f32s(a));
        let (two, four) = (simd.splat_f32s(2.0), simd.splat_f32s(4.0));
        let mut best = (f32::INFINITY, 0);
        for (index, block) in TABLE.blocks.iter().enumerate() {
            let mut costs = [0.0; LANES];
            for (register, costs) in S::as_mut_simd_f32s(&mut costs).0.iter_mut().enumerate() {
                let of = |lanes: &[f32; LANES]| S::as_simd_f32s(lanes).0[register];
                let mut least = simd.mul_f32s(a[0], of(&block.axes[0]));
                let mut dot = least;
                for (a, axis) in a[1..].iter().zip(&block.axes[1..]) {
                    let product = simd.mul_f32s(*a, of(axis));
                    dot = simd.add_f32s(dot, product);
                    least = simd.min_f32s(least, product);
                }
                // With signs flipped in pairs the sum changes by an even number; an odd one costs a flip of the cheapest.
                let flip = simd.mul_f32s(simd.mul_f32s(four, least), of(&block.odd[usize::from(self.odd)]));
                *costs = simd.add_f32s(simd.sub_f32s(of(&block.squares), simd.mul_f32s(two, dot)), flip);
            }
            for (lane, cost) in costs.iter().enumerate() {
                if *cost < best.0 {
                    best = (*cost, index * LANES + lane);
                }
            }
        }
        best
    }
}

/// Whether magnitudes of this sum have an odd sum under these signs.
fn odd(sum: f32, signs: u8) -> bool {
    // Each negative half-odd magnitude changes the sum by an odd number. Sums are whole and below 32.
    #[expect(clippy::cast_possible_truncation, reason = "a whole number below 32")]
    let parity = sum as i32 + signs.count_ones().cast_signed();
    parity % 2 != 0
}

impl VectorCodec for E8P {
    fn dim(&self) -> usize {
        8
    }

    fn bits(&self) -> u32 {
        16
    }

    /// The nearest of all 2^16 points. `x` has 8 values; more are ignored.
    fn encode(&self, x: &[f32]) -> u32 {
        let x: [f32; 8] = std::array::from_fn(|i| x.get(i).copied().unwrap_or(0.0));
        let square = |y: &[f32; 8]| y.iter().map(|v| v * v).sum::<f32>();
        let (up, down) = (x.map(|v| v - 0.25), x.map(|v| v + 0.25));
        let (above, below) = (best_pattern(&up), best_pattern(&down));
        let minus = below.0 + square(&down) < above.0 + square(&up);
        let (_, pattern, signs) = if minus { below } else { above };
        (u32::try_from(pattern).unwrap_or(0) << 8) | (u32::from(signs & 127) << 1) | u32::from(minus)
    }

    fn decode(&self, code: u32, out: &mut [f32]) {
        let p = &PATTERNS[(code >> 8) as usize & 255];
        let [signs, ..] = (code >> 1 & 127).to_le_bytes();
        let signs = signs | (u8::from(odd(p.iter().sum(), signs)) << 7);
        let shift = if code & 1 == 1 { -0.25 } else { 0.25 };
        for (i, out) in out.iter_mut().enumerate().take(8) {
            *out = shift + if signs >> i & 1 == 1 { -p[i] } else { p[i] };
        }
    }
}
