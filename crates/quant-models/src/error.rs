//! The crate's error type.

use std::path::PathBuf;

/// An error of any type, as caches written elsewhere return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a model could not be read, run or evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A key that the model cannot do without is absent.
    #[error("{}: the key `{key}` is missing", file.display())]
    MissingKey {
        /// The file.
        file: PathBuf,
        /// The key, with the keys above it.
        key: String,
    },
    /// A key holds a value of the wrong kind, or one that contradicts the rest.
    #[error("{}: `{key}` is {value}, expected {expected}", file.display())]
    BadValue {
        /// The file.
        file: PathBuf,
        /// The key, with the keys above it.
        key: String,
        /// The value, as JSON.
        value: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The files of weights cannot be read.
    #[error(transparent)]
    Weights(#[from] quant_io::Error),
    /// A source of weights that is not of this crate failed.
    #[error(transparent)]
    Source {
        /// What it said.
        source: BoxError,
    },
    /// The model needs a tensor that the source does not have.
    #[error("{origin}: tensor {name} is missing")]
    MissingTensor {
        /// Where it was looked for.
        origin: String,
        /// The tensor.
        name: String,
    },
    /// A tensor or a replacement has another shape than the configuration asks for.
    #[error("{name} has shape {found:?}, but the configuration asks for {expected:?}")]
    WeightShape {
        /// The tensor or slot.
        name: String,
        /// Shape that follows from the configuration.
        expected: Vec<usize>,
        /// Shape that was found.
        found: Vec<usize>,
    },
    /// A weight is NaN or infinite.
    #[error("{name}: element {index} is {value}; weights must be finite")]
    NonFiniteWeight {
        /// The tensor.
        name: String,
        /// Row-major position of the first offender.
        index: usize,
        /// The value found there.
        value: f32,
    },
    /// There is no slot of this name.
    #[error("the model has no linear named {name}; `Decoder::slots` lists them")]
    UnknownSlot {
        /// The name that was asked for.
        name: String,
    },
    /// A compressed weight refused to be decoded or applied.
    #[error("{name}: {source}")]
    Linear {
        /// The slot.
        name: String,
        /// What the weight said.
        source: quant_core::Error,
    },
    /// A token id lies outside the vocabulary.
    #[error("token {index} is {id}, but the vocabulary has {vocab} entries")]
    TokenRange {
        /// Position in the sequence.
        index: usize,
        /// The id.
        id: u32,
        /// Entries in the vocabulary.
        vocab: usize,
    },
    /// A sequence without tokens cannot be run.
    #[error("sequence {index} is empty")]
    EmptySequence {
        /// Its place in the batch.
        index: usize,
    },
    /// A key-value cache failed or does not belong to this model.
    #[error("key-value cache of layer {layer}: {source}")]
    Cache {
        /// The layer.
        layer: usize,
        /// What the cache said.
        source: BoxError,
    },
    /// The tokenizer could not be read, or refused the text.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// `tokenizer.json`.
        path: PathBuf,
        /// What the tokenizer said.
        reason: String,
    },
    /// The text is not UTF-8, which this tokenizer needs.
    #[error("the text is not UTF-8 from byte {offset} on")]
    NotUtf8 {
        /// First offending byte.
        offset: usize,
    },
    /// Nothing is left to score.
    #[error("{found} tokens leave nothing to score; at least {needed} are needed")]
    TooFewTokens {
        /// Tokens given.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// An evaluation or generation setting is outside its range.
    #[error("{name} is {value}, expected {expected}")]
    BadSetting {
        /// The setting.
        name: &'static str,
        /// The value given.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// Gradients were asked of a model that they are not written for.
    #[error("gradients are for dense transformers, this model is {family:?}")]
    NotDifferentiable {
        /// Its family.
        family: crate::Family,
    },
    /// The outputs that a layer is to be fitted to, or those that it gives, are NaN or infinite.
    #[error("the error of the outputs of layer {layer} and those behind it is not finite")]
    NonFiniteLoss {
        /// The layer.
        layer: usize,
    },
    /// A pass gave logits that are NaN or infinite, so nothing can be measured or drawn from them.
    #[error("the model's logits for row {row} are not finite; its weights overflow f32")]
    NonFiniteLogits {
        /// The row of the pass.
        row: usize,
    },
    /// Two models that are to be compared have different vocabularies.
    #[error("the reference has a vocabulary of {reference} entries, the model one of {model}")]
    VocabularyMismatch {
        /// Entries of the reference.
        reference: usize,
        /// Entries of the model.
        model: usize,
    },
    /// The tensor library failed; a defect rather than bad input.
    #[error("tensor library: {0}")]
    Backend(#[from] candle_core::Error),
}
