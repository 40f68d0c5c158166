//! Norms of the residual stream.

use crate::Error;
use crate::loader::Loader;
use crate::ops::{self, Rows};
use crate::vector::Vector;

/// What a row is divided by and multiplied with.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    /// `x / √(mean x² + ε) · g`.
    Rms { gain: Vector, eps: f32 },
    /// `(x − mean x) / √(var x + ε) · g + b`.
    Layer { gain: Vector, offset: Vector, eps: f32 },
}

impl Norm {
    pub(crate) fn rms(loader: &Loader<'_>, name: &str, width: usize, eps: f32) -> Result<Self, Error> {
        Ok(Self::Rms { gain: loader.vector(format!("{name}.weight"), width)?, eps })
    }

    pub(crate) fn layer(loader: &Loader<'_>, name: &str, width: usize, eps: f32) -> Result<Self, Error> {
        let (gain, offset) = (format!("{name}.weight"), format!("{name}.bias"));
        Ok(Self::Layer { gain: loader.vector(gain, width)?, offset: loader.vector(offset, width)?, eps })
    }

    /// Norms each run of as many elements as the norm has, in place.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        match self {
            Self::Rms { gain, eps } => ops::rms_norm(x, gain.values(), *eps),
            Self::Layer { gain, offset, eps } => ops::layer_norm(x, gain.values(), offset.values(), *eps),
        }
    }

    /// A normed copy.
    pub(crate) fn of(&self, x: &Rows) -> Result<Rows, Error> {
        x.map(|x| self.apply(x))
    }

    pub(crate) fn vectors(&self) -> Vec<&Vector> {
        match self {
            Self::Rms { gain, .. } => vec![gain],
            Self::Layer { gain, offset, .. } => vec![gain, offset],
        }
    }

    pub(crate) fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        match self {
            Self::Rms { gain, .. } => vec![gain],
            Self::Layer { gain, offset, .. } => vec![gain, offset],
        }
    }
}
