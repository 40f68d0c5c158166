//! STRS: sensitivity-based truncation rank searching (ASVD, section 3.4).

use crate::{Error, Ratio, break_even, pair_parameters};

/// One layer truncated to one rank while all others stay whole, and how bad that is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Index of the layer.
    pub layer: usize,
    /// Its rank.
    pub rank: usize,
    /// Higher is worse: perplexity on calibration, output error, or [`stable_rank_score`].
    pub score: f64,
}

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankChoice {
    /// Kept whole.
    Dense,
    /// Factored.
    Rank(usize),
}

/// Ranks for all layers, and the share of parameters that they keep.
#[derive(Clone, Debug, PartialEq)]
pub struct RankSearch {
    /// One choice a layer.
    pub choices: Vec<RankChoice>,
    /// Candidates that were given up.
    pub cut: usize,
    /// Parameters kept, over all parameters.
    pub kept: f64,
}

/// Finds the ranks with which layers of `shapes` `(out, in)` together keep at most `target` of their parameters.
///
/// 1. Candidates are sorted by score, worst first; of equals the lower layer, then the lower rank, comes first.
/// 2. After a cut at `c` the first `c` of them are given up; each layer takes the least rank among its candidates that are left, and
///    stays whole without any. What is kept grows with `c`.
/// 3. The largest cut that fits the target is taken.
///
/// The authors' code takes the last cut its bisection looked at in place of the one it found, and counts `ρ m n` parameters; here
/// true parameters of whole ranks count, and a rank from the break-even on counts as whole.
///
/// # Errors
///
/// [`Error::Unreachable`] with the smallest share there is when the least ranks of all layers keep more; [`Error::Candidate`], [`Error::Rank`],
/// [`Error::Ratio`].
///
/// # Examples
///
/// ```
/// use low_rank::{Candidate, RankChoice, Ratio, strs};
/// let shapes = [(64, 64), (64, 64)];
/// let candidate = |layer, rank, score| Candidate { layer, rank, score };
/// // The first layer bears a cut to rank 8, the second suffers.
/// let candidates = [candidate(0, 8, 5.1), candidate(0, 24, 5.0), candidate(1, 8, 9.0), candidate(1, 24, 5.2)];
/// let found = strs(&shapes, &candidates, Ratio::Kept(0.5))?;
/// assert_eq!(found.choices, [RankChoice::Rank(8), RankChoice::Rank(24)]);
/// # Ok::<(), low_rank::Error>(())
/// ```
pub fn strs(shapes: &[(usize, usize)], candidates: &[Candidate], target: Ratio) -> Result<RankSearch, Error> {
    let target = target.kept()?;
    check(shapes, candidates)?;
    let mut sorted = candidates.to_vec();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.layer.cmp(&b.layer)).then(a.rank.cmp(&b.rank)));
    let after = |cut: usize| {
        let mut choices = vec![RankChoice::Dense; shapes.len()];
        for candidate in &sorted[cut..] {
            let (rows, columns) = shapes[candidate.layer];
            let rank = match choices[candidate.layer] {
                RankChoice::Dense => candidate.rank,
                RankChoice::Rank(rank) => rank.min(candidate.rank),
            };
            if rank <= break_even(rows, columns) {
                choices[candidate.layer] = RankChoice::Rank(rank);
            }
        }
        let kept = kept_share(shapes, &choices);
        RankSearch { choices, cut, kept }
    };
    let smallest = after(0).kept;
    if smallest > target {
        return Err(Error::Unreachable { kept: target, smallest });
    }
    // What is kept never falls with the cut, so bisection finds the last one that fits.
    let (mut fits, mut beyond) = (0, sorted.len() + 1);
    while beyond - fits > 1 {
        let middle = fits.midpoint(beyond);
        if after(middle).kept <= target { fits = middle } else { beyond = middle }
    }
    Ok(after(fits))
}

fn check(shapes: &[(usize, usize)], candidates: &[Candidate]) -> Result<(), Error> {
    for (index, candidate) in candidates.iter().enumerate() {
        let &Candidate { layer, rank, score } = candidate;
        let Some(&(rows, columns)) = shapes.get(layer).filter(|_| score.is_finite()) else {
            return Err(Error::Candidate { candidate: index, layer, layers: shapes.len(), score });
        };
        if rank == 0 || rank > rows.min(columns) {
            return Err(Error::Rank { rank, rows, columns });
        }
    }
    Ok(())
}

/// Parameters that the choices keep, over all parameters; 1 for no layers.
#[must_use]
pub fn kept_share(shapes: &[(usize, usize)], choices: &[RankChoice]) -> f64 {
    let (mut kept, mut all) = (0, 0);
    for (&(rows, columns), choice) in shapes.iter().zip(choices) {
        let dense = rows as u64 * columns as u64;
        all += dense;
        kept += match *choice {
            RankChoice::Dense => dense,
            RankChoice::Rank(rank) => pair_parameters(rows, columns, rank),
        };
    }
    if all == 0 { 1.0 } else { kept as f64 / all as f64 }
}

/// A score without a forward pass: `−(‖W‖_F² / ‖W‖₂²)^½ · ρ^0.1`, from singular values and the kept share `ρ`. A weight whose energy
/// lies in few directions scores higher, that is worse, as in the authors' code.
///
/// # Errors
///
/// [`Error::AllZero`] for a spectrum without a positive value, [`Error::Ratio`].
pub fn stable_rank_score(spectrum: &[f64], kept: Ratio) -> Result<f64, Error> {
    let largest = spectrum.iter().copied().fold(0.0, f64::max);
    if largest <= 0.0 {
        return Err(Error::AllZero { what: "singular values" });
    }
    let stable: f64 = spectrum.iter().map(|value| (value / largest).powi(2)).sum();
    Ok(-stable.sqrt() * kept.kept()?.powf(0.1))
}
