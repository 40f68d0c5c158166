//! A code book of directions: a well-spread subset of those of E8 (PCDVQ, arXiv 2506.05432, DACC).
//!
//! ```text
//! start with one candidate; keep m_i = largest cosine of candidate i to those chosen;
//! add argmin_i m_i, the lowest index of equal ones, until there are 2^bits
//! ```
//!
//! The choice is nested: the first `2^a` entries of a larger code book are the smaller one. The code book follows
//! from two numbers, so that nothing of it has to be stored with a model. The paper leaves the candidates and
//! the start open; here they are all directions up to a squared norm and the first of them in sorted order.

use crate::error::{Error, within};
use crate::lattice::{MAX_SQUARED_NORM, e8_directions};
use pulp::{Arch, Simd, WithSimd};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Unit vectors of 8 dimensions that cover the sphere evenly.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    /// Doubled, primitive lattice coordinates.
    points: Vec<[i8; 8]>,
    /// The same, of length 1.
    units: Vec<[f32; 8]>,
    /// The largest cosine between each entry and those before it.
    covering: Vec<f32>,
}

impl Directions {
    /// `2^bits` directions out of those of E8 up to a squared norm.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for more than 16 bits or norms outside 2..=24, [`Error::Candidates`] when there are not
    /// enough: 16 bits need a norm of at least 12.
    pub fn greedy(bits: u32, max_squared_norm: u32) -> Result<Self, Error> {
        within("direction bits", f64::from(bits), 0.0, 16.0)?;
        within("squared norm", f64::from(max_squared_norm), 2.0, f64::from(MAX_SQUARED_NORM))?;
        let candidates = e8_directions(max_squared_norm);
        let (wanted, available) = (1 << bits, candidates.len());
        if wanted > available {
            return Err(Error::Candidates { wanted, available, limit: max_squared_norm });
        }
        Ok(spread(&candidates, wanted))
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Doubled, primitive lattice coordinates of the entries.
    #[must_use]
    pub fn points(&self) -> &[[i8; 8]] {
        &self.points
    }

    /// The entries, of length 1.
    #[must_use]
    pub fn units(&self) -> &[[f32; 8]] {
        &self.units
    }

    /// The largest cosine between each entry and those before it; never falls from the third entry on.
    #[must_use]
    pub fn covering(&self) -> &[f32] {
        &self.covering
    }
}

/// The coordinates of a direction as floats of length 1.
fn unit(point: &[i8; 8]) -> [f32; 8] {
    let inverse = inverse_norm(point);
    point.map(|c| f32::from(c) * inverse)
}

fn inverse_norm(point: &[i8; 8]) -> f32 {
    let square: i16 = point.iter().map(|c| i16::from(*c) * i16::from(*c)).sum();
    1.0 / f32::from(square).sqrt()
}

/// Chosen directions side by side.
const LANES: usize = 16;
/// Blocks of chosen directions that are looked at before a candidate may be given up for now.
const BLOCKS: usize = 4;

/// Sixteen chosen directions by axis, and their inverse norms. Lanes that are still free repeat the first direction of
/// the block: that changes no maximum.
#[derive(Clone, Copy)]
struct Block {
    /// Whole numbers.
    axes: [[f32; LANES]; 8],
    inverse: [f32; LANES],
}

/// A candidate and a lower bound of its largest cosine to those chosen, which has seen some blocks of them.
#[derive(Clone, Copy)]
struct Candidate {
    nearest: f32,
    index: usize,
    seen: usize,
}

impl Ord for Candidate {
    /// A heap has its greatest element on top: that with the least bound, of equal ones the first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.nearest.total_cmp(&self.nearest).then(other.index.cmp(&self.index))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Raises the bound of a candidate by the blocks it has not seen, until it passes a limit.
struct Raise<'a> {
    candidate: &'a mut Candidate,
    point: [i8; 8],
    blocks: &'a [Block],
    limit: f32,
}

impl WithSimd for Raise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { candidate, point, blocks, limit } = self;
        let own = simd.splat_f32s(inverse_norm(&point));
        let point = point.map(|c| simd.splat_f32s(f32::from(c)));
        for part in blocks[candidate.seen..].chunks(BLOCKS) {
            let mut largest = simd.splat_f32s(candidate.nearest);
            for block in part {
                let axes = block.axes.each_ref().map(|axis| S::as_simd_f32s(axis).0);
                for (register, inverse) in S::as_simd_f32s(&block.inverse).0.iter().enumerate() {
                    // Exact: sums of products of coordinates are small whole numbers. From +0 on none is −0.
                    let mut dot = simd.splat_f32s(0.0);
                    for axis in 0..8 {
                        dot = simd.mul_add_f32s(point[axis], axes[axis][register], dot);
                    }
                    largest = simd.max_f32s(largest, simd.mul_f32s(dot, simd.mul_f32s(own, *inverse)));
                }
            }
            candidate.nearest = simd.reduce_max_f32s(largest);
            candidate.seen += part.len();
            if candidate.nearest > limit {
                break;
            }
        }
    }
}

/// Greedy farthest-point selection. Bounds of cosines only rise, so a candidate is looked at again only when its bound is
/// the least of all (lazy evaluation); most are soon close to a chosen one and never again.
fn spread(candidates: &[[i8; 8]], wanted: usize) -> Directions {
    let arch = Arch::new();
    let all = (1..candidates.len()).map(|index| Candidate { nearest: f32::NEG_INFINITY, index, seen: 0 });
    let mut waiting: BinaryHeap<Candidate> = all.collect();
    let mut blocks: Vec<Block> = Vec::with_capacity(wanted.div_ceil(LANES));
    let (mut points, mut covering) = (Vec::with_capacity(wanted), Vec::with_capacity(wanted));
    let mut choose = |index: usize, cosine: f32, blocks: &mut Vec<Block>| {
        let point: [i8; 8] = candidates[index];
        let (values, inverse) = (point.map(f32::from), inverse_norm(&point));
        match (blocks.last_mut(), points.len() % LANES) {
            (Some(block), lane @ 1..) => {
                block.axes.iter_mut().zip(values).for_each(|(axis, value)| axis[lane] = value);
                block.inverse[lane] = inverse;
            }
            _ => blocks.push(Block { axes: values.map(|value| [value; LANES]), inverse: [inverse; LANES] }),
        }
        points.push(point);
        covering.push(cosine);
        points.len()
    };
    let mut chosen = choose(0, -1.0, &mut blocks);
    while chosen < wanted
        && let Some(mut candidate) = waiting.pop()
    {
        let limit = waiting.peek().map_or(f32::INFINITY, |next| next.nearest);
        let point = candidates[candidate.index];
        arch.dispatch(Raise { candidate: &mut candidate, point, blocks: &blocks, limit });
        // The last block may yet be filled, so it has to be seen again.
        let complete = candidate.seen == blocks.len();
        candidate.seen = candidate.seen.min(chosen / LANES);
        if complete && waiting.peek().is_none_or(|next| candidate > *next) {
            chosen = choose(candidate.index, candidate.nearest, &mut blocks);
        } else {
            waiting.push(candidate);
        }
    }
    let units = points.iter().map(unit).collect();
    Directions { points, units, covering }
}
