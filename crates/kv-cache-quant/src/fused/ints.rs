//! Products with rows of integers, or of E2M1 in steps of 1/2, in AVX-512 (VNNI): where they lie in a register.
//!
//! An instruction multiplies four bytes of each of 16 lanes and adds them up. Of keys, 16 tokens are the lanes, and a lane's
//! bytes are four bytes of its row; of values, bytes of the row are the lanes, and a lane's bytes are those of four tokens.
//! Neither needs sums across lanes, and scales are applied to 16 tokens at once. Pages hold codes like that where they can;
//! others are turned first, from L1 to L1, and all queries of a group use what was turned.
//!
//! The other factor, a query or the products of weights and scales, has 16 bits, as two signed bytes with sums of their own, or 8.

use super::plan::{LANES, places};
use crate::attend::Factors;
use crate::packed::{Coding, Integers, PackedRows};

/// Rows whose weights share a step, and whose scales are read at once.
pub(super) const RUN: usize = 64;

/// How kernels walk over a row of one head.
#[derive(Clone, Debug)]
pub(super) struct IntPlan {
    pub(super) bits: usize,
    /// Bytes of the other factor.
    pub(super) parts: usize,
    /// What codes stand for: numbers that kernels multiply are those above the least.
    pub(super) integers: Integers,
    /// Whether codes are E2M1: a table gives their numbers.
    pub(super) e2m1: bool,
    /// Bits of a byte that are to be inverted, so that code 0 stands for the least value; of E2M1 none.
    pub(super) flip: u8,
    pub(super) head_bytes: usize,
    /// Whether codes lie as products want them; else they are turned first.
    pub(super) turned: bool,
    /// Bytes of a row that are loaded at once: 64, 32 or 16.
    pub(super) width: usize,
    /// Loads of a row; the last one may be short.
    pub(super) loads: usize,
    /// Groups of a row, and words of 32 bits in all but perhaps the last.
    pub(super) blocks: usize,
    pub(super) block_words: usize,
    /// The logarithm of [`Self::items`].
    shift: u32,
    /// Of values: the group of each lane of each register.
    pub(super) lane_blocks: Vec<[u32; LANES]>,
    /// Of values: where each element is, the field of a register and the lane.
    places: Vec<usize>,
}

impl IntPlan {
    /// `None` where codes are not multiplied as integers. `turned`: whether codes lie as products want them.
    pub(super) fn new(rows: &PackedRows, turned: bool, factors: Factors) -> Option<Self> {
        let integers = rows.integers()?;
        let bits = rows.coding.bits();
        let (head_bytes, fields) = (rows.head_bytes(), 8 / bits);
        let width = match head_bytes {
            33.. => 64,
            17.. => 32,
            _ => 16,
        };
        let loads = head_bytes.div_ceil(width);
        let bytes = if turned { head_bytes } else { loads * width };
        // As pages have them, in their order; else of each load, for each word of a 16-byte lane, all lanes: see
        // `generated::attention::interleave`.
        let place = |at: usize| {
            if turned {
                return at;
            }
            let (load, at) = (at / width, at % width);
            let (word, at) = (at / (width / 4), at % (width / 4));
            load * width + at / 4 * 16 + 4 * word + at % 4
        };
        let bytes: Vec<usize> = (0..bytes).map(place).collect();
        let block = |byte: usize| u32::try_from(byte.min(head_bytes - 1) * fields / rows.group).unwrap_or(0);
        let (registers, _) = bytes.as_chunks::<LANES>();
        let element = |byte: usize, field: usize| (byte < head_bytes).then_some(byte * fields + field);
        let of_register = |register: &[usize; LANES]| {
            let register = *register;
            (0..fields).flat_map(move |field| register.map(|byte| element(byte, field)))
        };
        Some(Self {
            bits,
            parts: match factors {
                Factors::Bits8 => 1,
                Factors::Bits16 => 2,
            },
            integers,
            e2m1: rows.coding == Coding::E2m1,
            flip: rows.coding.signs(),
            head_bytes,
            turned,
            width,
            loads,
            blocks: rows.blocks(),
            shift: (LANES / rows.blocks()).ilog2(),
            block_words: (rows.group.min(rows.columns) * bits).div_ceil(32),
            lane_blocks: registers.iter().map(|register| register.map(block)).collect(),
            places: places(&registers.iter().flat_map(of_register).collect::<Vec<_>>(), rows.columns),
        })
    }

    /// Steps from 0 to the largest magnitude of a factor: all of its bytes fit.
    pub(super) fn most_steps(&self) -> f32 {
        if self.parts == 1 { 127.0 } else { 32512.0 }
    }

    pub(super) fn fields(&self) -> usize {
        8 / self.bits
    }

    /// Words of a row, and of a row with what its last load has too much.
    pub(super) fn words(&self) -> usize {
        self.head_bytes / 4
    }

    pub(super) fn turned_words(&self) -> usize {
        self.loads * self.width / 4
    }

    /// Registers that sums of values take, of one query.
    pub(super) fn registers(&self) -> usize {
        self.lane_blocks.len() * self.fields()
    }

    /// How many items, each a member of a head, have places for all of their groups in sixteen.
    pub(super) fn items(&self) -> usize {
        1 << self.shift
    }

    /// The place of the first group of an item: which sixteen, and where in it.
    pub(super) fn place(&self, item: usize) -> (usize, usize) {
        (item >> self.shift, (item & (self.items() - 1)) * self.blocks)
    }

    /// Puts sums back in their order: `[register][member][lane]` to `out[element]` of one member.
    pub(super) fn gather(&self, sums: &[f32], members: usize, member: usize, out: &mut [f32]) {
        super::plan::gather(&self.places, sums, members, member, out);
    }
}
