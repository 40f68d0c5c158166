//! Settings of methods that store two factors: `svd`, `fwsvd`, `asvd`, `svd-llm`, and `corrected`.

use super::{Method, RecipeError};
use low_rank::{AnyMethod, FisherAxis, Menu, PlainSvd, Ratio, ScaleSource, Size, Solver, Storage, Truncation};
use serde::{Deserialize, Serialize};

/// How large factors become: the same share or rank for every weight, or a budget for all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ranks {
    /// The largest rank whose factors hold at most this share of the parameters.
    Kept(f64),
    /// The same, by the share that goes.
    Removed(f64),
    /// This rank.
    Rank(usize),
    /// A budget of so many bits for each weight, over all that are factored: what each becomes is chosen from a menu
    /// so that the output errors on the calibration text add up to the least.
    BitsPerWeight(f64),
    /// The same, as bytes of all of them.
    Bytes(u64),
}

impl Default for Ranks {
    /// 90 % of the parameters.
    fn default() -> Self {
        Self::Kept(0.9)
    }
}

impl Ranks {
    /// Whether ranks are chosen under a budget.
    #[must_use]
    pub fn is_budget(&self) -> bool {
        matches!(self, Self::BitsPerWeight(_) | Self::Bytes(_))
    }

    /// The size of a weight that is treated by itself; `None` under a budget.
    pub(crate) fn size(&self) -> Option<Size> {
        match *self {
            Self::Kept(kept) => Some(Size::Ratio(Ratio::Kept(kept))),
            Self::Removed(removed) => Some(Size::Ratio(Ratio::Removed(removed))),
            Self::Rank(rank) => Some(Size::Rank(rank)),
            Self::BitsPerWeight(_) | Self::Bytes(_) => None,
        }
    }

    fn validate(&self) -> Result<(), RecipeError> {
        let bad = |value: String, expected| Err(RecipeError::BadSetting { name: "ranks", value, expected });
        match *self {
            Self::Kept(share) if !(share > 0.0 && share <= 1.0) => {
                bad(format!("kept = {share}"), "a share above 0 and at most 1")
            }
            Self::Removed(share) if !(0.0..1.0).contains(&share) => {
                bad(format!("removed = {share}"), "a share of at least 0 and below 1")
            }
            Self::Rank(0) => bad("rank = 0".to_owned(), "a rank of at least 1"),
            Self::BitsPerWeight(bits) if !(bits > 0.0 && bits <= 32.0) => {
                bad(format!("bits_per_weight = {bits}"), "a number above 0 and at most 32")
            }
            Self::Bytes(0) => bad("bytes = 0".to_owned(), "at least one byte"),
            _ => Ok(()),
        }
    }
}

/// Plain truncated SVD: the least error of the weights. Needs no calibration text, unless under a budget.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Svd {
    /// How large the factors become.
    pub ranks: Ranks,
    /// How singular values are found.
    pub solver: Solver,
    /// What is tried for each weight under a budget; whole and factored in the recipe's format if `None`.
    pub menu: Option<Menu>,
}

/// FWSVD: rows, or columns, count by their Fisher information, the squared gradients of the loss on the calibration text.
///
/// The gradients are those of the original model, a pass back for each window; it is in memory as a whole meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fwsvd {
    /// Which side is weighted: `rows` as in the paper, or `columns` as in ASVD's code.
    pub axis: FisherAxis,
    /// Exponent of the importance.
    pub alpha: f64,
    /// How large the factors become.
    pub ranks: Ranks,
    /// How singular values are found.
    pub solver: Solver,
    /// What is tried for each weight under a budget.
    pub menu: Option<Menu>,
}

impl Default for Fwsvd {
    fn default() -> Self {
        let low_rank::Fwsvd { axis, alpha, .. } = low_rank::Fwsvd::default();
        Self { axis, alpha, ranks: Ranks::default(), solver: Solver::default(), menu: None }
    }
}

/// ASVD: input channels count by the size of their activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asvd {
    /// Exponent of the channel sizes.
    pub alpha: f64,
    /// What the size of a channel is: `abs_mean`, `abs_max`, or with gradients as [`Fwsvd`] has them `fisher` or
    /// `fisher_abs_mean`.
    pub source: ScaleSource,
    /// How large the factors become.
    pub ranks: Ranks,
    /// How singular values are found.
    pub solver: Solver,
    /// What is tried for each weight under a budget.
    pub menu: Option<Menu>,
}

impl Default for Asvd {
    fn default() -> Self {
        let low_rank::Asvd { alpha, source, .. } = low_rank::Asvd::default();
        Self { alpha, source, ranks: Ranks::default(), solver: Solver::default(), menu: None }
    }
}

/// SVD-LLM: the least error of the outputs on the calibration text.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvdLlm {
    /// Share of the mean diagonal that is added to the diagonal of the Gram matrix.
    pub damping: f64,
    /// How large the factors become.
    pub ranks: Ranks,
    /// How singular values are found.
    pub solver: Solver,
    /// What is tried for each weight under a budget.
    pub menu: Option<Menu>,
}

/// A rounded weight with two factors for what rounding lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Corrected {
    /// How the codes are found: `rtn`, `mse`, `gptq` or `awq`, with settings if wanted.
    pub base: Box<Method>,
    /// Rank of the correction.
    pub rank: usize,
    /// How its factors are stored.
    pub factors: Storage,
    /// What the correction makes least.
    pub metric: Metric,
}

/// In which norm a correction is the best one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Metric {
    /// The error of the weights (LoRC). Needs no calibration text.
    Svd,
    /// That of the weights scaled by channel sizes (L²QER).
    Asvd,
    /// That of the outputs on the calibration text (QERA).
    #[default]
    SvdLlm,
}

impl Default for Corrected {
    /// Rank 16 in f16 on rounding to nearest, for the outputs.
    fn default() -> Self {
        let factors = Truncation::default().storage;
        Self { base: Box::new(Method::Rtn), rank: 16, factors, metric: Metric::default() }
    }
}

/// A method that factors, as [`low_rank`] knows it, and the menu of its budget.
pub(crate) struct Factoring<'a> {
    pub(crate) method: AnyMethod,
    pub(crate) menu: Option<&'a Menu>,
}

impl Method {
    /// The factoring that this method is, with factors of a given size and storage; `None` for other methods.
    pub(crate) fn factoring(&self, size: Size, storage: Storage) -> Option<Factoring<'_>> {
        let cut = |solver| Truncation { size, storage, solver, ..Truncation::default() };
        let (method, menu) = match self {
            Self::Svd(Svd { solver, menu, .. }) => (AnyMethod::Svd(PlainSvd { truncation: cut(*solver) }), menu),
            Self::Fwsvd(Fwsvd { axis, alpha, solver, menu, .. }) => {
                let method = low_rank::Fwsvd { axis: *axis, alpha: *alpha, truncation: cut(*solver) };
                (AnyMethod::Fwsvd(method), menu)
            }
            Self::Asvd(Asvd { alpha, source, solver, menu, .. }) => {
                let method = low_rank::Asvd { alpha: *alpha, source: *source, truncation: cut(*solver) };
                (AnyMethod::Asvd(method), menu)
            }
            Self::SvdLlm(SvdLlm { damping, solver, menu, .. }) => {
                let method = low_rank::SvdLlm { damping: *damping, truncation: cut(*solver) };
                (AnyMethod::SvdLlm(method), menu)
            }
            _ => return None,
        };
        Some(Factoring { method, menu: menu.as_ref() })
    }

    /// What the recipe says about ranks; `None` for methods that do not factor.
    #[must_use]
    pub fn ranks(&self) -> Option<&Ranks> {
        match self {
            Self::Svd(Svd { ranks, .. })
            | Self::Fwsvd(Fwsvd { ranks, .. })
            | Self::Asvd(Asvd { ranks, .. })
            | Self::SvdLlm(SvdLlm { ranks, .. }) => Some(ranks),
            _ => None,
        }
    }

    pub(super) fn validate_factors(&self) -> Result<(), RecipeError> {
        let bad = |name, value: String, expected| Err(RecipeError::BadSetting { name, value, expected });
        if let Some(ranks) = self.ranks() {
            ranks.validate()?;
        }
        match self {
            Self::Fwsvd(Fwsvd { alpha, .. }) | Self::Asvd(Asvd { alpha, .. })
                if !(alpha.is_finite() && *alpha >= 0.0) =>
            {
                bad("alpha", alpha.to_string(), "a number of at least 0")
            }
            Self::SvdLlm(SvdLlm { damping, .. }) if !(damping.is_finite() && *damping >= 0.0) => {
                bad("damping", damping.to_string(), "a number of at least 0")
            }
            Self::Corrected(Corrected { rank: 0, .. }) => bad("rank", "0".to_owned(), "a rank of at least 1"),
            Self::Corrected(Corrected { base, .. }) if !base.is_scalar() => {
                bad("base", base.name().to_owned(), "rtn, mse, gptq or awq")
            }
            Self::Corrected(Corrected { base, .. }) => base.validate(),
            _ => Ok(()),
        }?;
        let menu = match self {
            Self::Svd(Svd { menu, .. })
            | Self::Fwsvd(Fwsvd { menu, .. })
            | Self::Asvd(Asvd { menu, .. })
            | Self::SvdLlm(SvdLlm { menu, .. }) => menu,
            _ => return Ok(()),
        };
        let whole = |menu: &Menu| menu.dense.iter().chain(&menu.corrected).all(|s| matches!(s, Storage::Packed(_)));
        match menu {
            Some(_) if !self.ranks().is_some_and(Ranks::is_budget) => {
                bad("menu", "given".to_owned(), "ranks with bits_per_weight or bytes, for which a menu is needed")
            }
            Some(Menu { corrected, .. }) if matches!(self, Self::Fwsvd(_)) && !corrected.is_empty() => {
                bad("menu", "corrected".to_owned(), "whole and factored weights: corrections have no such metric")
            }
            Some(menu) if !whole(menu) => {
                bad("menu", "f32".to_owned(), "formats for whole weights; f32 is for factors only")
            }
            _ => Ok(()),
        }
    }
}
