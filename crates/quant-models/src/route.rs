//! Choosing experts.

/// Which experts the tokens of a pass go to in one mixture layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing<'a> {
    /// The layer.
    pub layer: usize,
    /// Experts to choose from.
    pub experts: usize,
    /// Experts each token goes to.
    pub top_k: usize,
    /// The router's outputs, row-major `[tokens, experts]`.
    pub logits: &'a [f32],
    /// The chosen experts, row-major `[tokens, top_k]`, the likeliest first.
    pub ids: &'a [usize],
    /// What their outputs are multiplied with, row-major `[tokens, top_k]`.
    pub gates: &'a [f32],
}

/// The choices of a mixture layer for the tokens of a pass, which an observer may change before the experts run.
///
/// An id of `experts`, one past the last, is no choice: the token gets nothing for it.
#[derive(Debug)]
pub struct Choices<'a> {
    /// The layer.
    pub layer: usize,
    /// Experts to choose from.
    pub experts: usize,
    /// Experts each token goes to.
    pub top_k: usize,
    /// The chosen experts, row-major `[tokens, top_k]`, the likeliest first.
    pub ids: &'a mut [usize],
    /// What their outputs are multiplied with, row-major `[tokens, top_k]`.
    pub gates: &'a mut [f32],
}

impl Routing<'_> {
    /// The tokens that go to an expert, in rising order, each with its gate: the rows that the expert's linears see.
    pub fn tokens_of(&self, expert: usize) -> impl Iterator<Item = (usize, f32)> {
        let chosen = self.ids.iter().zip(self.gates).enumerate();
        let top_k = self.top_k.max(1);
        chosen.filter(move |(_, (id, _))| **id == expert).map(move |(place, (_, gate))| (place / top_k, *gate))
    }

    /// How many tokens go to each expert.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.experts];
        for &id in self.ids {
            if let Some(count) = counts.get_mut(id) {
                *count += 1;
            }
        }
        counts
    }
}

/// Softmax of one token's logits, the `top_k` largest of it, and their gates.
///
/// Ties go to the lower index. With `renormalize` the gates sum to 1, which is the softmax over the chosen logits
/// alone; without, they are the shares of the softmax over all.
pub(crate) fn choose(logits: &[f32], top_k: usize, renormalize: bool, ids: &mut Vec<usize>, gates: &mut Vec<f32>) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let largest = order.first().map_or(0.0, |first| logits[*first]);
    let weight = |expert: &usize| (logits[*expert] - largest).exp();
    let chosen = &order[..top_k.min(order.len())];
    let among = if renormalize { chosen } else { &order };
    let total: f32 = among.iter().map(weight).sum();
    ids.extend_from_slice(chosen);
    gates.extend(chosen.iter().map(|expert| weight(expert) / total));
}
