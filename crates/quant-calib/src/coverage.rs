//! What calibration saw, for people and reports.

use crate::channels::count;
use crate::{ExpertCounts, Gatherer, Statistics};
use serde::Serialize;
use std::fmt;

/// How well the calibration text covers a model: tokens of each input and expert, channels that stayed zero.
///
/// Its `Display` is two Markdown tables.
///
/// # Examples
///
/// ```
/// use quant_calib::{Gatherer, Needs};
/// let mut gatherer = Gatherer::default();
/// gatherer.declare("up_proj", 2, &Needs::channels())?;
/// gatherer.declare_experts("layer 0", 4, 1)?;
/// gatherer.observe("up_proj", &[1.0, 0.0], None)?;
/// gatherer.observe_routing("layer 0", &[3], None)?;
///
/// let coverage = gatherer.coverage();
/// assert_eq!(coverage.inputs[0].dead_share(), Some(0.5));
/// assert_eq!(coverage.experts[0].unseen, [0, 1, 2]);
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coverage {
    /// Inputs of linears, in the order of names.
    pub inputs: Vec<InputCoverage>,
    /// Routed layers, in the order of names.
    pub experts: Vec<ExpertCoverage>,
}

/// What was seen of one input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InputCoverage {
    /// The linears that read it, the one that was listened to first.
    pub linears: Vec<String>,
    /// Its width.
    pub features: usize,
    /// Tokens.
    pub tokens: u64,
    /// Channels that were zero in every token; none where neither channels nor a Gram matrix were gathered.
    pub dead_channels: Option<usize>,
}

/// What was seen of the experts of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertCoverage {
    /// The layer.
    pub layer: String,
    /// Tokens that were routed.
    pub tokens: u64,
    /// Tokens of each expert.
    pub counts: Vec<u64>,
    /// Experts without a token.
    pub unseen: Vec<usize>,
    /// Standard deviation of the usage, see [`ExpertCounts::imbalance`].
    pub imbalance: f64,
}

impl InputCoverage {
    fn of(leader: &str, sharing: &[&str], statistics: &Statistics) -> Self {
        Self {
            linears: std::iter::once(leader).chain(sharing.iter().copied()).map(str::to_owned).collect(),
            features: statistics.features(),
            tokens: statistics.tokens(),
            dead_channels: statistics.dead_channels().map(|dead| dead.len()),
        }
    }

    /// Share of channels that were zero in every token.
    #[must_use]
    pub fn dead_share(&self) -> Option<f64> {
        self.dead_channels.map(|dead| count(dead as u64) / count(self.features as u64).max(1.0))
    }
}

impl ExpertCoverage {
    fn of(layer: &str, counts: &ExpertCounts) -> Self {
        Self {
            layer: layer.to_owned(),
            tokens: counts.tokens(),
            counts: counts.counts().to_vec(),
            unseen: counts.unseen(),
            imbalance: counts.imbalance(),
        }
    }
}

impl Gatherer {
    /// What was seen so far.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        Coverage {
            inputs: self.inputs().map(|(leader, sharing, s)| InputCoverage::of(leader, &sharing, s)).collect(),
            experts: self.experts().iter().map(|(layer, counts)| ExpertCoverage::of(layer, counts)).collect(),
        }
    }
}

impl Coverage {
    /// Inputs of fewer tokens than features, whose Gram matrices cannot have full rank.
    pub fn rank_deficient(&self) -> impl Iterator<Item = &InputCoverage> {
        self.inputs.iter().filter(|input| input.tokens < input.features as u64)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.inputs.is_empty() {
            writeln!(f, "| input of | features | tokens | dead channels |\n|---|---:|---:|---:|")?;
        }
        for input in &self.inputs {
            let dead = input.dead_share().map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
            writeln!(f, "| {} | {} | {} | {dead} |", input.linears.join(", "), input.features, input.tokens)?;
        }
        if !self.experts.is_empty() {
            let separator = if self.inputs.is_empty() { "" } else { "\n" };
            let header = "| experts of | tokens | fewest | most | unseen | imbalance |\n|---|---:|---:|---:|---:|---:|";
            writeln!(f, "{separator}{header}")?;
        }
        for layer in &self.experts {
            let (least, most) = (layer.counts.iter().min().unwrap_or(&0), layer.counts.iter().max().unwrap_or(&0));
            let (unseen, imbalance) = (layer.unseen.len(), layer.imbalance);
            writeln!(f, "| {} | {} | {least} | {most} | {unseen} | {imbalance:.4} |", layer.layer, layer.tokens)?;
        }
        Ok(())
    }
}
