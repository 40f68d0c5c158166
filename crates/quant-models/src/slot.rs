//! The place of one linear in a decoder.

use crate::ops::{self, Rows};
use crate::vector::Vector;
use crate::{Error, Observer};
use candle_core::{Device, Tensor};
use quant_core::{Block, Format, Linear, Scale, Shaped, fake_quantize};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// How a compressed weight is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Apply {
    /// Decoded to f32 once, when it is put into the slot, and multiplied as a dense matrix.
    ///
    /// The values multiplied are exactly those of [`Linear::to_dense`]; only the order of the sums
    /// differs from [`Linear::matmul`]. The default, since evaluation then runs at the speed of
    /// the uncompressed model whatever the format.
    #[default]
    Decoded,
    /// Through [`Linear::matmul`] at every pass; no dense copy is kept.
    Direct,
    /// As it is, in an arrangement that is fast on this CPU, see [`Linear::prepared`]; decoded where the weight has none.
    ///
    /// For generation: a token needs every weight once, and reading fewer bytes is what makes it faster. The
    /// arrangement is made once and takes about as many bytes as the compressed weight, which is kept beside it.
    Prepared,
}

/// What a slot multiplies with.
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// A matrix that was never compressed.
    Dense(Tensor),
    /// A compressed weight and the matrix it decodes to.
    Decoded(Arc<dyn Linear>, Tensor),
    /// A compressed weight that is applied as it is.
    Direct(Arc<dyn Linear>),
    /// A compressed weight and its arrangement for fast products.
    Prepared(Arc<dyn Linear>, Arc<dyn Linear>),
}

/// What a linear does in its layer, for policies that treat linears by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Mixes tokens: a projection of attention or of RWKV's time mix.
    Mixer,
    /// Part of a feed-forward block that every token passes through.
    FeedForward,
    /// Part of the expert of this index, which only the tokens routed to it pass through.
    Expert(usize),
    /// Part of an expert that every token passes through.
    SharedExpert,
    /// Chooses experts, or gates a shared one.
    Router,
    /// Half of one of RWKV's low-rank pairs.
    LowRank,
    /// Gives the logits.
    Head,
}

/// Where the weight of a slot lies in its checkpoint.
///
/// Mostly the whole tensor `name.weight`. Stacked experts and RWKV's stacked pairs are rows of a larger tensor, and
/// RWKV stores its low-rank pairs input-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The tensor.
    pub tensor: String,
    /// Its rows that are this weight, when all axes but the last are one.
    pub rows: Range<usize>,
    /// Whether these rows are `[in, out]`, the transpose of what the slot holds.
    pub transposed: bool,
}

/// One linear of a decoder: a name, a weight `[out, in]` of any kind and perhaps a bias.
#[derive(Clone, Debug)]
pub struct Slot {
    name: String,
    role: Role,
    shape: [usize; 2],
    weight: Weight,
    bias: Option<Vector>,
    input: Option<Format>,
    origin: Origin,
}

impl Slot {
    /// A slot with a weight that was checked to have this shape.
    pub(crate) fn new(
        name: String,
        role: Role,
        shape: [usize; 2],
        weight: Weight,
        bias: Option<Vector>,
        origin: Origin,
    ) -> Self {
        Self { name, role, shape, weight, bias, input: None, origin }
    }

    /// The name of the linear in its checkpoint, without `.weight`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// What the linear does.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where the weight lies in the checkpoint.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The bias that is added to the product.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(Vector::values)
    }

    /// Replaces the bias of a linear that has one, or gives it one.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for another length than the linear's outputs, [`Error::NonFiniteWeight`]. The slot is
    /// then unchanged.
    pub fn set_bias(&mut self, values: Vec<f32>) -> Result<(), Error> {
        let name = format!("{}.bias", self.name);
        if values.len() != self.shape[0] {
            return Err(Error::WeightShape { name, expected: vec![self.shape[0]], found: vec![values.len()] });
        }
        self.bias = Some(Vector::new(name, values)?);
        Ok(())
    }

    /// The format that inputs are rounded to before the product, if any.
    #[must_use]
    pub fn input_format(&self) -> Option<Format> {
        self.input
    }

    /// Rounds each input to a format before it is multiplied, as W8A8 kernels do: the scales are found anew for
    /// each token, and the product is formed in f32 with the rounded values.
    ///
    /// Every token's row is rounded as a tensor of its own, so what one token becomes does not depend on the others
    /// of the batch. [`Format::INT8`] is the dynamic per-token quantization of SmoothQuant's O1 (arXiv 2211.10438).
    /// Observers still see the input before it is rounded.
    ///
    /// # Errors
    ///
    /// [`Error::Linear`] when the format cannot hold rows of this width. The slot is then unchanged.
    pub fn set_input_format(&mut self, format: Option<Format>) -> Result<(), Error> {
        if let Some(format) = format {
            round_rows(format, &vec![0.0; self.shape[1]], self.shape[1]).map_err(|source| self.refused(source))?;
        }
        self.input = format;
        Ok(())
    }

    /// The compressed weight, unless the slot holds a dense one.
    #[must_use]
    pub fn linear(&self) -> Option<&Arc<dyn Linear>> {
        match &self.weight {
            Weight::Dense(_) => None,
            Weight::Decoded(linear, _) | Weight::Direct(linear) | Weight::Prepared(linear, _) => Some(linear),
        }
    }

    /// Bytes of weight that one product reads: four an element where they are dense or were decoded, else all that the
    /// compressed weight or its arrangement stores.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        match &self.weight {
            Weight::Dense(_) | Weight::Decoded(..) => 4 * self.shape.iter().map(|n| *n as u64).product::<u64>(),
            Weight::Direct(linear) | Weight::Prepared(_, linear) => linear.footprint().total_bytes(),
        }
    }

    /// The values the slot multiplies with, row-major `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`Error::Linear`] when a compressed weight cannot be decoded.
    pub fn weight(&self) -> Result<Vec<f32>, Error> {
        match &self.weight {
            Weight::Dense(dense) | Weight::Decoded(_, dense) => Ok(dense.flatten_all()?.to_vec1()?),
            Weight::Direct(linear) | Weight::Prepared(linear, _) => {
                linear.to_dense().map_err(|source| self.refused(source))
            }
        }
    }

    /// Puts a dense weight, row-major `[out, in]`, into the slot.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for another number of elements, [`Error::NonFiniteWeight`]. The slot
    /// is then unchanged.
    pub fn set_dense(&mut self, values: Vec<f32>) -> Result<(), Error> {
        self.weight = Weight::Dense(dense(&self.name, values, self.shape)?);
        Ok(())
    }

    /// Puts a compressed weight into the slot.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] when it has other features than the slot, [`Error::Linear`] and
    /// [`Error::NonFiniteWeight`] when it cannot be decoded. The slot is then unchanged.
    pub fn set_linear(&mut self, linear: Arc<dyn Linear>, apply: Apply) -> Result<(), Error> {
        self.weight = Weight::compressed(&self.name, self.shape, linear, apply)?;
        Ok(())
    }

    /// Shares a matrix that is already there, as tied heads do.
    pub(crate) fn share(&mut self, dense: Tensor) {
        self.weight = Weight::Dense(dense);
    }

    /// The compressed weight if it is all there is to the slot: applied as it is, to inputs as they are, without a bias.
    pub(crate) fn direct(&self) -> Option<&dyn Linear> {
        match &self.weight {
            Weight::Direct(linear) | Weight::Prepared(_, linear) if self.input.is_none() && self.bias.is_none() => {
                Some(linear.as_ref())
            }
            _ => None,
        }
    }

    /// Computes `y = x Wᵀ + b`.
    pub(crate) fn forward(&self, x: &Rows, observer: Option<&mut (dyn Observer + '_)>) -> Result<Rows, Error> {
        if let Some(observer) = observer {
            x.read(|input| observer.input(&self.name, self.shape[1], input))?;
        }
        let mut y = match self.input {
            None => self.product(x)?,
            Some(format) => {
                let rounded =
                    x.read(|x| round_rows(format, x, self.shape[1]))?.map_err(|source| self.refused(source))?;
                self.product(&Rows::new(rounded, self.shape[1])?)?
            }
        };
        if let Some(bias) = self.bias() {
            y.update(|y| ops::add_bias(y, bias))?;
        }
        Ok(y)
    }

    fn product(&self, x: &Rows) -> Result<Rows, Error> {
        match &self.weight {
            Weight::Dense(dense) | Weight::Decoded(_, dense) => x.times_transposed(dense),
            Weight::Direct(linear) | Weight::Prepared(_, linear) => {
                let mut y = vec![0.0; x.rows() * self.shape[0]];
                x.read(|input| linear.matmul(input, &mut y))?.map_err(|source| self.refused(source))?;
                Rows::new(y, self.shape[0])
            }
        }
    }

    /// The values the slot multiplies with, `[out, in]`.
    pub(crate) fn matrix(&self) -> Result<Tensor, Error> {
        match &self.weight {
            Weight::Dense(dense) | Weight::Decoded(_, dense) => Ok(dense.clone()),
            _ => dense(&self.name, self.weight()?, self.shape),
        }
    }

    fn refused(&self, source: quant_core::Error) -> Error {
        Error::Linear { name: self.name.clone(), source }
    }
}

impl Weight {
    /// Checks a compressed weight against the shape of its slot and decodes it if that is asked for.
    pub(crate) fn compressed(
        name: &str,
        shape: [usize; 2],
        linear: Arc<dyn Linear>,
        apply: Apply,
    ) -> Result<Self, Error> {
        let found = [linear.out_features(), linear.in_features()];
        if found != shape {
            return Err(Error::WeightShape { name: name.to_owned(), expected: shape.to_vec(), found: found.to_vec() });
        }
        let prepared = if apply == Apply::Prepared { linear.prepared() } else { None };
        match (apply, prepared) {
            (Apply::Direct, _) => Ok(Self::Direct(linear)),
            (Apply::Prepared, Some(prepared)) => Ok(Self::Prepared(linear, Arc::from(prepared))),
            (Apply::Decoded | Apply::Prepared, _) => {
                let values = linear.to_dense().map_err(|source| Error::Linear { name: name.to_owned(), source })?;
                Ok(Self::Decoded(linear, dense(name, values, shape)?))
            }
        }
    }
}

/// Rounds each row of `width` elements as a tensor of its own.
pub(crate) fn round_rows(format: Format, x: &[f32], width: usize) -> Result<Vec<f32>, quant_core::Error> {
    let scales_within_rows =
        matches!(format.block, Block::Row | Block::Group(_)) && !matches!(format.scale, Scale::E4m3(_) | Scale::Double);
    if scales_within_rows {
        return fake_quantize(format, &Shaped::new(x, &[x.len() / width.max(1), width])?);
    }
    let row = |row: &[f32]| fake_quantize(format, &Shaped::new(row, &[1, width])?);
    let rows = x.par_chunks_exact(width.max(1)).map(row).collect::<Result<Vec<_>, _>>()?;
    Ok(rows.concat())
}

/// Checks a matrix and hands it to candle.
pub(crate) fn dense(name: &str, values: Vec<f32>, shape: [usize; 2]) -> Result<Tensor, Error> {
    if shape[0].checked_mul(shape[1]) != Some(values.len()) {
        let (name, expected) = (name.to_owned(), shape.to_vec());
        return Err(Error::WeightShape { name, expected, found: vec![values.len()] });
    }
    finite(name, &values)?;
    Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?)
}

/// Refuses weights that are NaN or infinite.
pub(crate) fn finite(name: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &value)) => Err(Error::NonFiniteWeight { name: name.to_owned(), index, value }),
        None => Ok(()),
    }
}
