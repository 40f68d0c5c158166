//! Reading named weights, each checked before it is believed.

use crate::slot::{self, Apply, Origin, Role, Slot, Weight};
use crate::vector::Vector;
use crate::{Error, WeightSource};
use candle_core::Tensor;

/// A source together with the checks every tensor passes.
pub(crate) struct Loader<'a> {
    pub(crate) source: &'a dyn WeightSource,
    pub(crate) apply: Apply,
}

impl Loader<'_> {
    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }

    /// The shape of a tensor that must be there.
    pub(crate) fn shape(&self, name: &str) -> Result<Vec<usize>, Error> {
        self.source
            .shape(name)
            .ok_or_else(|| Error::MissingTensor { origin: self.source.origin(), name: name.to_owned() })
    }

    /// Reads a tensor after checking its shape, so that nothing is read in vain.
    pub(crate) fn read(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Error> {
        let found = self.shape(name)?;
        if found != expected {
            return Err(Error::WeightShape { name: name.to_owned(), expected: expected.to_vec(), found });
        }
        self.source.tensor(name)
    }

    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Tensor, Error> {
        slot::dense(name, self.read(name, &shape)?, shape)
    }

    pub(crate) fn vector(&self, name: String, len: usize) -> Result<Vector, Error> {
        let values = self.read(&name, &[len])?;
        Vector::new(name, values)
    }

    /// The linear `name`, whose weight is the tensor `name.weight` and whose bias `name.bias`.
    pub(crate) fn slot(&self, name: String, role: Role, shape: [usize; 2], bias: bool) -> Result<Slot, Error> {
        let weight = match self.source.linear(&name)? {
            Some(linear) => Weight::compressed(&name, shape, linear, self.apply)?,
            None => Weight::Dense(self.matrix(&format!("{name}.weight"), shape)?),
        };
        let bias = match bias {
            true => Some(self.vector(format!("{name}.bias"), shape[0])?),
            false => None,
        };
        let origin = Origin { tensor: format!("{name}.weight"), rows: 0..shape[0], transposed: false };
        Ok(Slot::new(name, role, shape, weight, bias, origin))
    }
}
