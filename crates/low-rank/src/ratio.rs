//! How small: ratios that say what they count, ranks, and when two factors are smaller than one matrix.

use crate::Error;
use serde::{Deserialize, Serialize};

/// A share of the parameters. Papers differ in what theirs means (SVD-LLM's is removed, ASVD's and Palu's kept), so this one says it.
///
/// ```
/// use low_rank::Ratio;
/// assert_eq!(Ratio::Removed(0.25).kept()?, Ratio::Kept(0.75).kept()?);
/// # Ok::<(), low_rank::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// This share stays.
    Kept(f64),
    /// This share goes.
    Removed(f64),
}

impl Ratio {
    /// The share that stays, above 0 and at most 1.
    ///
    /// # Errors
    ///
    /// [`Error::Ratio`].
    pub fn kept(self) -> Result<f64, Error> {
        let kept = match self {
            Self::Kept(kept) => kept,
            Self::Removed(removed) => 1.0 - removed,
        };
        if kept > 0.0 && kept <= 1.0 { Ok(kept) } else { Err(Error::Ratio { kept }) }
    }
}

/// How large the factors become.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// The largest rank whose factors hold no more than this share of the parameters.
    Ratio(Ratio),
    /// This rank.
    Rank(usize),
}

impl Size {
    /// The rank for a weight `[rows, columns]`. A rank that follows from a ratio is cut down to a multiple of `align`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Ratio`], [`Error::Setting`] for an alignment of 0, and [`Error::Unreachable`] when even the least rank
    /// keeps more.
    pub fn rank(self, rows: usize, columns: usize, align: usize) -> Result<usize, Error> {
        match self {
            Self::Rank(rank) if rank == 0 || rank > rows.min(columns) => Err(Error::Rank { rank, rows, columns }),
            Self::Rank(rank) => Ok(rank),
            Self::Ratio(ratio) => rank_for_ratio(rows, columns, ratio, align),
        }
    }
}

/// The largest rank, a multiple of `align`, with which two factors hold at most this share of `rows · columns` parameters:
/// `⌊⌊ρ m n⌋ / (m + n)⌋`, cut down.
///
/// ASVD's code rounds up to the alignment and may exceed the ratio; here the ratio is a limit.
///
/// # Errors
///
/// [`Error::Ratio`], [`Error::Setting`] for an alignment of 0, [`Error::Unreachable`] when even the least rank keeps more.
pub fn rank_for_ratio(rows: usize, columns: usize, ratio: Ratio, align: usize) -> Result<usize, Error> {
    let kept = ratio.kept()?;
    if align == 0 {
        return Err(Error::Setting { setting: "align", value: 0.0, expected: "a positive number" });
    }
    let parameters = floor(rows as f64 * columns as f64 * kept);
    let rank = parameters / rows.saturating_add(columns).max(1);
    let aligned = (rank / align * align).min(rows.min(columns));
    if aligned == 0 {
        let least = align.min(rows.min(columns)).max(1);
        let smallest = pair_parameters(rows, columns, least) as f64 / (rows as f64 * columns as f64);
        return Err(Error::Unreachable { kept, smallest });
    }
    Ok(aligned)
}

/// Parameters of two factors `[rows, rank]` and `[rank, columns]`.
#[must_use]
pub fn pair_parameters(rows: usize, columns: usize, rank: usize) -> u64 {
    (rank as u64).saturating_mul((rows as u64).saturating_add(columns as u64))
}

/// The largest rank with which two factors hold fewer parameters than the matrix, `k (m + n) < m n`; 0 when none does.
///
/// ```
/// assert_eq!(low_rank::break_even(4096, 4096), 2047);
/// ```
#[must_use]
pub fn break_even(rows: usize, columns: usize) -> usize {
    rows.saturating_mul(columns).saturating_sub(1) / rows.saturating_add(columns).max(1)
}

/// Rounds down; 0 for what is not positive.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
pub(crate) fn floor(value: f64) -> usize {
    value.floor() as usize
}
