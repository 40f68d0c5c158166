//! The one-dimensional weights of a model.

use crate::{Error, slot};
use std::sync::Arc;

/// A named vector of weights: the gain of a norm, an offset, or one of RWKV's element-wise multipliers.
///
/// Clones share the values until they are replaced.
#[derive(Clone, Debug)]
pub struct Vector {
    name: String,
    values: Arc<[f32]>,
}

impl Vector {
    pub(crate) fn new(name: String, values: Vec<f32>) -> Result<Self, Error> {
        slot::finite(&name, &values)?;
        Ok(Self { name, values: values.into() })
    }

    /// Its name: that of its tensor, also where a checkpoint stacks several in one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Replaces the values.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for another number of elements, [`Error::NonFiniteWeight`]. The vector is then unchanged.
    pub fn set(&mut self, values: Vec<f32>) -> Result<(), Error> {
        if values.len() != self.values.len() {
            let (name, expected) = (self.name.clone(), vec![self.values.len()]);
            return Err(Error::WeightShape { name, expected, found: vec![values.len()] });
        }
        slot::finite(&self.name, &values)?;
        self.values = values.into();
        Ok(())
    }
}
