//! A model of which one layer at a time is in memory.

use crate::ends::{Embedding, Head};
use crate::layer::Layer;
use crate::loader::Loader;
use crate::slot::Apply;
use crate::{Config, Error, WeightSource};
use std::sync::Arc;

/// Reads a model piece by piece, keeping none: for methods that work through a model of any size layer by layer.
///
/// The pieces are those of [`crate::Decoder`], so a model run in pieces gives the same bits as one run whole.
///
/// # Examples
///
/// ```
/// use quant_models::{Apply, Config, Decoder, Layers};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
/// let checkpoint = quant_io::Checkpoint::open(&folder)?;
/// let layers = Layers::new(Config::from_folder(&folder)?, &checkpoint, Apply::Decoded);
/// let (one, other) = (b"Once upon".map(u32::from), b"a time".map(u32::from));
/// let texts: [&[u32]; 2] = [&one, &other];
///
/// let mut stream = layers.embedding()?.stream(&texts)?;
/// for index in 0..layers.len() {
///     let layer = layers.layer(index)?; // the only one in memory
///     let mut inputs = 0;
///     let mut observer = |_slot: &str, _features: usize, _input: &[f32]| inputs += 1;
///     stream = layer.forward(&stream, Some(&mut observer))?;
///     assert_eq!(inputs, 7);
/// }
/// let head = layers.head()?;
/// let logits = head.logits(&head.hidden(&stream)?, 0..stream.tokens(), None)?;
///
/// let whole = Decoder::open(&folder)?;
/// assert_eq!(logits, whole.logits(&whole.hidden(&texts, None)?, 0..15)?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Layers<'a> {
    config: Arc<Config>,
    source: &'a dyn WeightSource,
    apply: Apply,
}

impl<'a> Layers<'a> {
    /// A model whose weights lie in `source`; `apply` says what becomes of compressed ones.
    #[must_use]
    pub fn new(config: Config, source: &'a dyn WeightSource, apply: Apply) -> Self {
        Self { config: Arc::new(config), source, apply }
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Number of layers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.config.layers
    }

    /// Whether there is no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.config.layers == 0
    }

    /// Reads the embedding.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::WeightShape`] and [`Error::NonFiniteWeight`], naming the tensor; whatever the
    /// source fails with; [`Error::Linear`] when a compressed weight cannot be decoded.
    pub fn embedding(&self) -> Result<Embedding, Error> {
        Embedding::load(&self.loader(), &self.config)
    }

    /// Reads one layer.
    ///
    /// # Errors
    ///
    /// As [`Layers::embedding`]; [`Error::BadSetting`] when there is no such layer.
    pub fn layer(&self, index: usize) -> Result<Layer, Error> {
        if index >= self.len() {
            let value = format!("{index} of {}", self.len());
            return Err(Error::BadSetting { name: "layer", value, expected: "a layer of the model" });
        }
        Layer::load(&self.loader(), &self.config, index)
    }

    /// Reads the head, the embedding once more if they are tied.
    ///
    /// # Errors
    ///
    /// As [`Layers::embedding`].
    pub fn head(&self) -> Result<Head, Error> {
        Head::load(&self.loader(), &self.config, None)
    }

    pub(crate) fn loader(&self) -> Loader<'_> {
        Loader { source: self.source, apply: self.apply }
    }
}

impl std::fmt::Debug for Layers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let origin = self.source.origin();
        f.debug_struct("Layers").field("config", &self.config).field("source", &origin).finish_non_exhaustive()
    }
}
