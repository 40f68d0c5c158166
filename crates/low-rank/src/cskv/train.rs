//! Training of adapters, one layer at a time.
//!
//! The loss of the paper adds up the errors of keys and values of all layers, but attention goes on with the exact
//! ones: no layer sees what another one lost, and each is a least-squares problem of its own. Its gradients are two
//! products, and no model is needed to train: inputs `x` and the weight do.

use super::{KvAdapter, right_inverse, solve_positive};
use crate::Error;
use crate::matrix::{narrow, read, squared_norm};
use ndarray::{Array2, ArrayView2, Axis, Slice};
use quant_core::{Block, Format, PackedTensor, Shaped, ZeroPoint};
use quant_linalg::{cholesky, matmul, solve_lower, solve_upper};
use serde::{Deserialize, Serialize};

/// How an adapter is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// How steps are made.
    pub optimizer: Optimizer,
    /// Passes over the inputs.
    pub epochs: usize,
    /// How the cache will store latents, which the rebuilding is then trained for; `None`: as they are.
    pub latents: Option<LatentFormat>,
}

impl Default for Training {
    /// AdamW as in the paper, with a step size for the coordinates used here; one pass, latents as they are.
    fn default() -> Self {
        Self { optimizer: Optimizer::default(), epochs: 1, latents: None }
    }
}

/// How steps are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// AdamW on both matrices, a step for each batch, with moments of 0.9 and 0.999. Where latents are quantized, `B`
    /// is fitted to them as they are stored after each pass, in closed form.
    AdamW {
        /// Step size of the first step; it falls linearly to 0. Steps are made where inputs are white and keys have a
        /// mean square of 1, so that one size fits all layers.
        learning_rate: f64,
        /// Share of the parameters that a step takes away, times the step size.
        weight_decay: f64,
    },
    /// Each matrix in turn by its closed form, once a pass: `B` is fitted to the latents as they are stored, and `A`
    /// gives every token the best latent for that `B`.
    Alternating,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::AdamW { learning_rate: 5e-3, weight_decay: 0.0 }
    }
}

/// How a cache stores latents.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentFormat {
    /// The format. Groups run along the latent of a token, or along tokens.
    pub format: Format,
    /// Tokens that are quantized together, channel by channel (the paper's keys, 32); `None`: every token by itself
    /// (its values). Tokens after the last whole block are left as they are, as in the cache.
    #[serde(default)]
    pub block: Option<usize>,
}

impl LatentFormat {
    /// The latents as they come back out of the cache, `[tokens, width]`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for blocks of no tokens, [`Error::Core`] for what the format cannot hold.
    pub fn round(&self, latents: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        let Some(block) = self.block else { return self.round_rows(latents) };
        if block == 0 {
            return Err(Error::Setting { setting: "block", value: 0.0, expected: "a positive number of tokens" });
        }
        let mut out = latents.to_owned();
        for first in (0..latents.nrows() / block * block).step_by(block) {
            let tokens = Slice::from(first..first + block);
            let rounded = self.round_rows(latents.slice_axis(Axis(0), tokens).t())?;
            out.slice_axis_mut(Axis(0), tokens).assign(&rounded.t());
        }
        Ok(out)
    }

    /// Adds what gradients of rounded latents say about ranges. An error of rounding is a fixed part of the range of
    /// its group, and grows with it: `∂L/∂range = Σ g (ĉ − c) / range`, which the elements at both ends of the range
    /// receive.
    fn add_range_gradient(&self, latents: &Array2<f64>, stored: &Array2<f64>, gradient: &mut Array2<f64>) {
        for group in self.groups(latents.dim()) {
            let pull: f64 = group.iter().map(|&at| gradient[at] * (stored[at] - latents[at])).sum();
            let by_value = |a: &&(usize, usize), b: &&(usize, usize)| latents[**a].total_cmp(&latents[**b]);
            let (Some(&low), Some(&high)) = (group.iter().min_by(by_value), group.iter().max_by(by_value)) else {
                continue;
            };
            let range = if self.format.zero_point() == ZeroPoint::None {
                // A range about zero ends at the largest magnitude.
                let end = if -latents[low] > latents[high] { low } else { high };
                [(end, latents[end]), (end, 0.0)]
            } else {
                let range = latents[high] - latents[low];
                [(high, range), (low, -range)]
            };
            for (end, range) in range.into_iter().filter(|(_, range)| *range != 0.0) {
                gradient[end] += pull / range;
            }
        }
    }

    /// Places of the latents that share a range.
    fn groups(&self, (tokens, width): (usize, usize)) -> Vec<Vec<(usize, usize)>> {
        let line = self.block.unwrap_or(width);
        let group = match self.format.block {
            Block::Row => line,
            Block::Group(group) => usize::try_from(group).unwrap_or(line),
            _ => return Vec::new(),
        };
        let cut = |line: Vec<(usize, usize)>| line.chunks(group.max(1)).map(<[_]>::to_vec).collect::<Vec<_>>();
        match self.block {
            None => (0..tokens).flat_map(|t| cut((0..width).map(|c| (t, c)).collect())).collect(),
            Some(block) => (0..tokens / block)
                .flat_map(|b| (0..width).map(move |c| (b * block..(b + 1) * block).map(|t| (t, c)).collect()))
                .flat_map(cut)
                .collect(),
        }
    }

    fn round_rows(&self, rows: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        let (count, length) = rows.dim();
        if rows.is_empty() {
            return Ok(rows.to_owned());
        }
        let values = narrow(&rows.as_standard_layout().into_owned());
        let packed = PackedTensor::encode(self.format, &Shaped::new(&values, &[count, length])?)?;
        let decoded = packed.decode();
        Ok(Array2::from_shape_fn((count, length), |(i, j)| f64::from(decoded[i * length + j])))
    }
}

/// What training did. Losses are means over tokens and channels, with latents as they are stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainLog {
    /// Before the first step.
    pub before: f64,
    /// After each pass.
    pub epochs: Vec<f64>,
    /// Of the adapter that was kept: the best one, be it the first.
    pub after: f64,
}

/// Trains an adapter of a projection `[out, in]` on inputs, batches of `[tokens, in]`.
///
/// Gradients pass through the rounding of latents unchanged (straight-through), and ranges have gradients of their own:
/// what rounding loses is a part of a range, and without them nothing would tell the adapter to keep ranges small. The
/// authors' code stops gradients at the least and the largest element of each group instead, as if those were clipped.
/// The adapter with the least loss over all batches is kept, so training never makes it worse on its own data.
///
/// Steps are made in coordinates in which inputs are white and keys have a mean square of 1. The optimum is the same;
/// the paper's step size of 5·10⁻⁵ is for others.
///
/// Keys in place of inputs, with the identity as weight, train the maps of a cache that is given keys.
///
/// # Errors
///
/// [`Error::Missing`] without a token, [`Error::Features`] for widths that differ, [`Error::Setting`] for a learning
/// rate or a decay that is negative or not finite, [`Error::Diverged`], [`Error::Core`] for a weight or latents that
/// cannot be stored.
pub fn train(
    weight: &impl quant_core::Tensor,
    batches: &[ArrayView2<'_, f64>],
    adapter: &mut KvAdapter,
    config: &Training,
) -> Result<TrainLog, Error> {
    let w = read(weight)?;
    batches.iter().try_for_each(|&x| adapter.check(&w, x))?;
    let problem = Problem::new(&w, batches, config.latents)?;
    let mut state = problem.enter(adapter);
    let before = problem.loss(&state)?;
    let mut adam = Adam::new(&state, config, problem.pairs.len())?;
    let (mut best, mut after, mut epochs) = (None, before, Vec::new());
    for epoch in 0..config.epochs {
        match &mut adam {
            Some(adam) => problem.steps(&mut state, adam)?,
            None => problem.alternate(&mut state)?,
        }
        let loss = problem.loss(&state)?;
        if !loss.is_finite() {
            return Err(Error::Diverged { epoch, loss });
        }
        epochs.push(loss);
        if loss < after {
            (after, best) = (loss, Some(state.clone()));
        }
    }
    if let Some(best) = best {
        problem.leave(best, adapter)?;
    }
    Ok(TrainLog { before, epochs, after })
}

/// `min ‖K − Q(x A) B‖²` in coordinates in which one step size fits all layers: inputs are whitened, `x L⁻ᵀ` with `L
/// Lᵀ` the mean of `x xᵀ`, and keys have a mean square of 1. Latents change by a factor alone, which quantizers do not
/// mind.
struct Problem {
    /// The weight for these inputs and keys.
    w: Array2<f64>,
    l: Array2<f64>,
    /// Root of the mean square of keys.
    scale: f64,
    /// Inputs and keys.
    pairs: Vec<(Array2<f64>, Array2<f64>)>,
    latents: Option<LatentFormat>,
}

impl Problem {
    fn new(w: &Array2<f64>, batches: &[ArrayView2<'_, f64>], latents: Option<LatentFormat>) -> Result<Self, Error> {
        let tokens: usize = batches.iter().map(|x| x.nrows()).sum();
        if tokens == 0 {
            return Err(Error::Missing { method: "training of CSKV", what: "inputs" });
        }
        let mut gram = Array2::zeros((w.ncols(), w.ncols()));
        batches.iter().for_each(|x| gram += &(matmul(x.t(), *x) / tokens as f64));
        let energy = crate::output_energy(w.view(), gram.view()) / w.nrows() as f64;
        if energy == 0.0 {
            return Err(Error::AllZero { what: "keys" });
        }
        let (scale, floor) = (energy.sqrt(), DAMPING * gram.diag().sum() / w.ncols() as f64);
        gram.diag_mut().map_inplace(|value| *value += floor);
        let l = cholesky(gram.view())?;
        let pair = |x: &ArrayView2<'_, f64>| -> Result<_, Error> {
            Ok((solve_lower(l.view(), x.t())?.reversed_axes(), matmul(*x, w.t()) / scale))
        };
        let pairs = batches.iter().filter(|x| x.nrows() > 0).map(pair).collect::<Result<_, _>>()?;
        Ok(Self { w: matmul(w.view(), l.view()) / scale, l, scale, pairs, latents })
    }

    fn enter(&self, adapter: &KvAdapter) -> KvAdapter {
        let share = self.scale.sqrt();
        KvAdapter { a: matmul(self.l.t(), adapter.a.view()) / share, b: &adapter.b / share, bias: None }
    }

    fn leave(&self, state: KvAdapter, adapter: &mut KvAdapter) -> Result<(), Error> {
        let share = self.scale.sqrt();
        adapter.a = solve_upper(self.l.t(), state.a.view())? * share;
        adapter.b = state.b * share;
        Ok(())
    }

    /// Latents as they are stored.
    fn stored(&self, adapter: &KvAdapter, x: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        let latents = adapter.latents(x);
        self.latents.map_or(Ok(latents.clone()), |format| format.round(latents.view()))
    }

    fn loss(&self, adapter: &KvAdapter) -> Result<f64, Error> {
        let (mut sum, mut count) = (0.0, 0);
        for (x, keys) in &self.pairs {
            sum += squared_norm(&(matmul(self.stored(adapter, x.view())?.view(), adapter.b.view()) - keys));
            count += keys.len();
        }
        Ok(sum / count as f64 * self.scale * self.scale)
    }

    /// A step for each batch: with `E = 2 (Q(x A) B − K)` over the number of elements, `∂B = Q(x A)ᵀ E` and `∂A = xᵀ E
    /// Bᵀ`, the latter with the gradient of ranges.
    fn steps(&self, adapter: &mut KvAdapter, adam: &mut Adam) -> Result<(), Error> {
        for (x, keys) in &self.pairs {
            let latents = adapter.latents(x.view());
            let stored = self.latents.map_or(Ok(latents.clone()), |format| format.round(latents.view()))?;
            let error = (matmul(stored.view(), adapter.b.view()) - keys) * (2.0 / keys.len() as f64);
            let mut of_latents = matmul(error.view(), adapter.b.t());
            if let Some(format) = self.latents {
                format.add_range_gradient(&latents, &stored, &mut of_latents);
            }
            let (of_a, of_b) = (matmul(x.t(), of_latents.view()), matmul(stored.t(), error.view()));
            adam.step(adapter, &of_a, &of_b);
        }
        if self.latents.is_some() { self.fit_b(adapter) } else { Ok(()) }
    }

    /// `B = (CᵀC)⁻¹ CᵀK` for the latents as they are stored, then `A = Wᵀ B⁺`, and `B` once more.
    fn alternate(&self, adapter: &mut KvAdapter) -> Result<(), Error> {
        self.fit_b(adapter)?;
        adapter.a = matmul(self.w.t(), right_inverse(&adapter.b)?.view());
        self.fit_b(adapter)
    }

    fn fit_b(&self, adapter: &mut KvAdapter) -> Result<(), Error> {
        let width = adapter.width();
        let mut gram = Array2::zeros((width, width));
        let mut cross = Array2::zeros(adapter.b.dim());
        for (x, keys) in &self.pairs {
            let latents = self.stored(adapter, x.view())?;
            gram += &matmul(latents.t(), latents.view());
            cross += &matmul(latents.t(), keys.view());
        }
        // Latents that never fire get zeros, not an error.
        let floor = LEAST * gram.diag().sum() / width as f64;
        gram.diag_mut().map_inplace(|value| *value += floor.max(f64::MIN_POSITIVE));
        adapter.b = solve_positive(gram, cross.view())?;
        Ok(())
    }
}

/// Share of the mean diagonal that is added to the Gram matrix of latents.
const LEAST: f64 = 1e-12;
/// Share of the mean diagonal that is added to the Gram matrix of inputs before they are whitened by it.
const DAMPING: f64 = 1e-6;
/// AdamW's decay of both moments and what keeps it from dividing by zero: the usual ones.
const MOMENTS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// Decoupled weight decay and linear decay of the step size (Loshchilov and Hutter, arXiv 1711.05101).
struct Adam {
    learning_rate: f64,
    weight_decay: f64,
    step: usize,
    steps: usize,
    a: [Array2<f64>; 2],
    b: [Array2<f64>; 2],
}

impl Adam {
    fn new(adapter: &KvAdapter, config: &Training, batches: usize) -> Result<Option<Self>, Error> {
        let Optimizer::AdamW { learning_rate, weight_decay } = config.optimizer else { return Ok(None) };
        for (setting, value) in [("learning_rate", learning_rate), ("weight_decay", weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Setting { setting, value, expected: "a number from 0 on" });
            }
        }
        let zeros = |like: &Array2<f64>| [Array2::zeros(like.dim()), Array2::zeros(like.dim())];
        let (a, b) = (zeros(&adapter.a), zeros(&adapter.b));
        Ok(Some(Self { learning_rate, weight_decay, step: 0, steps: batches.saturating_mul(config.epochs), a, b }))
    }

    fn step(&mut self, adapter: &mut KvAdapter, of_a: &Array2<f64>, of_b: &Array2<f64>) {
        let rate = self.learning_rate * (1.0 - self.step as f64 / self.steps.max(1) as f64);
        self.step += 1;
        let corrections = MOMENTS.map(|moment| 1.0 - moment.powf(self.step as f64));
        let decay = 1.0 - rate * self.weight_decay;
        for (values, gradient, [first, second]) in
            [(&mut adapter.a, of_a, &mut self.a), (&mut adapter.b, of_b, &mut self.b)]
        {
            first.zip_mut_with(gradient, |m, g| *m = MOMENTS[0] * *m + (1.0 - MOMENTS[0]) * g);
            second.zip_mut_with(gradient, |v, g| *v = MOMENTS[1] * *v + (1.0 - MOMENTS[1]) * g * g);
            let moments = first.iter().zip(second.iter());
            values.iter_mut().zip(moments).for_each(|(value, (m, v))| {
                *value = *value * decay - rate * (m / corrections[0]) / ((v / corrections[1]).sqrt() + EPSILON);
            });
        }
    }
}
