//! What each scheme costs each block: the Δ of MxMoE.

use crate::activations::round_rows;
use crate::{Block, Dispatch, Error, ExpertWeights, MoeLayer, Scheme, real};
use ndarray::{Array2, ArrayView2};
use quant_core::{Format, Shaped, fake_quantize};
use quant_linalg::matmul;
use rayon::prelude::*;

/// How much a layer's output changes when one block of one expert takes one scheme and all else stays exact.
///
/// `Δ[i, j, k] = ‖Ô − O‖_F` over all tokens (MxMoE, arXiv 2505.05799, section 3), for expert `i`, block `j` and scheme
/// `k`. Only the tokens routed to the expert change, each by its gate `p` times the change `δ` of the expert's output, so
/// `Δ² = Σ p² ‖δ‖²` and the rest of the layer need not be run. [`Sensitivity::reference`] runs it all the same.
///
/// Weights are rounded to nearest, inputs token by token where the scheme rounds them; products and sums are f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    experts: usize,
    schemes: Vec<Scheme>,
    /// `[experts, 3, schemes]`.
    delta: Vec<f64>,
    /// `‖W − Ŵ‖_F`, in the same order; zeros when unknown.
    weight_error: Vec<f64>,
}

impl Sensitivity {
    /// A table of values `[experts, 3, schemes]` that were found elsewhere; blocks in the order of [`Block::ALL`].
    ///
    /// # Errors
    ///
    /// [`Error::Nothing`] without schemes, [`Error::Length`], [`Error::Sensitivity`] for a value that is NaN, infinite or
    /// negative.
    pub fn new(experts: usize, schemes: Vec<Scheme>, delta: Vec<f64>) -> Result<Self, Error> {
        let expected = experts * Block::ALL.len() * schemes.len();
        if schemes.is_empty() {
            return Err(Error::Nothing { what: "schemes" });
        }
        if delta.len() != expected {
            return Err(Error::Length { what: "the table of sensitivities", expected, found: delta.len() });
        }
        let table = Self { experts, weight_error: vec![0.0; delta.len()], schemes, delta };
        table.check()?;
        Ok(table)
    }

    /// Measures a layer on inputs `x` `[tokens, hidden]` that are routed as `dispatch` says.
    ///
    /// # Errors
    ///
    /// [`Error::Nothing`], [`Error::Length`], [`Error::Mixture`] when the router has another number of experts,
    /// [`Error::Core`] when a scheme cannot hold a block or values are not finite.
    pub fn measure(layer: &MoeLayer<'_>, x: &[f32], dispatch: &Dispatch, schemes: &[Scheme]) -> Result<Self, Error> {
        Self::measure_with(layer, x, dispatch, schemes, |_, _, weight, shape, format| {
            Ok(fake_quantize(format, &Shaped::new(weight, &shape)?)?)
        })
    }

    /// As [`Sensitivity::measure`] with any method in the place of rounding to nearest: `quantize` is given expert, block,
    /// weight, its shape `[out, in]` and the format, and returns what the weight becomes.
    ///
    /// # Errors
    ///
    /// As [`Sensitivity::measure`], and whatever `quantize` fails with.
    pub fn measure_with(
        layer: &MoeLayer<'_>,
        x: &[f32],
        dispatch: &Dispatch,
        schemes: &[Scheme],
        quantize: impl Fn(usize, Block, &[f32], [usize; 2], Format) -> Result<Vec<f32>, Error> + Sync,
    ) -> Result<Self, Error> {
        check(layer, x, dispatch, schemes)?;
        let [hidden, _] = layer.widths();
        let one = |expert: usize| {
            let tokens = dispatch.tokens_of(expert);
            let rows: Vec<f32> = tokens.iter().flat_map(|t| x[t * hidden..(t + 1) * hidden].iter().copied()).collect();
            let weights = &layer.experts()[expert];
            let run = Run::new(layer, weights, rows)?;
            let mut found = Vec::with_capacity(3 * schemes.len());
            for block in Block::ALL {
                let (weight, shape) = (weights.block(block), block.shape(layer.widths()));
                for scheme in schemes {
                    let rounded = quantize(expert, block, weight, shape, scheme.weight)?;
                    let error = weight.iter().zip(&rounded).map(|(w, q)| (f64::from(*w) - f64::from(*q)).powi(2));
                    let error = error.sum::<f64>().sqrt();
                    found.push((run.change(block, &rounded, scheme.activation, dispatch.gates_of(expert))?, error));
                }
            }
            Ok(found)
        };
        let found: Vec<Result<_, Error>> = (0..layer.experts().len()).into_par_iter().map(one).collect();
        let found: Vec<Vec<(f64, f64)>> = found.into_iter().collect::<Result<_, _>>()?;
        let (delta, weight_error) = found.into_iter().flatten().unzip();
        let table = Self { experts: layer.experts().len(), schemes: schemes.to_vec(), delta, weight_error };
        table.check()?;
        Ok(table)
    }

    /// The same by the definition: the whole layer is run once for each expert, block and scheme. For tests.
    ///
    /// # Errors
    ///
    /// As [`Sensitivity::measure`].
    pub fn reference(layer: &MoeLayer<'_>, x: &[f32], dispatch: &Dispatch, schemes: &[Scheme]) -> Result<Self, Error> {
        check(layer, x, dispatch, schemes)?;
        let exact = whole(layer, x, dispatch, None)?;
        let (mut delta, mut weight_error) = (Vec::new(), Vec::new());
        for (expert, weights) in layer.experts().iter().enumerate() {
            for block in Block::ALL {
                for scheme in schemes {
                    let shape = block.shape(layer.widths());
                    let weight = weights.block(block);
                    let rounded = fake_quantize(scheme.weight, &Shaped::new(weight, &shape)?)?;
                    let changed = Changed { expert, block, weight: &rounded, activation: scheme.activation };
                    let output = whole(layer, x, dispatch, Some(&changed))?;
                    let squares = output.iter().zip(&exact).map(|(a, b)| (a - b).powi(2));
                    delta.push(squares.sum::<f64>().sqrt());
                    let error = weight.iter().zip(&rounded).map(|(w, q)| (f64::from(*w) - f64::from(*q)).powi(2));
                    weight_error.push(error.sum::<f64>().sqrt());
                }
            }
        }
        Ok(Self { experts: layer.experts().len(), schemes: schemes.to_vec(), delta, weight_error })
    }

    /// Gives experts that saw fewer than `least` tokens the loss that they would have had with so many.
    ///
    /// An expert without tokens has Δ = 0 whatever the scheme and would be driven to the fewest bits. Its loss is guessed
    /// from its weights: over the experts that were seen, `κ² = Σ Δ² / Σ ‖W − Ŵ‖² · tokens` of the block and scheme, then
    /// `Δ² = κ² · ‖W − Ŵ‖² · least`. Larger measured losses stay. `tokens` are those of each expert. A departure from
    /// the paper.
    ///
    /// # Errors
    ///
    /// [`Error::Length`].
    pub fn with_least_tokens(mut self, tokens: &[u64], least: u64) -> Result<Self, Error> {
        if tokens.len() != self.experts {
            return Err(Error::Length { what: "tokens of experts", expected: self.experts, found: tokens.len() });
        }
        let schemes = self.schemes.len();
        for column in 0..Block::ALL.len() * schemes {
            let at = |expert: usize| expert * Block::ALL.len() * schemes + column;
            let seen = || (0..self.experts).filter(|&expert| tokens[expert] >= least.max(1));
            let losses: f64 = seen().map(|expert| self.delta[at(expert)].powi(2)).sum();
            let errors: f64 = seen().map(|e| self.weight_error[at(e)].powi(2) * real(tokens[e])).sum();
            if errors == 0.0 {
                continue;
            }
            for expert in (0..self.experts).filter(|&expert| tokens[expert] < least) {
                let guess = (losses / errors * real(least)).sqrt() * self.weight_error[at(expert)];
                self.delta[at(expert)] = self.delta[at(expert)].max(guess);
            }
        }
        Ok(self)
    }

    /// What an allocation by frequency alone supposes: every expert loses the same a token, so a block's loss is the share of
    /// tokens its expert sees times the mean relative error that the scheme leaves in weights. A baseline.
    ///
    /// # Errors
    ///
    /// [`Error::Length`].
    pub fn frequency_only(&self, layer: &MoeLayer<'_>, tokens: &[u64]) -> Result<Self, Error> {
        let experts = layer.experts().len();
        if tokens.len() != self.experts || experts != self.experts {
            return Err(Error::Length { what: "tokens of experts", expected: self.experts, found: tokens.len() });
        }
        let norm = |expert: usize, block: Block| -> f64 {
            layer.experts()[expert].block(block).iter().map(|w| f64::from(*w).powi(2)).sum()
        };
        let schemes = self.schemes.len();
        let mean: Vec<f64> = (0..schemes)
            .map(|scheme| {
                let (mut error, mut weight) = (0.0, 0.0);
                for expert in 0..experts {
                    for block in Block::ALL {
                        error += self.weight_error[self.at(expert, block, scheme)].powi(2);
                        weight += norm(expert, block);
                    }
                }
                if weight > 0.0 { (error / weight).sqrt() } else { 0.0 }
            })
            .collect();
        let total = real(tokens.iter().sum::<u64>().max(1));
        let blocks = tokens.iter().flat_map(|&n| [real(n) / total; 3]);
        let delta = blocks.flat_map(|share| mean.iter().map(move |error| share * error)).collect();
        Ok(Self { delta, ..self.clone() })
    }

    /// Number of experts.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The schemes.
    #[must_use]
    pub fn schemes(&self) -> &[Scheme] {
        &self.schemes
    }

    /// Δ of a block under the scheme of this index.
    ///
    /// # Panics
    ///
    /// When there is no such expert or scheme.
    #[must_use]
    pub fn delta(&self, expert: usize, block: Block, scheme: usize) -> f64 {
        self.delta[self.at(expert, block, scheme)]
    }

    /// `‖W − Ŵ‖_F` of a block under the scheme of this index; 0 in a table that was not measured.
    ///
    /// # Panics
    ///
    /// When there is no such expert or scheme.
    #[must_use]
    pub fn weight_error(&self, expert: usize, block: Block, scheme: usize) -> f64 {
        self.weight_error[self.at(expert, block, scheme)]
    }

    fn at(&self, expert: usize, block: Block, scheme: usize) -> usize {
        (expert * Block::ALL.len() + block.index()) * self.schemes.len() + scheme
    }

    fn check(&self) -> Result<(), Error> {
        match self.delta.iter().position(|delta| !delta.is_finite() || *delta < 0.0) {
            None => Ok(()),
            Some(at) => {
                let (rest, scheme) = (at / self.schemes.len(), at % self.schemes.len());
                let (expert, block) = (rest / Block::ALL.len(), Block::ALL[rest % Block::ALL.len()]);
                Err(Error::Sensitivity { expert, block, scheme, value: self.delta[at] })
            }
        }
    }
}

fn check(layer: &MoeLayer<'_>, x: &[f32], dispatch: &Dispatch, schemes: &[Scheme]) -> Result<(), Error> {
    let [hidden, inner] = layer.widths();
    if schemes.is_empty() {
        return Err(Error::Nothing { what: "schemes" });
    }
    if dispatch.experts() != layer.experts().len() {
        return Err(Error::Mixture { experts: dispatch.experts(), top_k: dispatch.top_k(), hidden, inner });
    }
    let expected = dispatch.tokens() * hidden;
    if x.len() != expected {
        return Err(Error::Length { what: "the inputs of the layer", expected, found: x.len() });
    }
    Ok(())
}

/// One expert's path on its own tokens, exact.
struct Run<'a> {
    layer: &'a MoeLayer<'a>,
    weights: &'a ExpertWeights<'a>,
    rows: Vec<f32>,
    x: Array2<f64>,
    gate: Array2<f64>,
    up: Array2<f64>,
    inner: Array2<f64>,
    down: Array2<f64>,
    output: Array2<f64>,
}

impl<'a> Run<'a> {
    fn new(layer: &'a MoeLayer<'a>, weights: &'a ExpertWeights<'a>, rows: Vec<f32>) -> Result<Self, Error> {
        let [hidden, inner_width] = layer.widths();
        let x = matrix(&rows, hidden)?;
        let gate = product(&x, weights.gate, [inner_width, hidden])?;
        let up = product(&x, weights.up, [inner_width, hidden])?;
        let inner = gated(layer, &gate, &up);
        let down = matrix(weights.down, inner_width)?;
        let output = matmul(inner.view(), down.t());
        Ok(Self { layer, weights, rows, x, gate, up, inner, down, output })
    }

    /// `√(Σ p² ‖δ‖²)` when one block becomes `rounded` and its inputs are rounded too.
    fn change(&self, block: Block, rounded: &[f32], activation: Option<Format>, gates: &[f32]) -> Result<f64, Error> {
        if self.rows.is_empty() {
            return Ok(0.0);
        }
        let [hidden, inner_width] = self.layer.widths();
        let expected = self.weights.block(block).len();
        if rounded.len() != expected {
            return Err(Error::Length { what: "the rounded weight", expected, found: rounded.len() });
        }
        let difference = match block {
            Block::Gate | Block::Up => {
                let input = match activation {
                    None => &self.x,
                    Some(format) => &matrix(&round_rows(format, &self.rows, hidden)?, hidden)?,
                };
                let changed = product(input, rounded, [inner_width, hidden])?;
                let inner = match block {
                    Block::Gate => gated(self.layer, &changed, &self.up),
                    _ => gated(self.layer, &self.gate, &changed),
                };
                matmul((inner - &self.inner).view(), self.down.t())
            }
            Block::Down => {
                let output = product(&rounded_inner(&self.inner, activation)?, rounded, [hidden, inner_width])?;
                output - &self.output
            }
        };
        let squares = difference.outer_iter().zip(gates).map(|(row, gate)| {
            let row: f64 = row.iter().map(|d| d * d).sum();
            f64::from(*gate).powi(2) * row
        });
        Ok(squares.sum::<f64>().sqrt())
    }
}

/// The block that is not exact.
struct Changed<'a> {
    expert: usize,
    block: Block,
    weight: &'a [f32],
    activation: Option<Format>,
}

/// The output of all experts, `[tokens, hidden]`.
fn whole(
    layer: &MoeLayer<'_>,
    x: &[f32],
    dispatch: &Dispatch,
    changed: Option<&Changed<'_>>,
) -> Result<Array2<f64>, Error> {
    let [hidden, inner_width] = layer.widths();
    let mut output = Array2::zeros((dispatch.tokens(), hidden));
    for (expert, weights) in layer.experts().iter().enumerate() {
        let change = |block| changed.filter(|changed| changed.expert == expert && changed.block == block);
        let weight = |block| change(block).map_or(weights.block(block), |changed| changed.weight);
        let activation = |block| change(block).and_then(|changed| changed.activation);
        let tokens = dispatch.tokens_of(expert);
        let rows: Vec<f32> = tokens.iter().flat_map(|t| x[t * hidden..(t + 1) * hidden].iter().copied()).collect();
        if rows.is_empty() {
            continue;
        }
        let input = |block| match activation(block) {
            None => matrix(&rows, hidden),
            Some(format) => matrix(&round_rows(format, &rows, hidden)?, hidden),
        };
        let gate = product(&input(Block::Gate)?, weight(Block::Gate), [inner_width, hidden])?;
        let up = product(&input(Block::Up)?, weight(Block::Up), [inner_width, hidden])?;
        let inner = rounded_inner(&gated(layer, &gate, &up), activation(Block::Down))?;
        let y = product(&inner, weight(Block::Down), [hidden, inner_width])?;
        for ((&token, &p), y) in tokens.iter().zip(dispatch.gates_of(expert)).zip(y.outer_iter()) {
            output.row_mut(token).scaled_add(f64::from(p), &y);
        }
    }
    Ok(output)
}

fn gated(layer: &MoeLayer<'_>, gate: &Array2<f64>, up: &Array2<f64>) -> Array2<f64> {
    let mut inner = gate.mapv(|x| layer.activation().of(x));
    inner.zip_mut_with(up, |g, u| *g *= u);
    inner
}

/// The input of a down matrix as its scheme rounds it; activations are f32 where they are rounded.
fn rounded_inner(inner: &Array2<f64>, activation: Option<Format>) -> Result<Array2<f64>, Error> {
    let Some(format) = activation else { return Ok(inner.clone()) };
    #[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
    let rows: Vec<f32> = inner.iter().map(|v| *v as f32).collect();
    matrix(&round_rows(format, &rows, inner.ncols())?, inner.ncols())
}

/// `x Wᵀ`.
fn product(x: &Array2<f64>, weight: &[f32], [out, features]: [usize; 2]) -> Result<Array2<f64>, Error> {
    debug_assert_eq!(weight.len(), out * features, "checked before");
    Ok(matmul(x.view(), matrix(weight, features)?.t()))
}

fn matrix(values: &[f32], columns: usize) -> Result<Array2<f64>, Error> {
    let rows = values.len() / columns.max(1);
    let view = ArrayView2::from_shape((rows, columns), values);
    let expected = rows * columns;
    view.map(|view| view.mapv(f64::from)).map_err(|_| Error::Length { what: "a matrix", expected, found: values.len() })
}
