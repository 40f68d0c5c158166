//! Skipping experts while a model runs (MoDES, arXiv 2511.15690): layer importance times router weight under a threshold.
//!
//! 1. A layer's importance is how far the predictions move when its routed experts are switched off, as a share of all
//!    layers'; for each modality by itself.
//! 2. With `u` a choice's share of its token's gates, it is skipped when `importance · u < τ`. Gates that stay are not
//!    scaled up, and a token may lose all of its experts.
//! 3. Thresholds are searched along the frontier where just enough is skipped, the divergence least.
//!
//! An option for evaluation: no weight changes.

use crate::Error;
use serde::{Deserialize, Serialize};

/// What a token stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Text.
    #[default]
    Text,
    /// A part of a picture.
    Visual,
    /// Anything else, special tokens for instance: never skipped, but counted.
    Other,
}

/// How much each mixture layer matters, as shares that sum to 1 for each modality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerImportance {
    text: Vec<f64>,
    visual: Vec<f64>,
}

impl LayerImportance {
    /// From what predictions lose (mean KL divergence) when the routed experts of a layer give nothing for tokens of a
    /// modality: `divergence` is asked for each layer and modality. Values below zero count as zero.
    ///
    /// The reference leaves the block's input in the place of its output; giving zero is our choice, and named so in its
    /// notes: with late layers strong, passing the input through overrates weak early layers.
    ///
    /// # Errors
    ///
    /// Whatever `divergence` fails with, and [`Error::Setting`] for divergences that are not finite or all zero in text.
    pub fn measure<E: From<Error>>(
        layers: usize,
        visual: bool,
        mut divergence: impl FnMut(usize, Modality) -> Result<f64, E>,
    ) -> Result<Self, E> {
        let mut of = |modality| (0..layers).map(|layer| divergence(layer, modality)).collect::<Result<Vec<f64>, E>>();
        let text = of(Modality::Text)?;
        let visual = if visual { of(Modality::Visual)? } else { vec![0.0; layers] };
        Ok(Self::new(&text, &visual)?)
    }

    /// From the raw divergences of each layer.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] when the two differ in length, [`Error::Setting`] for values that are not finite and for text that no
    /// layer matters to.
    pub fn new(text: &[f64], visual: &[f64]) -> Result<Self, Error> {
        if text.len() != visual.len() {
            return Err(Error::Length { what: "visual importances", expected: text.len(), found: visual.len() });
        }
        let shares = |raw: &[f64]| {
            if let Some(value) = raw.iter().find(|value| !value.is_finite()) {
                return setting("an importance", value.to_string(), "a finite number");
            }
            let sum: f64 = raw.iter().map(|value| value.max(0.0)).sum();
            Ok(raw.iter().map(|value| if sum > 0.0 { value.max(0.0) / sum } else { 0.0 }).collect::<Vec<f64>>())
        };
        let importance = Self { text: shares(text)?, visual: shares(visual)? };
        if importance.text.iter().all(|share| *share == 0.0) {
            return setting("importances of text", "0 in all layers".into(), "a layer that matters");
        }
        Ok(importance)
    }

    /// The share of a layer.
    #[must_use]
    pub fn of(&self, layer: usize, modality: Modality) -> Option<f64> {
        match modality {
            Modality::Text => self.text.get(layer).copied(),
            Modality::Visual => self.visual.get(layer).copied(),
            Modality::Other => None,
        }
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.text.len()
    }
}

/// Which choices are skipped.
///
/// ```
/// use moe_quant::{LayerImportance, Modality, SkipRule};
/// let importance = LayerImportance::new(&[0.02, 0.98], &[0.0, 0.0])?;
/// let rule = SkipRule { importance, tau_text: 0.005, tau_visual: 0.0 };
/// let (mut ids, mut gates) = ([7, 2, 0, 5], [0.4, 0.3, 0.2, 0.1]);
/// let stats = rule.apply(0, &[Modality::Text], 8, &mut ids, &mut gates)?;
/// assert_eq!((ids, gates), ([7, 2, 8, 8], [0.4, 0.3, 0.0, 0.0]));
/// assert_eq!(stats.ratio(), 0.5);
/// # Ok::<(), moe_quant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkipRule {
    /// Importance of layers.
    pub importance: LayerImportance,
    /// Threshold of text; 0 skips nothing.
    pub tau_text: f64,
    /// Threshold of visual tokens. The two cannot be compared: each importance is a share within its modality.
    pub tau_visual: f64,
}

/// Choices skipped, and all choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkipStats {
    /// Skipped choices of text tokens.
    pub text: u64,
    /// Skipped choices of visual tokens.
    pub visual: u64,
    /// All choices, of any modality.
    pub choices: u64,
    /// Tokens that lost all of their experts.
    pub empty_tokens: u64,
}

impl SkipStats {
    /// Share of choices that were skipped.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        crate::real(self.text + self.visual) / crate::real(self.choices.max(1))
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            text: self.text + other.text,
            visual: self.visual + other.visual,
            choices: self.choices + other.choices,
            empty_tokens: self.empty_tokens + other.empty_tokens,
        }
    }
}

impl SkipRule {
    /// Skips choices of a batch in the mixture layer of this index: `ids` and `gates` `[tokens, top_k]`, a modality for each
    /// token. A skipped choice gets the expert `experts`, one past the last, and the gate 0, which is what
    /// [`Dispatch::skipping`](crate::Dispatch::skipping) takes.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for thresholds that are negative or NaN, [`Error::Length`] for slices that do not belong together or
    /// a layer that has no importance, [`Error::Gate`].
    pub fn apply(
        &self,
        layer: usize,
        modalities: &[Modality],
        experts: usize,
        ids: &mut [usize],
        gates: &mut [f32],
    ) -> Result<SkipStats, Error> {
        for tau in [self.tau_text, self.tau_visual] {
            if tau.is_nan() || tau < 0.0 {
                return setting("a threshold", tau.to_string(), "0 or more");
            }
        }
        let top_k = ids.len().checked_div(modalities.len()).unwrap_or(0);
        for (what, found) in [("choices", ids.len()), ("gates", gates.len())] {
            if found != modalities.len() * top_k {
                return Err(Error::Length { what, expected: modalities.len() * top_k, found });
            }
        }
        if layer >= self.importance.layers() {
            return Err(Error::Length {
                what: "importances of layers",
                expected: layer + 1,
                found: self.importance.layers(),
            });
        }
        if let Some((choice, &value)) = gates.iter().enumerate().find(|(_, gate)| !gate.is_finite() || **gate < 0.0) {
            return Err(Error::Gate { choice, value });
        }
        let mut stats = SkipStats { choices: ids.len() as u64, ..SkipStats::default() };
        for ((ids, gates), &modality) in
            ids.chunks_exact_mut(top_k.max(1)).zip(gates.chunks_exact_mut(top_k.max(1))).zip(modalities)
        {
            let (tau, skipped) = match modality {
                Modality::Text => (self.tau_text, &mut stats.text),
                Modality::Visual => (self.tau_visual, &mut stats.visual),
                Modality::Other => continue,
            };
            let Some(importance) = self.importance.of(layer, modality) else { continue };
            let sum: f64 = gates.iter().map(|gate| f64::from(*gate)).sum();
            for (id, gate) in ids.iter_mut().zip(gates.iter_mut()) {
                let share = if sum > 0.0 { f64::from(*gate) / sum } else { 0.0 };
                if importance * share < tau {
                    (*id, *gate) = (experts, 0.0);
                    *skipped += 1;
                }
            }
            stats.empty_tokens += u64::from(ids.iter().all(|id| *id == experts));
        }
        Ok(stats)
    }
}

/// Thresholds to try: 0, and the reference's `2 / (1 + e^(−10 (x − 1)))` for `points` values of `x` from 0 to `most`.
///
/// The reference has 100 points, `most` 0.71 for text and 0.60 for visual tokens, and no 0.
#[must_use]
pub fn threshold_grid(points: usize, most: f64) -> Vec<f64> {
    let last = crate::real(points.saturating_sub(1).max(1) as u64);
    let x = (0..points).map(|i| most * crate::real(i as u64) / last);
    std::iter::once(0.0).chain(x.map(|x| 2.0 / (1.0 + (-10.0 * (x - 1.0)).exp()))).collect()
}

/// How a frontier is searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrontierMode {
    /// Only pairs that can be best, at most twice the points of a grid.
    #[default]
    Lean,
    /// As the reference: for each text threshold a pair on the frontier.
    Reference,
    /// All pairs.
    Exhaustive,
}

/// The best pair of thresholds and what was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Frontier {
    /// Threshold of text.
    pub tau_text: f64,
    /// Threshold of visual tokens.
    pub tau_visual: f64,
    /// Divergence at the best pair.
    pub divergence: f64,
    /// Share of choices that it skips.
    pub skipped: f64,
    /// Different pairs that were evaluated.
    pub evaluated: usize,
    /// Pairs of evaluated neighbours where a larger threshold skipped less: skipping early changes later routing.
    pub violations: usize,
}

/// Finds the thresholds that skip at least the share `rho` of choices with the least divergence.
///
/// `evaluate` is given a text and a visual threshold and says divergence and share skipped; both are supposed to grow with
/// either threshold. For text alone let the visual grid be `[0.0]`. Each pair is evaluated once.
///
/// # Errors
///
/// [`Error::Setting`] for a `rho` outside (0, 1], grids that are empty, negative or do not rise, and when not even the largest
/// thresholds skip enough (it says what they skip); whatever `evaluate` fails with.
pub fn frontier_search<E: From<Error>>(
    text: &[f64],
    visual: &[f64],
    rho: f64,
    mode: FrontierMode,
    mut evaluate: impl FnMut(f64, f64) -> Result<(f64, f64), E>,
) -> Result<Frontier, E> {
    if !(rho > 0.0 && rho <= 1.0) {
        return Ok(setting("rho", rho.to_string(), "above 0 and at most 1")?);
    }
    for grid in [text, visual] {
        let rises = grid.windows(2).all(|pair| pair[0] < pair[1]);
        if grid.is_empty() || !rises || !grid.iter().all(|tau| tau.is_finite() && *tau >= 0.0) {
            return Ok(setting("a grid of thresholds", format!("{grid:?}"), "numbers of 0 or more that rise")?);
        }
    }
    let mut known: Vec<Vec<Option<(f64, f64)>>> = vec![vec![None; visual.len()]; text.len()];
    let mut at = |i: usize, j: usize| -> Result<(f64, f64), E> {
        if let Some(found) = known[i][j] {
            return Ok(found);
        }
        let found = evaluate(text[i], visual[j])?;
        if !found.0.is_finite() || !found.1.is_finite() {
            setting("divergence and share skipped", format!("{found:?}"), "finite numbers")?;
        }
        known[i][j] = Some(found);
        Ok(found)
    };
    let most = at(text.len() - 1, visual.len() - 1)?.1;
    if most < rho {
        return Ok(setting("rho", format!("{rho}, but the largest thresholds skip {most}"), "no more than that")?);
    }
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    match mode {
        FrontierMode::Exhaustive => {
            for i in 0..text.len() {
                for j in 0..visual.len() {
                    if at(i, j)?.1 >= rho {
                        pairs.push((i, j));
                    }
                }
            }
        }
        FrontierMode::Lean | FrontierMode::Reference => {
            // `j` visual thresholds are known to be enough together with some smaller text threshold.
            let mut j = visual.len();
            for i in 0..text.len() {
                let before = j;
                while j > 0 && at(i, j - 1)?.1 >= rho {
                    j -= 1;
                }
                // A row in which nothing moved is no better than the one before.
                let moved = j < before;
                if j < visual.len() && (moved || mode == FrontierMode::Reference) {
                    at(i, j)?;
                    pairs.push((i, j));
                }
                if j == 0 && mode == FrontierMode::Lean {
                    break;
                }
            }
        }
    }
    let mut best: Option<((usize, usize), f64, f64)> = None;
    for (i, j) in pairs {
        let (divergence, skipped) = at(i, j)?;
        if skipped >= rho && best.is_none_or(|(_, least, _)| divergence < least) {
            best = Some(((i, j), divergence, skipped));
        }
    }
    let Some(((i, j), divergence, skipped)) = best else {
        return Ok(setting("rho", rho.to_string(), "a share that some pair of the frontier skips")?);
    };
    let shares =
        |i: usize, j: usize| known.get(i).and_then(|row| row.get(j)).copied().flatten().map(|(_, share)| share);
    let mut violations = 0;
    for i in 0..text.len() {
        for j in 0..visual.len() {
            let falls = |next: Option<f64>| matches!((shares(i, j), next), (Some(a), Some(b)) if b < a);
            violations += usize::from(falls(shares(i + 1, j))) + usize::from(falls(shares(i, j + 1)));
        }
    }
    let evaluated = known.iter().flatten().flatten().count();
    Ok(Frontier { tau_text: text[i], tau_visual: visual[j], divergence, skipped, evaluated, violations })
}

fn setting<T>(name: &'static str, value: String, expected: &'static str) -> Result<T, Error> {
    Err(Error::Setting { name, value, expected })
}
