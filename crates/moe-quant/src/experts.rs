//! The experts of a layer, computed together.

use crate::activations::round_rows;
use crate::{Activation, Block, Dispatch, Error, Scheme};
use quant_core::{Activations, Format, Group, Linear, PackedTensor, PreparedLinear, grouped_matmul};
use rayon::prelude::*;
use std::sync::Arc;

/// One block that can be applied: a weight of any kind and perhaps a format that its inputs are rounded to.
#[derive(Clone, Debug)]
pub struct BlockLinear {
    /// The weight.
    pub weight: Arc<dyn Linear>,
    /// What each row of inputs is rounded to before the product.
    pub activation: Option<Format>,
}

impl BlockLinear {
    /// The fastest form of a packed weight under a scheme: arranged for this CPU, and with kernels for 8-bit inputs where the
    /// scheme rounds inputs to `int8`.
    #[must_use]
    pub fn arranged(scheme: Scheme, packed: &PackedTensor<'static>) -> Self {
        if scheme.activation == Some(Format::INT8)
            && let Ok(weight) = PreparedLinear::new(packed).and_then(|p| p.with_activations(Activations::Int8Row))
        {
            return Self { weight: Arc::new(weight), activation: None };
        }
        let weight = packed.prepared().map_or_else(|| Arc::new(packed.clone()) as Arc<dyn Linear>, Arc::from);
        Self { weight, activation: scheme.activation }
    }
}

/// The routed experts of a layer, each block in a format of its own.
///
/// A batch takes three grouped products ([`grouped_matmul`]): rows are sorted by expert, gate and up of all experts run
/// in one call each, then down. An expert's weights are read once for each piece of its rows, not once for each token.
///
/// ```
/// use moe_quant::{Activation, BlockLinear, Dispatch, MixedExperts};
/// use quant_core::{Format, PackedTensor, Shaped};
/// use std::sync::Arc;
///
/// let block = |name: &str, shape: [usize; 2]| -> Result<BlockLinear, Box<dyn std::error::Error>> {
///     let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
///     let packed = PackedTensor::encode(name.parse::<Format>()?, &Shaped::new(&values, &shape)?)?;
///     Ok(BlockLinear { weight: Arc::new(packed), activation: None })
/// };
/// let expert = |gate_up: &str, down: &str| -> Result<[BlockLinear; 3], Box<dyn std::error::Error>> {
///     Ok([block(gate_up, [16, 32])?, block(gate_up, [16, 32])?, block(down, [32, 16])?])
/// };
/// // Two experts: one in 2 bits but for its down matrix, one in 4 bits.
/// let experts = vec![expert("int2-g32-asym", "int8")?, expert("int4-g32-asym", "int4-g32-asym")?];
/// let experts = MixedExperts::new(experts, Activation::Silu)?;
///
/// let dispatch = Dispatch::new(2, 1, &[1, 0, 1], &[0.5, 1.0, 0.25])?; // three tokens
/// let y = experts.forward(&[0.1; 96], &dispatch)?;
/// assert_eq!(y.len(), 96);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct MixedExperts {
    experts: Vec<[BlockLinear; 3]>,
    widths: [usize; 2],
    activation: Activation,
}

impl MixedExperts {
    /// Experts as gate, up and down.
    ///
    /// # Errors
    ///
    /// [`Error::Mixture`] without experts, [`Error::Length`] for a block of other features than the first expert's.
    pub fn new(experts: Vec<[BlockLinear; 3]>, activation: Activation) -> Result<Self, Error> {
        let Some([gate, _, _]) = experts.first() else {
            return Err(Error::Mixture { experts: 0, top_k: 1, hidden: 0, inner: 0 });
        };
        let widths = [gate.weight.in_features(), gate.weight.out_features()];
        for blocks in &experts {
            for (block, linear) in Block::ALL.into_iter().zip(blocks) {
                let [outputs, features] = block.shape(widths);
                let found = [linear.weight.out_features(), linear.weight.in_features()];
                for (what, expected, found) in
                    [("the outputs of a block", outputs, found[0]), ("the inputs of a block", features, found[1])]
                {
                    if expected != found {
                        return Err(Error::Length { what, expected, found });
                    }
                }
            }
        }
        Ok(Self { experts, widths, activation })
    }

    /// `[hidden, inner]`.
    #[must_use]
    pub fn widths(&self) -> [usize; 2] {
        self.widths
    }

    /// The gated sum of the experts of each token, for `x` `[tokens, hidden]`.
    ///
    /// # Errors
    ///
    /// [`Error::Mixture`] when the router has another number of experts, [`Error::Length`], [`Error::Core`].
    pub fn forward(&self, x: &[f32], dispatch: &Dispatch) -> Result<Vec<f32>, Error> {
        let [hidden, inner] = self.widths;
        if dispatch.experts() != self.experts.len() {
            return Err(Error::Mixture { experts: dispatch.experts(), top_k: dispatch.top_k(), hidden, inner });
        }
        let sorted = dispatch.gather(x, hidden)?;
        let mut gate = self.product(Block::Gate, &sorted, dispatch)?;
        let up = self.product(Block::Up, &sorted, dispatch)?;
        let activation = self.activation;
        let gated = |(gate, up): (&mut f32, &f32)| *gate = activation.of_f32(*gate) * up;
        gate.par_iter_mut().zip(&up).with_min_len(1 << 12).for_each(gated);
        let y = self.product(Block::Down, &gate, dispatch)?;
        let mut out = vec![0.0; x.len()];
        dispatch.scatter_add(&y, &mut out)?;
        Ok(out)
    }

    /// One block of all experts on sorted rows.
    fn product(&self, block: Block, sorted: &[f32], dispatch: &Dispatch) -> Result<Vec<f32>, Error> {
        let [outputs, features] = block.shape(self.widths);
        let linears = self.experts.iter().map(|blocks| &blocks[block.index()]);
        let mut rounded: Option<Vec<f32>> = None;
        for (expert, linear) in linears.clone().enumerate() {
            let Some(format) = linear.activation else { continue };
            let rows = dispatch.rows_of(expert);
            let range = rows.start * features..rows.end * features;
            let new = round_rows(format, &sorted[range.clone()], features)?;
            rounded.get_or_insert_with(|| sorted.to_vec())[range].copy_from_slice(&new);
        }
        let groups = linears.enumerate().map(|(expert, linear)| {
            let rows = dispatch.rows_of(expert).len();
            Group { weight: linear.weight.as_ref(), rows }
        });
        let groups: Vec<Group<'_>> = groups.collect();
        let mut y = vec![0.0; sorted.len() / features * outputs];
        grouped_matmul(&groups, rounded.as_deref().unwrap_or(sorted), &mut y)?;
        Ok(y)
    }
}
