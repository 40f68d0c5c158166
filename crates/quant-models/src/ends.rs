//! The two ends of a model: embedding and head.

use crate::layer::graph;
use crate::loader::Loader;
use crate::norm::Norm;
use crate::ops::{self, Rows};
use crate::slot::{self, Origin, Role, Slot, Weight};
use crate::stream::{self, Place, Stream};
use crate::vector::Vector;
use crate::{Config, Error, Observer};
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// Turns tokens into the stream that enters the first layer.
#[derive(Clone, Debug)]
pub struct Embedding {
    config: Arc<Config>,
    matrix: Tensor,
    /// RWKV's `ln0`.
    norm: Option<Norm>,
}

impl Embedding {
    pub(crate) fn load(loader: &Loader<'_>, config: &Arc<Config>) -> Result<Self, Error> {
        let matrix = loader.matrix(Self::tensor(config), [config.vocab_size, config.hidden_size])?;
        let norm = match config.rwkv {
            None => None,
            Some(_) => Some(Norm::layer(loader, "blocks.0.ln0", config.hidden_size, config.norm_eps)?),
        };
        Ok(Self { config: Arc::clone(config), matrix, norm })
    }

    /// The name of the tensor.
    fn tensor(config: &Config) -> &'static str {
        if config.rwkv.is_some() { "emb.weight" } else { "model.embed_tokens.weight" }
    }

    pub(crate) fn matrix(&self) -> &Tensor {
        &self.matrix
    }

    /// The matrix, row-major `[vocabulary, hidden]`.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] when the tensor library fails.
    pub fn values(&self) -> Result<Vec<f32>, Error> {
        Ok(self.matrix.flatten_all()?.to_vec1()?)
    }

    /// Replaces the matrix.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for another number of elements, [`Error::NonFiniteWeight`].
    pub fn set(&mut self, values: Vec<f32>) -> Result<(), Error> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        self.matrix = slot::dense(Self::tensor(&self.config), values, shape)?;
        Ok(())
    }

    /// Gain and offset of the norm behind the matrix, which only RWKV has.
    #[must_use]
    pub fn vectors(&self) -> Vec<&Vector> {
        self.norm.iter().flat_map(Norm::vectors).collect()
    }

    /// The same, to be changed.
    pub fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        self.norm.iter_mut().flat_map(Norm::vectors_mut).collect()
    }

    /// Begins the streams of whole texts, which may differ in length.
    ///
    /// # Errors
    ///
    /// [`Error::EmptySequence`], [`Error::TokenRange`].
    pub fn stream(&self, texts: &[&[u32]]) -> Result<Stream, Error> {
        self.begin(texts, stream::whole(&self.config, texts))
    }

    pub(crate) fn begin(&self, texts: &[&[u32]], places: Vec<Place>) -> Result<Stream, Error> {
        let (vocab, width) = (self.config.vocab_size, self.config.hidden_size);
        if let Some(index) = texts.iter().position(|text| text.is_empty()) {
            return Err(Error::EmptySequence { index });
        }
        let tokens = texts.iter().map(|text| text.len()).sum::<usize>();
        let mut rows = Vec::with_capacity(tokens * width);
        ops::read(&self.matrix, |matrix| {
            for text in texts {
                for (index, &id) in text.iter().enumerate() {
                    let row = matrix.chunks_exact(width).nth(id as usize);
                    rows.extend_from_slice(row.ok_or(Error::TokenRange { index, id, vocab })?);
                }
            }
            Ok::<(), Error>(())
        })??;
        if let Some(norm) = &self.norm {
            norm.apply(&mut rows);
        }
        Ok(Stream::new(Rows::new(rows, width)?, places))
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

    /// Rows of several passes, one after the other.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] when the tensor library fails, as it does for rows of different widths.
    pub fn join(parts: &[Self]) -> Result<Self, Error> {
        let width = parts.first().map_or(0, |part| part.0.width());
        let mut rows = Vec::with_capacity(parts.iter().map(Self::rows).sum::<usize>() * width);
        for part in parts {
            part.0.read(|values| rows.extend_from_slice(values))?;
        }
        Ok(Self(Rows::new(rows, width)?))
    }
}

/// Turns the stream that leaves the last layer into logits.
#[derive(Clone, Debug)]
pub struct Head {
    norm: Norm,
    slot: Slot,
    tied: bool,
}

impl Head {
    /// Reads the head; one that is tied to the embedding shares its matrix where that is at hand.
    pub(crate) fn load(
        loader: &Loader<'_>,
        config: &Arc<Config>,
        embedding: Option<&Embedding>,
    ) -> Result<Self, Error> {
        let (name, norm) = match config.rwkv {
            None => ("lm_head", Norm::rms(loader, "model.norm", config.hidden_size, config.norm_eps)?),
            Some(_) => ("head", Norm::layer(loader, "ln_out", config.hidden_size, config.norm_eps)?),
        };
        let shape = [config.vocab_size, config.hidden_size];
        let slot = if config.tied_head {
            let weight = match (loader.source.linear(name)?, embedding) {
                (Some(linear), _) => Weight::compressed(name, shape, linear, loader.apply)?,
                (None, Some(embedding)) => Weight::Dense(embedding.matrix().clone()),
                (None, None) => Weight::Dense(loader.matrix(Embedding::tensor(config), shape)?),
            };
            let origin = Origin { tensor: Embedding::tensor(config).into(), rows: 0..shape[0], transposed: false };
            Slot::new(name.into(), Role::Head, shape, weight, None, origin)
        } else {
            loader.slot(name.into(), Role::Head, shape, false)?
        };
        Ok(Self { norm, slot, tied: config.tied_head })
    }

    /// The output projection.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The output projection, to be changed. A tied one that is given another weight is tied no more.
    pub fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }

    /// Gain and offset of the final norm.
    #[must_use]
    pub fn vectors(&self) -> Vec<&Vector> {
        self.norm.vectors()
    }

    /// The same, to be changed.
    pub fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        self.norm.vectors_mut()
    }

    /// Shares a new embedding matrix if the head is tied.
    pub(crate) fn share(&mut self, embedding: &Embedding) {
        if self.tied {
            self.slot.share(embedding.matrix().clone());
        }
    }

    /// Applies the final norm.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] when the tensor library fails.
    pub fn hidden(&self, x: &Stream) -> Result<Hidden, Error> {
        Ok(Hidden(self.norm.of(x.rows())?))
    }

    /// Logits as a graph, from rows before the final norm.
    pub(crate) fn trace(&self, x: &Tensor, tap: Option<&Arc<graph::Tap>>) -> Result<Tensor, Error> {
        graph::product(&self.slot, &graph::norm(&self.norm, x)?, tap)
    }

    /// Logits of some rows, row-major `[rows, vocabulary]`.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for rows that are not there; [`Error::Linear`] from a head that is applied directly or
    /// rounds its input.
    pub fn logits(
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
        let logits = self.slot.forward(&hidden.0.part(rows)?, observer.map(|o| o as _))?;
        logits.read(<[f32]>::to_vec)
    }
}
