//! The decoder: embeddings, layers, head.

mod attention;
mod load;

use crate::kv::{KvRows, KvState};
use crate::ops::{self, Rows};
use crate::rope::{RopeScaling, RopeTable};
use crate::slot::{Apply, Slot};
use crate::weights::WeightSource;
use crate::{Config, Error, Observer};
use attention::Attention;
use candle_core::Tensor;
use quant_io::Checkpoint;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A Llama-shaped language model whose linears can be replaced and watched.
///
/// Embeddings, norms and everything between the linears are f32. A clone shares its weights with
/// the original until they are replaced, so a model and many compressed variants of it take
/// little more than their differences.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: Arc<Config>,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Arc<[f32]>,
    head: Slot,
}

#[derive(Clone, Debug)]
struct Layer {
    input_norm: Arc<[f32]>,
    q: Slot,
    k: Slot,
    v: Slot,
    q_norm: Option<Arc<[f32]>>,
    k_norm: Option<Arc<[f32]>>,
    o: Slot,
    mlp_norm: Arc<[f32]>,
    gate: Slot,
    up: Slot,
    down: Slot,
}

impl Layer {
    fn slots(&self) -> [&Slot; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    fn slots_mut(&mut self) -> [&mut Slot; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }
}

/// The last layer's output for some tokens, after the final norm: what the head is applied to.
#[derive(Clone, Debug)]
pub struct Hidden(Rows);

impl Hidden {
    /// Tokens, over all texts of the batch in order.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.rows()
    }
}

/// One text of a batch.
struct Place {
    /// Its rows.
    rows: Range<usize>,
    /// The position of its first token.
    start: usize,
    rope: Arc<RopeTable>,
}

/// What a pass runs over.
struct Pass<'a> {
    texts: Vec<Place>,
    cache: Option<&'a mut KvState>,
    observer: Option<&'a mut (dyn Observer + 'a)>,
}

/// The same observer for a shorter time.
fn again<'b>(observer: &'b mut Option<&mut (dyn Observer + '_)>) -> Option<&'b mut (dyn Observer + 'b)> {
    match observer {
        Some(observer) => Some(&mut **observer),
        None => None,
    }
}

impl Decoder {
    /// Loads a Hugging Face folder: `config.json` and whatever weights [`Checkpoint`] reads. Compressed ones
    /// are decoded once, see [`Apply::Decoded`].
    ///
    /// # Errors
    ///
    /// As [`Config::from_folder`], [`Checkpoint::open`] and [`Decoder::from_source`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let config = Config::from_folder(folder)?;
        Self::from_source(config, &Checkpoint::open(folder)?, Apply::Decoded)
    }

    /// Builds a decoder from any weights; `apply` says what becomes of compressed ones.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::WeightShape`] and [`Error::NonFiniteWeight`], naming the
    /// tensor; whatever the source fails with; [`Error::Linear`] when a compressed weight cannot be decoded.
    pub fn from_source(config: Config, source: &dyn WeightSource, apply: Apply) -> Result<Self, Error> {
        load::load(config, source, apply)
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All linears in the order they are computed, the head (`lm_head`) last.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.layers.iter().flat_map(Layer::slots).chain([&self.head])
    }

    /// The linear of this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSlot`].
    pub fn slot(&self, name: &str) -> Result<&Slot, Error> {
        self.slots().find(|slot| slot.name() == name).ok_or_else(|| Error::UnknownSlot { name: name.to_owned() })
    }

    /// The linear of this name, to be given another weight. A tied head that is given one is tied no more.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSlot`].
    pub fn slot_mut(&mut self, name: &str) -> Result<&mut Slot, Error> {
        let slots = self.layers.iter_mut().flat_map(Layer::slots_mut).chain([&mut self.head]);
        slots.into_iter().find(|slot| slot.name() == name).ok_or_else(|| Error::UnknownSlot { name: name.to_owned() })
    }

    /// The embedding matrix, row-major `[vocabulary, hidden]`.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] when the tensor library fails.
    pub fn embedding(&self) -> Result<Vec<f32>, Error> {
        Ok(self.embedding.flatten_all()?.to_vec1()?)
    }

    /// Replaces the embedding matrix, and with it a head that is tied to it.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for another number of elements, [`Error::NonFiniteWeight`].
    pub fn set_embedding(&mut self, values: Vec<f32>) -> Result<(), Error> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        self.embedding = crate::slot::dense("model.embed_tokens.weight", values, shape)?;
        if self.config.tied_head {
            self.head.share(self.embedding.clone());
        }
        Ok(())
    }

    /// Runs texts from their first token, without a cache, up to the head. All rows of the batch
    /// go through each linear in one product; attention stays within a text. Texts may differ in length.
    ///
    /// # Errors
    ///
    /// [`Error::EmptySequence`], [`Error::TokenRange`]; [`Error::Linear`] from slots applied directly.
    pub fn hidden(&self, texts: &[&[u32]], observer: Option<&mut dyn Observer>) -> Result<Hidden, Error> {
        let rope = &self.config.rope;
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let shared = Arc::new(rope.table(0, longest));
        let mut end = 0;
        let place = |text: &&[u32]| {
            end += text.len();
            let own = matches!(rope.scaling, RopeScaling::Dynamic { .. }) && text.len() < longest;
            let rope = if own { Arc::new(rope.table(0, text.len())) } else { Arc::clone(&shared) };
            Place { rows: end - text.len()..end, start: 0, rope }
        };
        let places = texts.iter().map(place).collect();
        self.run(texts, Pass { texts: places, cache: None, observer: observer.map(|o| o as _) })
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
        let start = cache.len();
        let rope = Arc::new(self.config.rope.table(start, start + tokens.len()));
        let texts = vec![Place { rows: 0..tokens.len(), start, rope }];
        self.run(&[tokens], Pass { texts, cache: Some(cache), observer: observer.map(|o| o as _) })
    }

    /// Applies the head to some rows: logits, row-major `[rows, vocabulary]`.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for rows that are not there; [`Error::Linear`] from a head applied directly.
    pub fn logits(&self, hidden: &Hidden, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        self.logits_observed(hidden, rows, None)
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
        if rows.start > rows.end || rows.end > hidden.rows() {
            let (value, expected) = (format!("{rows:?} of {}", hidden.rows()), "rows of the hidden state");
            return Err(Error::BadSetting { name: "rows", value, expected });
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.head.forward(&hidden.0.part(rows)?, observer.map(|o| o as _))?;
        logits.read(<[f32]>::to_vec)
    }

    fn run(&self, texts: &[&[u32]], mut pass: Pass<'_>) -> Result<Hidden, Error> {
        let mut x = self.embed(texts)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let mixed = self.attention(index, layer, &x, &mut pass)?;
            x.update_with(&mixed, ops::add)?;
            let mixed = self.feed_forward(layer, &x, &mut pass)?;
            x.update_with(&mixed, ops::add)?;
        }
        x.update(|x| ops::rms_norm(x, &self.norm, self.config.norm_eps))?;
        Ok(Hidden(x))
    }

    fn embed(&self, texts: &[&[u32]]) -> Result<Rows, Error> {
        let (vocab, width) = (self.config.vocab_size, self.config.hidden_size);
        if let Some(index) = texts.iter().position(|text| text.is_empty()) {
            return Err(Error::EmptySequence { index });
        }
        let tokens = texts.iter().map(|text| text.len()).sum::<usize>();
        let mut rows = Vec::with_capacity(tokens * width);
        ops::read(&self.embedding, |matrix| {
            for text in texts {
                for (index, &id) in text.iter().enumerate() {
                    let row = matrix.chunks_exact(width).nth(id as usize);
                    rows.extend_from_slice(row.ok_or(Error::TokenRange { index, id, vocab })?);
                }
            }
            Ok::<(), Error>(())
        })??;
        Rows::new(rows, width)
    }

    fn attention(&self, index: usize, layer: &Layer, x: &Rows, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let config = &*self.config;
        let normed = x.map(|x| ops::rms_norm(x, &layer.input_norm, config.norm_eps))?;
        let mut q = layer.q.forward(&normed, again(&mut pass.observer))?;
        let mut k = layer.k.forward(&normed, again(&mut pass.observer))?;
        let v = layer.v.forward(&normed, again(&mut pass.observer))?;
        for (heads, norm) in [(&mut q, &layer.q_norm), (&mut k, &layer.k_norm)] {
            if let Some(norm) = norm {
                heads.update(|x| ops::rms_norm(x, norm, config.norm_eps))?;
            }
            let width = heads.width();
            heads.update(|x| {
                for Place { rows, start, rope } in &pass.texts {
                    let x = &mut x[rows.start * width..rows.end * width];
                    ops::for_rows(x, width, |row, x| rope.turn(start + row, config.head_dim, x));
                }
            })?;
        }
        let geometry = config.kv_geometry();
        let attention = Attention { geometry, window: config.windows.get(index).copied().flatten() };
        let mut out = Vec::with_capacity(q.rows() * q.width());
        for Place { rows, .. } in &pass.texts {
            let (q, k, v) = (q.part(rows.clone())?, k.part(rows.clone())?, v.part(rows.clone())?);
            match &mut pass.cache {
                None => attention.fresh(q.tensor(), k.tensor(), v.tensor(), &mut out)?,
                Some(cache) => k.read(|keys| {
                    v.read(|values| {
                        let past = cache.append(index, geometry, KvRows { keys, values })?;
                        attention.cached(q.tensor(), past, &mut out)
                    })
                })???,
            }
        }
        let mixed = Rows::new(out, config.heads * config.head_dim)?;
        layer.o.forward(&mixed, again(&mut pass.observer))
    }

    fn feed_forward(&self, layer: &Layer, x: &Rows, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let normed = x.map(|x| ops::rms_norm(x, &layer.mlp_norm, self.config.norm_eps))?;
        let mut gate = layer.gate.forward(&normed, again(&mut pass.observer))?;
        let up = layer.up.forward(&normed, again(&mut pass.observer))?;
        gate.update_with(&up, |gate, up| ops::gated(self.config.activation, gate, up))?;
        layer.down.forward(&gate, again(&mut pass.observer))
    }
}
