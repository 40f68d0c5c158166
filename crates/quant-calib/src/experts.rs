//! Which experts a router chooses, and how strongly.

use crate::Error;
use crate::channels::count;

/// How often, and with which gates, a router sends tokens to each expert of a layer.
///
/// # Examples
///
/// ```
/// use quant_calib::ExpertCounts;
/// let mut counts = ExpertCounts::new(4, 2)?;
/// counts.add(&[0, 1, 0, 2], Some(&[0.75, 0.25, 0.5, 0.5]))?; // two tokens, two experts each
/// assert_eq!((counts.tokens(), counts.counts()), (2, &[2, 1, 1, 0][..]));
/// assert_eq!((counts.gate_sums(), counts.unseen()), (&[1.25, 0.25, 0.5, 0.0][..], vec![3]));
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertCounts {
    pub(crate) top_k: usize,
    pub(crate) tokens: u64,
    pub(crate) counts: Vec<u64>,
    pub(crate) gate_sums: Vec<f64>,
    pub(crate) squared_gate_sums: Vec<f64>,
}

impl ExpertCounts {
    /// Starts with no tokens, for a router that sends each to `top_k` of `experts`.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `1 ≤ top_k ≤ experts`.
    pub fn new(experts: usize, top_k: usize) -> Result<Self, Error> {
        if top_k == 0 || top_k > experts {
            return Err(Error::Router { experts, top_k });
        }
        let zeros = vec![0.0; experts];
        Ok(Self { top_k, tokens: 0, counts: vec![0; experts], gate_sums: zeros.clone(), squared_gate_sums: zeros })
    }

    /// Adds the choices `ids` `[tokens, top_k]` and their `gates`, 1 where there are none.
    ///
    /// # Errors
    ///
    /// [`Error::Width`], [`Error::Expert`], [`Error::RepeatedExpert`], [`Error::WeightCount`] and [`Error::Weight`] (whose
    /// row counts choices) for bad input. Nothing is added on error.
    pub fn add(&mut self, ids: &[u32], gates: Option<&[f32]>) -> Result<(), Error> {
        let (experts, top_k) = (self.counts.len(), self.top_k);
        if !ids.len().is_multiple_of(top_k) {
            return Err(Error::Width { features: top_k, found: ids.len() });
        }
        for (row, ids) in ids.chunks_exact(top_k).enumerate() {
            for (position, &expert) in ids.iter().enumerate() {
                if expert as usize >= experts {
                    return Err(Error::Expert { row, expert, experts });
                }
                if ids[..position].contains(&expert) {
                    return Err(Error::RepeatedExpert { row, expert });
                }
            }
        }
        if let Some(gates) = gates {
            if gates.len() != ids.len() {
                return Err(Error::WeightCount { rows: ids.len(), found: gates.len() });
            }
            if let Some((row, &value)) = gates.iter().enumerate().find(|(_, gate)| !gate.is_finite() || **gate < 0.0) {
                return Err(Error::Weight { row, value });
            }
        }
        for (choice, &expert) in ids.iter().enumerate() {
            let gate = f64::from(gates.map_or(1.0, |gates| gates[choice]));
            self.counts[expert as usize] += 1;
            self.gate_sums[expert as usize] += gate;
            self.squared_gate_sums[expert as usize] += gate * gate;
        }
        self.tokens += (ids.len() / top_k) as u64;
        Ok(())
    }

    /// Adds what was gathered elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Settings`] for another number of experts or choices. Nothing is added on error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        let settings = |counts: &Self| (counts.top_k, counts.counts.len());
        if settings(self) != settings(other) {
            let name = |counts: &Self| format!("{} of {}", counts.top_k, counts.counts.len());
            return Err(Error::Settings { what: "choices of experts differ", left: name(self), right: name(other) });
        }
        self.tokens += other.tokens;
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, v)| *sum += v);
        self.gate_sums.iter_mut().zip(&other.gate_sums).for_each(|(sum, v)| *sum += v);
        self.squared_gate_sums.iter_mut().zip(&other.squared_gate_sums).for_each(|(sum, v)| *sum += v);
        Ok(())
    }

    /// Number of experts.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.counts.len()
    }

    /// Experts each token is sent to.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Tokens that were routed.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens sent to each expert.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Sum of the gates of each expert.
    #[must_use]
    pub fn gate_sums(&self) -> &[f64] {
        &self.gate_sums
    }

    /// Sum of the squared gates of each expert.
    #[must_use]
    pub fn squared_gate_sums(&self) -> &[f64] {
        &self.squared_gate_sums
    }

    /// Share of all choices that fell on each expert, `u_e`; their sum is 1. Zeros before the first token.
    #[must_use]
    pub fn usage(&self) -> Vec<f64> {
        let choices = count(self.tokens).max(1.0) * count(self.top_k as u64);
        self.counts.iter().map(|&n| count(n) / choices).collect()
    }

    /// Standard deviation of the usage, `σ = √(Σ (u_e − 1/E)² / (E − 1))` (MoEQuant, arXiv 2505.03804); 0 for one expert.
    #[must_use]
    pub fn imbalance(&self) -> f64 {
        let experts = count(self.experts() as u64);
        let squares: f64 = self.usage().iter().map(|u| (u - experts.recip()).powi(2)).sum();
        if self.experts() < 2 { 0.0 } else { (squares / (experts - 1.0)).sqrt() }
    }

    /// Experts that no token was sent to, in order.
    #[must_use]
    pub fn unseen(&self) -> Vec<usize> {
        (0..self.experts()).filter(|&expert| self.counts[expert] == 0).collect()
    }
}
