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
use rayon::prelude::*;

/// Candidates of one piece of work.
const PIECE: usize = 1 << 16;

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

/// Candidates of one piece: coordinates by axis, inverse norms, and the cosine to the nearest chosen one.
struct Piece {
    first: usize,
    axes: [Vec<i16>; 8],
    inverse: Vec<f32>,
    nearest: Vec<f32>,
}

impl Piece {
    fn new(index: usize, candidates: &[[i8; 8]]) -> Self {
        Self {
            first: index * PIECE,
            axes: std::array::from_fn(|axis| candidates.iter().map(|point| i16::from(point[axis])).collect()),
            inverse: candidates.iter().map(inverse_norm).collect(),
            nearest: vec![f32::NEG_INFINITY; candidates.len()],
        }
    }

    /// Takes another chosen direction into account and returns the candidate that is now farthest from all.
    #[inline(always)]
    fn visit(&mut self, chosen: &[i8; 8], inverse: f32) -> (f32, usize) {
        let c = chosen.map(i16::from);
        let [a0, a1, a2, a3, a4, a5, a6, a7] = self.axes.each_ref().map(|axis| &axis[..self.nearest.len()]);
        let own = &self.inverse[..self.nearest.len()];
        let mut least = f32::INFINITY;
        for (i, nearest) in self.nearest.iter_mut().enumerate() {
            // Whole numbers, exact: coordinates up to ±9, products below 2^15.
            let dot = a0[i] * c[0]
                + a1[i] * c[1]
                + a2[i] * c[2]
                + a3[i] * c[3]
                + a4[i] * c[4]
                + a5[i] * c[5]
                + a6[i] * c[6]
                + a7[i] * c[7];
            let cosine = f32::from(dot) * (own[i] * inverse);
            *nearest = if cosine > *nearest { cosine } else { *nearest };
            least = if *nearest < least { *nearest } else { least };
        }
        let at = self.nearest.iter().position(|m| *m == least).unwrap_or(0);
        (least, self.first + at)
    }
}

/// Greedy farthest-point selection.
fn spread(candidates: &[[i8; 8]], wanted: usize) -> Directions {
    let arch = pulp::Arch::new();
    let mut pieces: Vec<Piece> =
        candidates.chunks(PIECE).enumerate().map(|(index, part)| Piece::new(index, part)).collect();
    let (mut next, mut cosine) = (0, -1.0);
    let (mut points, mut covering) = (Vec::with_capacity(wanted), Vec::with_capacity(wanted));
    while points.len() < wanted {
        let chosen = candidates[next];
        points.push(chosen);
        covering.push(cosine);
        let inverse = inverse_norm(&chosen);
        let visit = |piece: &mut Piece| {
            arch.dispatch(
                #[inline(always)]
                || piece.visit(&chosen, inverse),
            )
        };
        let farthest = pieces
            .par_iter_mut()
            .map(visit)
            .reduce(|| (f32::INFINITY, usize::MAX), |a, b| if (b.0, b.1) < (a.0, a.1) { b } else { a });
        (cosine, next) = farthest;
    }
    let units = points.iter().map(unit).collect();
    Directions { points, units, covering }
}
