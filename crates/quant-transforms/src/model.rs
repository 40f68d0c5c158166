//! Folding into the parts of a transformer, so that it computes the same function.
//!
//! | function | what cancels | paper |
//! |---|---|---|
//! | [`fuse_norm`] | gain of an RMSNorm → columns of what reads it | QuaRot, 2404.00456 |
//! | [`rotate_residual`] | a rotation of the residual stream | QuaRot, SpinQuant |
//! | [`rotate_heads`] | a transform of each head: rows of `v` → columns of `o` | QuaRot, OSTQuant 2501.13987 |
//! | [`scale_norm`] | gain ÷ s → columns · s | SmoothQuant 2211.10438, AWQ 2306.00978 |
//! | [`scale_heads`] | rows of `v` ÷ s → columns of `o` · s | OSTQuant |
//! | [`scale_up_down`] | rows of `up` ÷ s → columns of `down` · s | AWQ, OSTQuant |
//! | [`scale_keys`] | rows of `k` ÷ s → rows of `q` · s, the same for both channels of a RoPE pair | PM-KVQ, QServe |
//!
//! All compute in f64 and round each weight once. Sizes are checked before anything changes.

use crate::transform::{Way, check_scales};
use crate::weight::transpose;
use crate::{Element, Error, Rope, Transform, Weight};

/// How the gain of a norm enters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gain {
    /// `x̂ ∘ g`, as in Llama.
    #[default]
    Plain,
    /// `x̂ ∘ (1 + g)`, as in Gemma.
    OnePlus,
}

impl Gain {
    fn offset(self) -> f64 {
        match self {
            Self::Plain => 0.0,
            Self::OnePlus => 1.0,
        }
    }
}

/// The heads of an attention: `heads` of queries share `kv_heads` of keys and values, each of `head_dim` channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    /// Query heads `h · heads / kv_heads …` read key-value head `h`.
    ///
    /// # Errors
    ///
    /// [`Error::Heads`] when a number is zero or the query heads are not a multiple of the key-value heads.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Result<Self, Error> {
        let error = Error::Heads { heads, kv_heads, head_dim };
        let whole = kv_heads > 0 && head_dim > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
        if whole && heads.checked_mul(head_dim).is_some() { Ok(Self { heads, kv_heads, head_dim }) } else { Err(error) }
    }

    /// Channels of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn query_features(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_features(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Values of the key-value channels at the query channels that read them.
    fn repeat<V: Copy>(&self, kv: &[V]) -> Vec<V> {
        let shared = self.heads / self.kv_heads;
        kv.chunks_exact(self.head_dim).flat_map(|head| std::iter::repeat_n(head, shared)).flatten().copied().collect()
    }
}

/// Moves the gain of an RMSNorm into the weights that read its output; the gain becomes 1 (or 0 where 1 is added).
///
/// # Errors
///
/// [`Error::Count`] when a weight does not have as many inputs as the gain has elements; nothing is changed then.
/// [`Error::NonFinite`] when a value overflows.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Weight, model::{Gain, fuse_norm}};
/// let (mut gain, mut q) = ([2.0_f32, 0.5], [1.0_f32, 1.0, 3.0, 4.0]);
/// fuse_norm(&mut Weight::vector("norm", &mut gain)?, Gain::Plain, &mut [Weight::new("q", &mut q, [2, 2])?])?;
/// assert_eq!((gain, q), ([1.0, 1.0], [2.0, 0.5, 6.0, 2.0]));
/// # Ok::<(), quant_transforms::Error>(())
/// ```
pub fn fuse_norm<T: Element>(gain: &mut Weight<'_, T>, kind: Gain, readers: &mut [Weight<'_, T>]) -> Result<(), Error> {
    let factors: Vec<f64> = gain.values.iter().map(|g| g.wide() + kind.offset()).collect();
    readers.iter().try_for_each(|reader| reader.expect_inputs(factors.len()))?;
    readers.iter_mut().try_for_each(|reader| reader.scale_inputs(&factors))?;
    gain.values.fill(T::narrow(1.0 - kind.offset()));
    Ok(())
}

/// What touches the residual stream of a model.
#[derive(Debug)]
pub struct Residual<'s, 'a, T> {
    /// Weights whose rows are residual vectors: embeddings (a tied head is one).
    pub embeddings: &'s mut [Weight<'a, T>],
    /// Weights that read it (after its norms were fused): q, k, v, gate, up, routers, the head.
    pub readers: &'s mut [Weight<'a, T>],
    /// Weights that add to it: o, down.
    pub writers: &'s mut [Weight<'a, T>],
    /// Vectors that are added to it: biases of the writers.
    pub biases: &'s mut [Weight<'a, T>],
}

/// Rotates the residual stream: everything that flows along it becomes `x T`.
///
/// # Errors
///
/// [`Error::RotationNeeded`] for a transform that is not orthogonal, [`Error::Count`] for a weight of another width; nothing is
/// changed then. [`Error::NonFinite`] when a value overflows.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Hadamard, Transform, Weight, model::{Residual, rotate_residual}};
/// let rotation = Transform::from(Hadamard::new(2)?);
/// let (mut embedding, mut head) = ([1.0_f64, 2.0], [3.0_f64, -1.0]);
/// rotate_residual(&rotation, Residual {
///     embeddings: &mut [Weight::new("embedding", &mut embedding, [1, 2])?],
///     readers: &mut [Weight::new("head", &mut head, [1, 2])?],
///     writers: &mut [],
///     biases: &mut [],
/// })?;
/// assert!((embedding[0] * head[0] + embedding[1] * head[1] - 1.0).abs() < 1e-14);
/// # Ok::<(), quant_transforms::Error>(())
/// ```
pub fn rotate_residual<T: Element>(rotation: &Transform, residual: Residual<'_, '_, T>) -> Result<(), Error> {
    if !rotation.is_orthogonal() {
        let reason = "an RMSNorm commutes with no other transform";
        return Err(Error::RotationNeeded { place: "the residual stream", reason });
    }
    let Residual { embeddings, readers, writers, biases } = residual;
    let mut reading = embeddings.iter().chain(&*readers).chain(&*biases);
    reading.try_for_each(|weight| weight.expect_inputs(rotation.size()))?;
    writers.iter().try_for_each(|writer| writer.expect_outputs(rotation.size()))?;
    embeddings.iter_mut().chain(biases).try_for_each(|rows| rotation.fold_rows(rows))?;
    readers.iter_mut().try_for_each(|reader| rotation.fold_input(reader))?;
    writers.iter_mut().try_for_each(|writer| rotation.fold_output(writer))
}

/// Value and output projections of an attention.
#[derive(Debug)]
pub struct ValueOutput<'s, 'a, T> {
    /// `v` `[kv_heads · head_dim, hidden]`.
    pub v: &'s mut Weight<'a, T>,
    /// Its bias.
    pub v_bias: Option<&'s mut Weight<'a, T>>,
    /// `o` `[hidden, heads · head_dim]`.
    pub o: &'s mut Weight<'a, T>,
}

impl<T: Element> ValueOutput<'_, '_, T> {
    fn check(&self, heads: Heads) -> Result<(), Error> {
        self.v.expect_outputs(heads.kv_features())?;
        self.v_bias.as_ref().map_or(Ok(()), |bias| bias.expect_inputs(heads.kv_features()))?;
        self.o.expect_inputs(heads.query_features())
    }
}

/// Transforms the values of each key-value head, and undoes it in the output projection of all query heads that read it.
///
/// Attention weights are one number a head, so any invertible transform of a head cancels. `transforms` has one for each
/// key-value head, or one for all.
///
/// # Errors
///
/// [`Error::Count`] when a number or size does not fit; nothing is changed then. [`Error::NonFinite`] when a value overflows.
pub fn rotate_heads<T: Element>(
    transforms: &[Transform],
    heads: Heads,
    weights: ValueOutput<'_, '_, T>,
) -> Result<(), Error> {
    weights.check(heads)?;
    let count = |what, expected, found| Err(Error::Count { name: weights.v.name.to_owned(), what, expected, found });
    if transforms.len() != 1 && transforms.len() != heads.kv_heads {
        return count("transforms of heads", heads.kv_heads, transforms.len());
    }
    if let Some(other) = transforms.iter().find(|transform| transform.size() != heads.head_dim) {
        return count("channels of a transform of a head", heads.head_dim, other.size());
    }
    let ValueOutput { v, v_bias, o } = weights;
    let of_head = |head: usize| &transforms[if transforms.len() == 1 { 0 } else { head }];
    let inputs = v.columns;
    v.change(|values| {
        for head in 0..heads.kv_heads {
            let rows = &mut values[head * heads.head_dim * inputs..(head + 1) * heads.head_dim * inputs];
            let columns = apply(of_head(head), transpose(rows, heads.head_dim, inputs), Way::Forward)?;
            rows.copy_from_slice(&transpose(&columns, inputs, heads.head_dim));
        }
        Ok(())
    })?;
    if let Some(bias) = v_bias {
        bias.change(|values| {
            for (head, values) in values.chunks_exact_mut(heads.head_dim).enumerate() {
                of_head(head).apply_way(values, Way::Forward)?;
            }
            Ok(())
        })?;
    }
    let (outputs, columns) = (o.rows, o.columns);
    o.change(|values| {
        for head in 0..heads.heads {
            let part = head * heads.head_dim..(head + 1) * heads.head_dim;
            let of_rows = |row: usize| row * columns + part.start..row * columns + part.end;
            let rows: Vec<f64> = (0..outputs).flat_map(|row| &values[of_rows(row)]).copied().collect();
            let rows = apply(of_head(head * heads.kv_heads / heads.heads), rows, Way::InverseTranspose)?;
            for (row, folded) in rows.chunks_exact(heads.head_dim).enumerate() {
                values[of_rows(row)].copy_from_slice(folded);
            }
        }
        Ok(())
    })
}

fn apply(transform: &Transform, mut rows: Vec<f64>, way: Way) -> Result<Vec<f64>, Error> {
    transform.apply_way(&mut rows, way)?;
    Ok(rows)
}

/// Divides the output of a norm by `scales`: its gain, and its bias if it has one, become smaller, the columns of what reads
/// it larger.
///
/// # Errors
///
/// [`Error::Scale`] for scales that are not positive, [`Error::Count`] when their number does not fit; nothing is changed then.
/// [`Error::NonFinite`] when a value overflows.
pub fn scale_norm<T: Element>(
    scales: &[f32],
    gain: &mut Weight<'_, T>,
    kind: Gain,
    bias: Option<&mut Weight<'_, T>>,
    readers: &mut [Weight<'_, T>],
) -> Result<(), Error> {
    let (inverse, factors) = factors(scales)?;
    gain.expect_inputs(scales.len())?;
    bias.as_ref().map_or(Ok(()), |bias| bias.expect_inputs(scales.len()))?;
    readers.iter().try_for_each(|reader| reader.expect_inputs(scales.len()))?;
    gain.change(|gain| {
        let offset = kind.offset();
        gain.iter_mut().zip(&inverse).for_each(|(g, inverse)| *g = (*g + offset) * inverse - offset);
        Ok(())
    })?;
    bias.map_or(Ok(()), |bias| bias.scale_inputs(&inverse))?;
    readers.iter_mut().try_for_each(|reader| reader.scale_inputs(&factors))
}

/// Divides the values of each key-value head by `scales` `[kv_heads · head_dim]`; the columns of `o` of all query heads that
/// read a channel are multiplied.
///
/// # Errors
///
/// As [`scale_norm`].
pub fn scale_heads<T: Element>(scales: &[f32], heads: Heads, weights: ValueOutput<'_, '_, T>) -> Result<(), Error> {
    let (inverse, factors) = factors(scales)?;
    weights.check(heads)?;
    weights.v.expect_outputs(scales.len())?;
    let ValueOutput { v, v_bias, o } = weights;
    v.scale_outputs(&inverse)?;
    v_bias.map_or(Ok(()), |bias| bias.scale_inputs(&inverse))?;
    o.scale_inputs(&heads.repeat(&factors))
}

/// Divides the rows of `up` by `scales` and multiplies the columns of `down`. For gated activations, `up` is the branch that does
/// not go through the activation function; for a plain ReLU it is the only one.
///
/// # Errors
///
/// As [`scale_norm`].
pub fn scale_up_down<T: Element>(
    scales: &[f32],
    up: &mut Weight<'_, T>,
    up_bias: Option<&mut Weight<'_, T>>,
    down: &mut Weight<'_, T>,
) -> Result<(), Error> {
    let (inverse, factors) = factors(scales)?;
    up.expect_outputs(scales.len())?;
    up_bias.as_ref().map_or(Ok(()), |bias| bias.expect_inputs(scales.len()))?;
    down.expect_inputs(scales.len())?;
    up.scale_outputs(&inverse)?;
    up_bias.map_or(Ok(()), |bias| bias.scale_inputs(&inverse))?;
    down.scale_inputs(&factors)
}

/// Query and key projections of an attention.
#[derive(Debug)]
pub struct QueryKey<'s, 'a, T> {
    /// `q` `[heads · head_dim, hidden]`.
    pub q: &'s mut Weight<'a, T>,
    /// Its bias.
    pub q_bias: Option<&'s mut Weight<'a, T>>,
    /// `k` `[kv_heads · head_dim, hidden]`.
    pub k: &'s mut Weight<'a, T>,
    /// Its bias.
    pub k_bias: Option<&'s mut Weight<'a, T>>,
}

/// Divides the keys of each key-value head by `scales` `[kv_heads · head_dim]` and multiplies the queries that meet them.
///
/// Rotary positions turn the two channels of a pair into each other, so both must have one scale; [`Rope::tie`] makes them
/// so. Models with a norm on each query and key head (Qwen3) undo scales of the projections and must not come here.
///
/// # Errors
///
/// [`Error::RopePair`] when the scales of a pair differ; else as [`scale_norm`].
pub fn scale_keys<T: Element>(
    scales: &[f32],
    heads: Heads,
    rope: Rope,
    weights: QueryKey<'_, '_, T>,
) -> Result<(), Error> {
    let (inverse, factors) = factors(scales)?;
    let QueryKey { q, q_bias, k, k_bias } = weights;
    k.expect_outputs(heads.kv_features())?;
    k.expect_outputs(scales.len())?;
    q.expect_outputs(heads.query_features())?;
    k_bias.as_ref().map_or(Ok(()), |bias| bias.expect_inputs(heads.kv_features()))?;
    q_bias.as_ref().map_or(Ok(()), |bias| bias.expect_inputs(heads.query_features()))?;
    rope.check(scales, heads.head_dim)?;
    k.scale_outputs(&inverse)?;
    k_bias.map_or(Ok(()), |bias| bias.scale_inputs(&inverse))?;
    let factors = heads.repeat(&factors);
    q.scale_outputs(&factors)?;
    q_bias.map_or(Ok(()), |bias| bias.scale_inputs(&factors))
}

/// What is divided and what is multiplied, in f64.
fn factors(scales: &[f32]) -> Result<(Vec<f64>, Vec<f64>), Error> {
    check_scales(scales)?;
    Ok(scales.iter().map(|&s| (f64::from(s).recip(), f64::from(s))).unzip())
}
