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
        let Ok(prepared) = PreparedLinear::new(packed) else {
            return Self { weight: Arc::new(packed.clone()), activation: scheme.activation };
        };
        let (weight, activation) = with_activations(prepared, scheme);
        Self { weight: Arc::new(weight), activation }
    }

    /// As [`BlockLinear::arranged`], so many weights of equal values, each in memory of its own: for measuring.
    #[must_use]
    pub fn copies(scheme: Scheme, packed: &PackedTensor<'static>, count: usize) -> Vec<Self> {
        let Ok(prepared) = PreparedLinear::new(packed) else {
            return (0..count).map(|_| Self::arranged(scheme, packed)).collect();
        };
        let (weight, activation) = with_activations(prepared, scheme);
        (0..count).into_par_iter().map(|_| Self { weight: Arc::new(weight.clone()), activation }).collect()
    }
}

/// Kernels for 8-bit inputs where there are any; else what inputs are to be rounded to before.
fn with_activations(weight: PreparedLinear, scheme: Scheme) -> (PreparedLinear, Option<Format>) {
    if scheme.activation != Some(Format::INT8) {
        return (weight, scheme.activation);
    }
    match weight.clone().with_activations(Activations::Int8Row) {
        Ok(rounding) => (rounding, None),
        Err(_) => (weight, scheme.activation),
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
        self.forward_with(x, dispatch, &mut Scratch::default())
    }

    /// [`MixedExperts::forward`] with memory that is kept from one batch, or layer, to the next.
    ///
    /// # Errors
    ///
    /// As [`MixedExperts::forward`].
    pub fn forward_with(&self, x: &[f32], dispatch: &Dispatch, scratch: &mut Scratch) -> Result<Vec<f32>, Error> {
        let [hidden, inner] = self.widths;
        if dispatch.experts() != self.experts.len() {
            return Err(Error::Mixture { experts: dispatch.experts(), top_k: dispatch.top_k(), hidden, inner });
        }
        let rows = dispatch.rows_of(dispatch.experts() - 1).end;
        let Scratch { sorted, gate, up } = scratch;
        for (buffer, width) in [(&mut *sorted, hidden), (&mut *gate, inner), (&mut *up, inner)] {
            resize(buffer, rows * width);
        }
        dispatch.gather_into(x, hidden, sorted)?;
        self.product(Block::Gate, sorted, gate, dispatch)?;
        self.product(Block::Up, sorted, up, dispatch)?;
        let activation = self.activation;
        let gated = |(gate, up): (&mut f32, &f32)| *gate = activation.of_f32(*gate) * up;
        gate.par_iter_mut().zip(up.par_iter()).with_min_len(1 << 12).for_each(gated);
        // The inputs are not needed any more, and outputs are as long.
        self.product(Block::Down, gate, sorted, dispatch)?;
        let mut out = vec![0.0; x.len()];
        dispatch.scatter_add(sorted, &mut out)?;
        Ok(out)
    }

    /// One block of all experts on sorted rows.
    fn product(&self, block: Block, sorted: &[f32], y: &mut [f32], dispatch: &Dispatch) -> Result<(), Error> {
        let [_, features] = block.shape(self.widths);
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
        grouped_matmul(&groups, rounded.as_deref().unwrap_or(sorted), y)?;
        Ok(())
    }
}

/// The memory of [`MixedExperts::forward_with`] between gathering rows and adding them up. Asking the system for as much
/// with every batch can take longer than what is done with it.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Rows by expert, first the inputs and then the outputs, `[rows, hidden]`.
    sorted: Vec<f32>,
    /// `[rows, inner]`.
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// Gives a buffer its length; whatever it holds is overwritten later.
fn resize(buffer: &mut Vec<f32>, len: usize) {
    if buffer.capacity() < len {
        // Memory that comes zeroed is first touched by the threads that write to it.
        *buffer = vec![0.0; len];
    } else {
        buffer.resize(len, 0.0);
    }
}
