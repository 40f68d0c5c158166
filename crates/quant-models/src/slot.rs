//! The place of one linear in a decoder.

use crate::ops::{self, Rows};
use crate::{Error, Observer};
use candle_core::{Device, Tensor};
use quant_core::Linear;
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
}

/// One linear of a decoder: a name, a weight `[out, in]` of any kind and perhaps a bias.
#[derive(Clone, Debug)]
pub struct Slot {
    name: String,
    shape: [usize; 2],
    weight: Weight,
    bias: Option<Arc<[f32]>>,
}

impl Slot {
    /// A slot with a weight that was checked to have this shape.
    pub(crate) fn new(name: String, shape: [usize; 2], weight: Weight, bias: Option<Vec<f32>>) -> Self {
        Self { name, shape, weight, bias: bias.map(Arc::from) }
    }

    /// The name of the linear in the Hugging Face layout, without `.weight`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The bias that is added to the product.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The compressed weight, unless the slot holds a dense one.
    #[must_use]
    pub fn linear(&self) -> Option<&Arc<dyn Linear>> {
        match &self.weight {
            Weight::Dense(_) => None,
            Weight::Decoded(linear, _) | Weight::Direct(linear) => Some(linear),
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
            Weight::Direct(linear) => linear.to_dense().map_err(|source| self.refused(source)),
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

    /// Computes `y = x Wᵀ + b`.
    pub(crate) fn forward(&self, x: &Rows, observer: Option<&mut (dyn Observer + '_)>) -> Result<Rows, Error> {
        if let Some(observer) = observer {
            x.read(|input| observer.input(&self.name, self.shape[1], input))?;
        }
        let mut y = match &self.weight {
            Weight::Dense(dense) | Weight::Decoded(_, dense) => x.times_transposed(dense)?,
            Weight::Direct(linear) => {
                let mut y = vec![0.0; x.rows() * self.shape[0]];
                x.read(|input| linear.matmul(input, &mut y))?.map_err(|source| self.refused(source))?;
                Rows::new(y, self.shape[0])?
            }
        };
        if let Some(bias) = &self.bias {
            y.update(|y| ops::add_bias(y, bias))?;
        }
        Ok(y)
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
        match apply {
            Apply::Direct => Ok(Self::Direct(linear)),
            Apply::Decoded => {
                let values = linear.to_dense().map_err(|source| Error::Linear { name: name.to_owned(), source })?;
                Ok(Self::Decoded(linear, dense(name, values, shape)?))
            }
        }
    }
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
