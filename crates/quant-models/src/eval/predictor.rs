//! How a model reads the windows of an evaluation.

use crate::{Decoder, Error, Hidden, KvState};
use std::fmt::{Debug, Formatter};

/// A model together with the way it reads texts.
pub trait Predictor {
    /// The model.
    fn decoder(&self) -> &Decoder;

    /// Runs texts from their first token up to the head; rows in the order of the texts.
    ///
    /// # Errors
    ///
    /// As [`Decoder::hidden`] or [`Decoder::extend`].
    fn hidden(&self, texts: &[&[u32]]) -> Result<Hidden, Error>;
}

/// Each text at once, without a cache.
impl Predictor for Decoder {
    fn decoder(&self) -> &Decoder {
        self
    }

    fn hidden(&self, texts: &[&[u32]]) -> Result<Hidden, Error> {
        Decoder::hidden(self, texts, None)
    }
}

/// Reads each text through a cache of its own, a few tokens at a time ("teacher forced").
///
/// Read at once, a text never meets what a quantized cache has made of its past; with a step of 1 every token does.
pub struct Stepwise<'a> {
    decoder: &'a Decoder,
    step: usize,
    make: Box<dyn Fn() -> KvState + 'a>,
}

impl<'a> Stepwise<'a> {
    /// A model that reads `step` tokens at a time into the cache that `make` gives for each text.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for a step of 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use quant_models::eval::{Stepwise, WindowOptions, Windows, perplexity};
    /// use quant_models::{Decoder, KvState, Text};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
    /// let model = Decoder::open(&folder)?;
    /// let text = Text::Bytes.encode(b"The cache of this text holds all of it.")?;
    /// let windows = Windows::of_text(&text, WindowOptions::new(39))?;
    ///
    /// let stepwise = Stepwise::new(&model, 1, || KvState::plain(model.config()))?;
    /// let score = perplexity(&stepwise, &windows, &mut |_| {})?;
    /// let at_once = perplexity(&model, &windows, &mut |_| {})?;
    /// assert!((score.nll / at_once.nll - 1.0).abs() < 1e-5); // a plain cache loses nothing
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(decoder: &'a Decoder, step: usize, make: impl Fn() -> KvState + 'a) -> Result<Self, Error> {
        if step == 0 {
            return Err(Error::BadSetting { name: "step", value: "0".into(), expected: "at least 1" });
        }
        Ok(Self { decoder, step, make: Box::new(make) })
    }
}

impl Predictor for Stepwise<'_> {
    fn decoder(&self) -> &Decoder {
        self.decoder
    }

    fn hidden(&self, texts: &[&[u32]]) -> Result<Hidden, Error> {
        let mut parts = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            if text.is_empty() {
                return Err(Error::EmptySequence { index });
            }
            let mut cache = (self.make)();
            for tokens in text.chunks(self.step) {
                parts.push(self.decoder.extend(tokens, &mut cache, None)?);
            }
        }
        Hidden::join(&parts)
    }
}

impl Debug for Stepwise<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepwise").field("step", &self.step).finish_non_exhaustive()
    }
}
