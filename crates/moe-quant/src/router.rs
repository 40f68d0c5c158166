//! Routers: from logits to experts and gates.

use crate::{Dispatch, Error};
use serde::{Deserialize, Serialize};

/// How a router turns logits into experts and gates.
///
/// | model | scores | top-k | gates |
/// |---|---|---:|---|
/// | Mixtral | softmax | 2 | renormalized |
/// | Qwen1.5-MoE, Qwen2-MoE | softmax | 4, 8 | as they are |
/// | DeepSeek-MoE | softmax | 6 | as they are |
/// | DeepSeek-V3, Kimi | sigmoid | 8 | renormalized |
///
/// ```
/// use moe_quant::{Router, Scores};
/// let router = Router { scores: Scores::Softmax, top_k: 1, renormalize: false };
/// let dispatch = router.choose(2, &[0.0, 0.0, 0.0, 3.0_f32.ln()])?;
/// assert_eq!((dispatch.tokens_of(0), dispatch.tokens_of(1)), (&[0][..], &[1][..]));
/// assert!((dispatch.gates_of(1)[0] - 0.75).abs() < 1e-6);
/// # Ok::<(), moe_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Scores from logits.
    pub scores: Scores,
    /// Experts a token.
    pub top_k: usize,
    /// Whether the gates of a token are scaled to sum to 1.
    pub renormalize: bool,
}

/// Scores from logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scores {
    /// Shares of the softmax over all experts.
    #[default]
    Softmax,
    /// The logistic function of each logit.
    Sigmoid,
}

impl Router {
    /// Routes tokens by logits `[tokens, experts]`; ties go to the lower index.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] for logits that are not whole rows, [`Error::Setting`] for logits that are not finite,
    /// [`Error::Mixture`] unless `1 ≤ top_k ≤ experts`.
    pub fn choose(&self, experts: usize, logits: &[f32]) -> Result<Dispatch, Error> {
        if self.top_k == 0 || self.top_k > experts {
            return Err(Error::Mixture { experts, top_k: self.top_k, hidden: 1, inner: 1 });
        }
        let tokens = logits.len() / experts;
        if tokens * experts != logits.len() {
            return Err(Error::Length { what: "logits", expected: tokens * experts, found: logits.len() });
        }
        if let Some(logit) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Error::Setting { name: "a logit", value: logit.to_string(), expected: "a finite number" });
        }
        let (mut ids, mut gates) = (Vec::new(), Vec::new());
        for row in logits.chunks_exact(experts) {
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            let largest = row[order[0]];
            let score = |expert: usize| match self.scores {
                Scores::Softmax => (row[expert] - largest).exp(),
                Scores::Sigmoid => 1.0 / (1.0 + (-row[expert]).exp()),
            };
            let chosen = &order[..self.top_k];
            let total: f32 = match (self.renormalize, self.scores) {
                (true, _) => chosen.iter().map(|&expert| score(expert)).sum(),
                (false, Scores::Softmax) => order.iter().map(|&expert| score(expert)).sum(),
                (false, Scores::Sigmoid) => 1.0,
            };
            ids.extend_from_slice(chosen);
            gates.extend(chosen.iter().map(|&expert| score(expert) / total));
        }
        Dispatch::new(experts, self.top_k, &ids, &gates)
    }
}
