//! Sealing rows of integers with a least value, and halving codes, in vectors.
//!
//! What is common goes through here and gives the bits of the plain definitions; what is not is left to them.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of functions compiled for instruction sets found at run time")
)]

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::generated::isa::for_each_isa;
use crate::halves;
#[cfg(target_arch = "x86_64")]
use quant_core::kernels::Isa;

/// Values that extremes are taken of side by side.
const LANES: usize = 16;
/// Values of a row that are coded at once.
const STRIP: usize = 256;

for_each_isa! {
    /// Least and largest value of each group.
    fn ranges(row: &[f32], group: usize, least: &mut [f32], most: &mut [f32]) {
        for ((values, least), most) in row.chunks(group).zip(least).zip(most) {
            let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
            let (lanes, rest) = values.as_chunks::<LANES>();
            for values in lanes {
                for lane in 0..LANES {
                    low[lane] = if values[lane] < low[lane] { values[lane] } else { low[lane] };
                    high[lane] = if values[lane] > high[lane] { values[lane] } else { high[lane] };
                }
            }
            let mut width = LANES / 2;
            while width > 0 {
                for lane in 0..width {
                    low[lane] = if low[lane + width] < low[lane] { low[lane + width] } else { low[lane] };
                    high[lane] = if high[lane + width] > high[lane] { high[lane + width] } else { high[lane] };
                }
                width /= 2;
            }
            *least = rest.iter().fold(low[0], |low, &x| if x < low { x } else { low });
            *most = rest.iter().fold(high[0], |high, &x| if x > high { x } else { high });
        }
    }
}

/// `rne(clamp((x − zero)/step, 0, largest))`, a byte each.
#[inline(always)]
fn code_values(values: &[f32], zero: f32, step: f32, largest: f32, codes: &mut [u8]) {
    // Adding the constant rounds to an integer, ties to even, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    for (x, code) in values.iter().zip(codes) {
        let v = (x - zero) / step;
        let v = if v > 0.0 { v } else { 0.0 };
        let v = if v < largest { v } else { largest };
        *code = (v + ROUND).to_bits().to_le_bytes()[0];
    }
}

/// Packs codes of 4 or 2 bits, eight at a time.
#[inline(always)]
fn pack_codes(codes: &[u8], bits: u32, out: &mut [u8]) {
    let codes = codes.as_chunks::<8>().0;
    if bits == 4 {
        for (codes, out) in codes.iter().zip(out.as_chunks_mut::<4>().0) {
            let x = u64::from_le_bytes(*codes);
            let x = (x | (x >> 4)) & 0x00ff_00ff_00ff_00ff;
            let x = (x | (x >> 8)) & 0x0000_ffff_0000_ffff;
            let [a, b, c, d, ..] = (x | (x >> 16)).to_le_bytes();
            *out = [a, b, c, d];
        }
    } else {
        for (codes, out) in codes.iter().zip(out.as_chunks_mut::<2>().0) {
            let x = u64::from_le_bytes(*codes);
            let x = (x | (x >> 6)) & 0x000f_000f_000f_000f;
            let x = (x | (x >> 12)) & 0x0000_00ff_0000_00ff;
            let [a, b, ..] = (x | (x >> 24)).to_le_bytes();
            *out = [a, b];
        }
    }
}

for_each_isa! {
    /// Codes of a row and their bytes, for groups that start anew with every head; all of a row in one call.
    fn code_row(row: &[f32], head: usize, group: usize, bits: u32, steps: &[f32], mins: &[f32], out: &mut [u8]) {
        let largest = f32::from(u8::MAX >> (8 - bits));
        let mut codes = [0; STRIP];
        let mut bytes = out;
        let groups = row.chunks_exact(head).flat_map(|head| head.chunks(group));
        for ((values, &step), &min) in groups.zip(steps).zip(mins) {
            for values in values.chunks(STRIP) {
                let (now, later) = bytes.split_at_mut(values.len() * bits as usize / 8);
                if bits == 8 {
                    code_values(values, min, step, largest, now);
                } else {
                    let codes = &mut codes[..values.len()];
                    code_values(values, min, step, largest, codes);
                    pack_codes(codes, bits, now);
                }
                bytes = later;
            }
        }
    }
}

/// A row of `bits`-bit codes under an f16 step and least value for every `group` values, groups starting anew with every
/// head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MinRow {
    pub(crate) bits: u32,
    pub(crate) head: usize,
    pub(crate) group: usize,
}

impl MinRow {
    fn largest(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// Writes codes, then steps, then least values; false, and nothing of use written, where it takes the definition to
    /// decide: ranges about zero that f16 has few bits for, or none.
    pub(crate) fn seal(self, row: &[f32], out: &mut [u8]) -> bool {
        let blocks = row.len() / self.head * self.head.div_ceil(self.group);
        let code_bytes = row.len() * self.bits as usize / 8;
        let whole = self.head.is_multiple_of(8) && STRIP.is_multiple_of(8) && self.group.is_multiple_of(8);
        if !whole || out.len() != code_bytes + 4 * blocks {
            return false;
        }
        let (codes, meta) = out.split_at_mut(code_bytes);
        let (steps, mins) = meta.split_at_mut(2 * blocks);
        let out = Sections { codes, steps, mins };
        #[cfg(target_arch = "x86_64")]
        if Isa::current() == Isa::Avx512 && self.group.is_multiple_of(16) && self.head.is_multiple_of(self.group) {
            // SAFETY: the processor has the instructions.
            return unsafe { avx512::seal(self, row, out) };
        }
        self.seal_in_steps(row, out)
    }

    /// Ranges of all groups, then how they are stored, then codes.
    fn seal_in_steps(self, row: &[f32], out: Sections<'_>) -> bool {
        let blocks = out.mins.len() / 2;
        let mut params = vec![0.0_f32; 2 * blocks];
        let (steps, mins) = params.split_at_mut(blocks);
        // Where groups fill heads, a row is one sequence of groups.
        let run = if self.head.is_multiple_of(self.group) { row.len() } else { self.head };
        let run_blocks = run.div_ceil(self.group);
        for ((values, steps), mins) in
            row.chunks_exact(run).zip(steps.chunks_mut(run_blocks)).zip(mins.chunks_mut(run_blocks))
        {
            ranges(values, self.group, mins, steps);
        }
        for (step, min) in steps.iter_mut().zip(&*mins) {
            *step = ((*step - min) / f32::from(self.largest())).max(LEAST_STEP);
        }
        let [least, most] = PLAIN;
        if !mins.iter().all(|min| (least..most).contains(&min.abs())) || !steps.iter().all(|step| *step < most) {
            return false;
        }
        halves::write(steps, out.steps);
        halves::write(mins, out.mins);
        halves::read(out.steps, steps);
        halves::read(out.mins, mins);
        code_row(row, self.head, self.group, self.bits, steps, mins, out.codes);
        true
    }
}

/// Where the parts of a row go.
struct Sections<'a> {
    codes: &'a mut [u8],
    steps: &'a mut [u8],
    mins: &'a mut [u8],
}

/// The least step, so that groups of equal values have one.
const LEAST_STEP: f32 = 1e-5;
/// Magnitudes of least values that f16 has all its bits for.
const PLAIN: [f32; 2] = [6.2e-5, 6.5e4];

for_each_isa! {
    /// Halves the width of codes by PM-KVQ's rule, from `bits` bits; whole pairs of bytes only.
    fn halve_codes(bits: u32, codes: &[u8], out: &mut [u8]) {
        let words = codes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
        match bits {
            16 => words.zip(out).for_each(|(code, out)| {
                *out = (65281 * (u32::from(code) + 128)).to_le_bytes()[3];
            }),
            8 => words.zip(out).for_each(|(pair, out)| {
                let shrunk = |code: u16| (241 * (code + 8)) >> 12;
                *out = (shrunk(pair & 0xff) | (shrunk(pair >> 8) << 4)).to_le_bytes()[0];
            }),
            _ => words.zip(out).for_each(|(four, out)| {
                let shrunk = |at: u32| ((13 * (((four >> (4 * at)) & 15) + 2)) >> 6) << (2 * at);
                *out = (shrunk(0) | shrunk(1) | shrunk(2) | shrunk(3)).to_le_bytes()[0];
            }),
        }
    }
}
