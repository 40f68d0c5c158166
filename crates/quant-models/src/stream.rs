//! The residual stream between two layers.

use crate::ops::Rows;
use crate::rope::{RopeScaling, RopeTable};
use crate::{Config, Error};
use std::ops::Range;
use std::sync::Arc;

/// One text of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// The position of its first token.
    pub(crate) start: usize,
    pub(crate) rope: Arc<RopeTable>,
}

/// The hidden states of a batch of texts between two layers.
///
/// [`crate::Embedding::stream`] begins one, [`crate::Layer::forward`] takes one and returns the next, and
/// [`crate::Head::hidden`] ends it. It never changes, so the same stream can be put through a layer before and after
/// the layer's weights are replaced. A clone shares the values.
#[derive(Clone, Debug)]
pub struct Stream {
    rows: Rows,
    texts: Arc<[Place]>,
    /// RWKV-7: the values of the first layer, which later layers mix into theirs.
    first_values: Option<Rows>,
}

impl Stream {
    pub(crate) fn new(rows: Rows, texts: Vec<Place>) -> Self {
        Self { rows, texts: texts.into(), first_values: None }
    }

    /// Tokens, over all texts of the batch in order.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.rows.rows()
    }

    /// Elements of a token's row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.rows.width()
    }

    /// The rows of each text.
    pub fn texts(&self) -> impl Iterator<Item = Range<usize>> {
        self.texts.iter().map(|text| text.rows.clone())
    }

    /// The hidden states, row-major `[tokens, width]`.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] when the tensor library fails.
    pub fn values(&self) -> Result<Vec<f32>, Error> {
        self.rows.read(<[f32]>::to_vec)
    }

    /// The same texts with other hidden states.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for another number of elements.
    pub fn with_values(&self, values: Vec<f32>) -> Result<Self, Error> {
        if values.len() != self.tokens() * self.width() {
            let expected = vec![self.tokens(), self.width()];
            return Err(Error::WeightShape { name: "hidden states".into(), expected, found: vec![values.len()] });
        }
        Ok(self.with_rows(Rows::new(values, self.width())?))
    }

    /// Everything that goes from one layer to the next: the hidden states as [`Stream::values`] and, behind the first layer
    /// of RWKV-7, that layer's values.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] when the tensor library fails.
    pub fn carried(&self) -> Result<Vec<f32>, Error> {
        let mut carried = self.values()?;
        if let Some(first) = &self.first_values {
            first.read(|first| carried.extend_from_slice(first))?;
        }
        Ok(carried)
    }

    /// The same texts with what [`Stream::carried`] gave.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for a number of elements that it never gives.
    pub fn with_carried(&self, mut carried: Vec<f32>) -> Result<Self, Error> {
        let (tokens, width) = (self.tokens(), self.width());
        let first = carried.split_off((tokens * width).min(carried.len()));
        let stream = self.with_values(carried)?;
        if first.is_empty() {
            return Ok(Self { first_values: None, ..stream });
        }
        if !first.len().is_multiple_of(tokens.max(1)) {
            let found = vec![tokens * width + first.len()];
            return Err(Error::WeightShape { name: "hidden states".into(), expected: vec![2, tokens, width], found });
        }
        let width = first.len() / tokens.max(1);
        Ok(stream.with_first_values(Rows::new(first, width)?))
    }

    pub(crate) fn with_rows(&self, rows: Rows) -> Self {
        Self { rows, texts: Arc::clone(&self.texts), first_values: self.first_values.clone() }
    }

    /// The values of the first layer, from now on.
    pub(crate) fn with_first_values(self, values: Rows) -> Self {
        Self { first_values: Some(values), ..self }
    }

    pub(crate) fn first_values(&self) -> Option<&Rows> {
        self.first_values.as_ref()
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.texts
    }
}

/// Places of texts that begin at their first token.
pub(crate) fn whole(config: &Config, texts: &[&[u32]]) -> Vec<Place> {
    let rope = &config.rope;
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let shared = Arc::new(rope.table(0, longest));
    let mut end = 0;
    let place = |text: &&[u32]| {
        end += text.len();
        let own = matches!(rope.scaling, RopeScaling::Dynamic { .. }) && text.len() < longest;
        let rope = if own { Arc::new(rope.table(0, text.len())) } else { Arc::clone(&shared) };
        Place { rows: end - text.len()..end, start: 0, rope }
    };
    texts.iter().map(place).collect()
}

/// The place of the next tokens of one text.
pub(crate) fn continued(config: &Config, start: usize, tokens: usize) -> Vec<Place> {
    vec![Place { rows: 0..tokens, start, rope: Arc::new(config.rope.table(start, start + tokens)) }]
}
