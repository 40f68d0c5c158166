//! Checks of a batch of activations, made once before anything is added.

use crate::Error;

/// A batch that was checked: whole rows, finite values, usable weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) features: usize,
    pub(crate) weights: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// Checks `values` `[tokens, features]` and one weight a token.
    pub(crate) fn new(values: &'a [f32], features: usize, weights: Option<&'a [f32]>) -> Result<Self, Error> {
        if values.len().checked_rem(features).unwrap_or(values.len()) != 0 {
            return Err(Error::Width { features, found: values.len() });
        }
        let rows = Self { values, features, weights };
        if !all_finite(values) {
            let first = values.iter().enumerate().find(|(_, value)| !value.is_finite());
            let (index, &value) = first.unwrap_or((0, &f32::NAN));
            return Err(Error::NonFinite { row: index / features, channel: index % features, value });
        }
        if let Some(weights) = weights {
            if weights.len() != rows.len() {
                return Err(Error::WeightCount { rows: rows.len(), found: weights.len() });
            }
            if let Some((row, &value)) = weights.iter().enumerate().find(|(_, w)| !w.is_finite() || **w < 0.0) {
                return Err(Error::Weight { row, value });
            }
        }
        Ok(rows)
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.values.len().checked_div(self.features).unwrap_or(0)
    }

    /// The tokens, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        self.values.chunks_exact(self.features.max(1))
    }

    /// The weight of token `row`; 1 without weights.
    pub(crate) fn weight(&self, row: usize) -> f32 {
        self.weights.and_then(|weights| weights.get(row)).copied().unwrap_or(1.0)
    }
}

/// Whether no value is NaN or infinite; without branches inside a chunk, so that it is vector code.
fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values.chunks(1024).all(|chunk| !chunk.iter().fold(false, |bad, v| bad | (v.to_bits() & EXPONENT == EXPONENT)))
}
