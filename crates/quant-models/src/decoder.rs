//! The whole model in memory: embedding, layers, head.

use crate::ends::{Embedding, Head, Hidden};
use crate::kv::KvState;
use crate::layer::{self, Layer, again};
use crate::layers::Layers;
use crate::slot::{Apply, Slot};
use crate::stream::{self, Stream};
use crate::weights::WeightSource;
use crate::{Config, Error, Observer};
use candle_core::Tensor;
use quant_io::Checkpoint;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A language model whose linears can be replaced and watched.
///
/// Embeddings, norms and everything between the linears are f32. A clone shares its weights with
/// the original until they are replaced, so a model and many compressed variants of it take
/// little more than their differences.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: Arc<Config>,
    embedding: Embedding,
    layers: Vec<Layer>,
    head: Head,
}

impl Decoder {
    /// Loads a model folder: `config.json` and whatever weights [`Checkpoint`] reads. Compressed ones
    /// are arranged for fast products, see [`Apply::Prepared`].
    ///
    /// # Errors
    ///
    /// As [`Config::from_folder`], [`Checkpoint::open`] and [`Decoder::from_source`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let config = Config::from_folder(folder)?;
        Self::from_source(config, &Checkpoint::open(folder)?, Apply::Prepared)
    }

    /// Builds a decoder from any weights; `apply` says what becomes of compressed ones.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::WeightShape`] and [`Error::NonFiniteWeight`], naming the
    /// tensor; whatever the source fails with; [`Error::Linear`] when a compressed weight cannot be decoded.
    pub fn from_source(config: Config, source: &dyn WeightSource, apply: Apply) -> Result<Self, Error> {
        let pieces = Layers::new(config, source, apply);
        let embedding = pieces.embedding()?;
        let layers = (0..pieces.len()).map(|index| pieces.layer(index)).collect::<Result<_, _>>()?;
        let head = Head::load(&pieces.loader(), pieces.config(), Some(&embedding))?;
        Ok(Self { config: Arc::clone(pieces.config()), embedding, layers, head })
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The layers, first one first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The layers, to be changed.
    pub fn layers_mut(&mut self) -> &mut [Layer] {
        &mut self.layers
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The head, to be changed.
    pub fn head_mut(&mut self) -> &mut Head {
        &mut self.head
    }

    /// All linears in the order they are computed, the head last.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.layers.iter().flat_map(Layer::slots).chain([self.head.slot()])
    }

    /// The linear of this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSlot`].
    pub fn slot(&self, name: &str) -> Result<&Slot, Error> {
        layer::named(self.slots(), name)
    }

    /// The linear of this name, to be given another weight. A tied head that is given one is tied no more.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSlot`].
    pub fn slot_mut(&mut self, name: &str) -> Result<&mut Slot, Error> {
        layer::named_mut(self.layers.iter_mut().flat_map(Layer::slots_mut).chain([self.head.slot_mut()]), name)
    }

    /// The embedding matrix, row-major `[vocabulary, hidden]`.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] when the tensor library fails.
    pub fn embedding(&self) -> Result<Vec<f32>, Error> {
        self.embedding.values()
    }

    /// Replaces the embedding matrix, and with it a head that is tied to it.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for another number of elements, [`Error::NonFiniteWeight`].
    pub fn set_embedding(&mut self, values: Vec<f32>) -> Result<(), Error> {
        self.embedding.set(values)?;
        self.head.share(&self.embedding);
        Ok(())
    }

    /// Runs texts from their first token, without a cache, up to the head. All rows of the batch
    /// go through each linear in one product; tokens are mixed within a text only. Texts may differ in length.
    ///
    /// # Errors
    ///
    /// [`Error::EmptySequence`], [`Error::TokenRange`]; [`Error::Linear`] from slots that are applied directly or round
    /// their input.
    pub fn hidden(&self, texts: &[&[u32]], observer: Option<&mut dyn Observer>) -> Result<Hidden, Error> {
        self.run(self.embedding.stream(texts)?, None, observer.map(|o| o as _))
    }

    /// Runs the next tokens of one text whose past is in `cache`, up to the head. After an error inside a
    /// layer the cache must be reset.
    ///
    /// # Errors
    ///
    /// As [`Decoder::hidden`]; [`Error::Cache`] when the cache fails or is not one for this model.
    pub fn extend(
        &self,
        tokens: &[u32],
        cache: &mut KvState,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Hidden, Error> {
        cache.check(&self.config)?;
        let place = stream::continued(&self.config, cache.len(), tokens.len());
        self.run(self.embedding.begin(&[tokens], place)?, Some(cache), observer.map(|o| o as _))
    }

    /// Applies the head to some rows: logits, row-major `[rows, vocabulary]`.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for rows that are not there; [`Error::Linear`] from a head applied directly.
    pub fn logits(&self, hidden: &Hidden, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        self.head.logits(hidden, rows, None)
    }

    /// As [`Decoder::logits`], showing the head's input to an observer.
    ///
    /// # Errors
    ///
    /// As [`Decoder::logits`].
    pub fn logits_observed(
        &self,
        hidden: &Hidden,
        rows: Range<usize>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Vec<f32>, Error> {
        self.head.logits(hidden, rows, observer)
    }

    /// The rows that enter the first layer for one text.
    pub(crate) fn embedded(&self, tokens: &[u32]) -> Result<Tensor, Error> {
        Ok(self.embedding.stream(&[tokens])?.rows().tensor().clone())
    }

    fn run(
        &self,
        mut stream: Stream,
        mut cache: Option<&mut KvState>,
        mut observer: Option<&mut (dyn Observer + '_)>,
    ) -> Result<Hidden, Error> {
        for layer in &self.layers {
            stream = layer.run(&stream, cache.as_deref_mut(), again(&mut observer))?;
        }
        self.head.hidden(&stream)
    }
}
