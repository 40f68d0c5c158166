//! The crate's error type, and the advice that goes with each error.

use crate::recipe::RecipeError;
use crate::{ComposedError, StorageLayout};
use std::io;
use std::path::{Path, PathBuf};

/// Why a job of this crate failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A tensor could not be quantized.
    #[error("{}: tensor {tensor}: {source}", file.display())]
    Tensor {
        /// The file or folder it came from.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// Why not.
        source: Box<quant_core::Error>,
    },
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Io(#[from] quant_io::Error),
    /// A model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] quant_models::Error),
    /// A recipe was refused.
    #[error("{}: {source}", file.display())]
    Recipe {
        /// The recipe file, or the name of a preset.
        file: PathBuf,
        /// Why.
        source: RecipeError,
    },
    /// A tensor that is quantized already was to be quantized again.
    #[error("{}: tensor {tensor} is stored as {stored}, which is quantized already", file.display())]
    AlreadyQuantized {
        /// The file or folder it came from.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// How it is stored.
        stored: String,
    },
    /// Patterns or rules left nothing to do.
    #[error("{}: none of {tensors} tensors is to be quantized", file.display())]
    NothingSelected {
        /// The file or folder.
        file: PathBuf,
        /// Tensors it holds.
        tensors: usize,
    },
    /// Nothing in the input is quantized.
    #[error("{}: none of {tensors} tensors is quantized", file.display())]
    NothingQuantized {
        /// The file or folder.
        file: PathBuf,
        /// Tensors it holds.
        tensors: usize,
    },
    /// The output exists.
    #[error("{} exists", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// The output folder holds something that is no interrupted run of this job.
    #[error("{} is not empty and holds no interrupted compression", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The output folder holds a finished compression.
    #[error("{} already holds a finished compression", path.display())]
    Finished {
        /// The folder.
        path: PathBuf,
    },
    /// The output folder holds an interrupted run of another job.
    #[error("{} holds an interrupted compression of {what}", path.display())]
    OtherJob {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// Input and output are the same folder.
    #[error("{} is both the input and the output", path.display())]
    SameFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds no `config.json`, so it is no model folder.
    #[error("{}: no config.json here, so this is no model folder", path.display())]
    NoConfig {
        /// The folder.
        path: PathBuf,
    },
    /// A configuration file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A calibration text was given to a recipe that has no use for one.
    #[error("the method {method} of this recipe uses no calibration text")]
    CalibrationUnused {
        /// The method.
        method: &'static str,
    },
    /// A recipe looks at activations, but no calibration text was given.
    #[error("{what} looks at activations, but no calibration text was given")]
    NeedsCalibration {
        /// What needs it.
        what: String,
    },
    /// The calibration text fills no window.
    #[error("{}: {tokens} tokens are fewer than one window of {needed}", path.display())]
    ShortCalibration {
        /// The text.
        path: PathBuf,
        /// Its tokens.
        tokens: usize,
        /// Tokens of a window.
        needed: usize,
    },
    /// An activation is NaN or infinite.
    #[error("{what} is {value} in channel {channel}, calibration window {}", windows(*first_window, *last_window))]
    Activations {
        /// What was computed: the input of a linear, the output of a layer.
        what: String,
        /// The first window (from 0) in which it may be.
        first_window: usize,
        /// The last one.
        last_window: usize,
        /// Channel of the token.
        channel: usize,
        /// The value.
        value: f32,
    },
    /// Statistics of activations were refused.
    #[error("the input of {what}: {source}")]
    Calibration {
        /// The linear.
        what: String,
        /// Why.
        source: quant_calib::Error,
    },
    /// Experts could not be measured, or schemes not be allocated to them.
    #[error("{}: {source}", file.display())]
    Experts {
        /// What was worked on: a file, or in words.
        file: PathBuf,
        /// Why.
        source: Box<moe_quant::Error>,
    },
    /// A model could not write calibration text.
    #[error("{}: {source}", model.display())]
    Sampling {
        /// The model.
        model: PathBuf,
        /// Why.
        source: Box<moe_quant::EbssError>,
    },
    /// A method cannot quantize a tensor.
    #[error("{}: tensor {tensor}: {source}", file.display())]
    Method {
        /// The file or folder it came from.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// Why not.
        source: Box<weight_quant::Error>,
    },
    /// A method cannot factor a tensor.
    #[error("{}: tensor {tensor}: {source}", file.display())]
    LowRank {
        /// The file or folder it came from.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// Why not.
        source: Box<low_rank::Error>,
    },
    /// A method cannot code a tensor as vectors.
    #[error("{}: tensor {tensor}: {source}", file.display())]
    VectorQuant {
        /// The file or folder it came from.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// Why not.
        source: Box<vector_quant::Error>,
    },
    /// The parts of a stored tensor cannot be put together.
    #[error("{}: tensor {tensor}: {source}", file.display())]
    Composed {
        /// The file or folder.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// Why not.
        source: Box<ComposedError>,
    },
    /// A rule asks for what a tensor cannot have.
    #[error("tensor {tensor} cannot be quantized by {method}: {reason}")]
    Unsuitable {
        /// Its name.
        tensor: String,
        /// The method.
        method: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A model cannot be rotated or smoothed.
    #[error("{}: {what} is not possible: {reason}", file.display())]
    Transform {
        /// The model.
        file: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// A tensor does not have the shape that a rotation of the model asks for.
    #[error("tensor {tensor} cannot be rotated: {source}")]
    Rotation {
        /// Its name.
        tensor: String,
        /// Why not.
        source: Box<quant_transforms::Error>,
    },
    /// A tensor that a change of basis gives other values is not stored as floats of 16 or 32 bits.
    #[error("{}: tensor {tensor} must get other values, but is not stored as floats of 16 or 32 bits", file.display())]
    CannotRewrite {
        /// The file or folder it came from.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A decoded value does not fit the type that was asked for.
    #[error("{}: tensor {tensor}: element {index} is {value}, beyond the range of {dtype}", file.display())]
    OutOfRange {
        /// The file or folder it came from.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// Row-major position of the first such element.
        index: usize,
        /// The value.
        value: f32,
        /// The type.
        dtype: &'static str,
    },
    /// A begin-of-sequence token was asked of a model that has none.
    #[error("{}: the configuration names no bos_token_id", path.display())]
    NoBos {
        /// The model folder.
        path: PathBuf,
    },
    /// A key-value cache refused a model or its rows.
    #[error("the cache {what}: {source}")]
    KvCache {
        /// The method.
        what: String,
        /// Why.
        source: Box<kv_cache_quant::Error>,
    },
    /// The maps of a key-value cache cannot be trained.
    #[error("training {what}: {source}")]
    KvTraining {
        /// The method, and where.
        what: String,
        /// Why.
        source: Box<low_rank::Error>,
    },
    /// The parameters of a folder's key-value cache cannot be used.
    #[error("{}: {reason}", path.display())]
    KvParameters {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model keeps no keys and values.
    #[error("{}: a recurrent model, which has no key-value cache", path.display())]
    NoKvCache {
        /// The model folder.
        path: PathBuf,
    },
    /// A report could not be put into JSON.
    #[error("cannot write JSON: {source}")]
    Json {
        /// Why not.
        source: serde_json::Error,
    },
    /// A layout cannot hold a tensor.
    #[error("tensor {tensor} cannot be stored in the {layout} layout: {reason}")]
    Layout {
        /// Its name.
        tensor: String,
        /// The layout.
        layout: StorageLayout,
        /// Why not.
        reason: String,
    },
    /// A name pattern matches no tensor, so it is probably misspelt.
    #[error("{}: no tensor matches {pattern:?}", file.display())]
    NoMatch {
        /// The file or folder.
        file: PathBuf,
        /// The pattern.
        pattern: String,
    },
}

fn windows(first: usize, last: usize) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

impl Error {
    pub(crate) fn file(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), action, source }
    }

    /// What to do about it, in one line.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::File { source, .. } => return io_hint(source),
            Self::Io(error) => return checkpoint_hint(error),
            Self::Model(error) => return model_hint(error),
            Self::Tensor { source, .. } if matches!(**source, quant_core::Error::NonFinite { .. }) => {
                "the weights are damaged; if the tensor is meant to be so, leave it as it is (`--skip`, or a rule with format = \"keep\")"
            }
            Self::Tensor { source, .. } if matches!(**source, quant_core::Error::ScaleOverflow { .. }) => {
                "choose a format with wider scales, for example with the modifier `-f32` or `-bf16`"
            }
            Self::Recipe { source: RecipeError::UnknownPreset { .. }, .. } => {
                let names: Vec<&str> = crate::presets().iter().map(|preset| preset.name).collect();
                return Some(format!("give the path of a TOML file, or one of {}", names.join(", ")));
            }
            Self::Recipe { .. } => "`leanbits compress --help` shows what a recipe looks like",
            Self::AlreadyQuantized { .. } => "run `leanbits dequantize` first, or leave the tensor out with --skip",
            Self::NothingSelected { .. } => "`leanbits inspect` lists the names; check --only, --skip or the recipe",
            Self::NothingQuantized { .. } => "`leanbits inspect` shows how the tensors are stored",
            Self::Exists { .. } => "choose another output, or give --force to replace it",
            Self::NotEmpty { .. } | Self::Finished { .. } => "choose another OUT_DIR, or remove this one first",
            Self::OtherJob { .. } => {
                "give the same settings to continue it, --restart to throw it away, or another OUT_DIR"
            }
            Self::SameFolder { .. } => "choose another OUT_DIR",
            Self::NoConfig { .. } => "for single files use `leanbits quantize`",
            Self::CalibrationUnused { .. } => "leave --calib out",
            Self::NeedsCalibration { .. } => "give a text like those the model is for with --calib TEXT",
            Self::ShortCalibration { .. } => {
                "give a longer text, or smaller windows (`tokens` under [calibration] in the recipe)"
            }
            Self::Activations { .. } => "the weights are damaged, or the model overflows f32 on this text",
            Self::Unsuitable { .. } => "let another rule come first for this tensor, for example with method = \"rtn\"",
            Self::Transform { .. } => "leave [transform] out of the recipe",
            Self::OutOfRange { .. } => "use --dtype bf16 or --dtype f32",
            Self::NoBos { .. } => "leave --bos out",
            Self::KvCache { source, .. } if matches!(**source, kv_cache_quant::Error::Allocation(_)) => {
                "give a larger budget, or a smaller context"
            }
            Self::KvCache { .. } => "`leanbits kv --help` lists the codecs",
            Self::KvParameters { .. } => "the folder is incomplete or damaged; compress the model again",
            Self::NoKvCache { .. } => "its state has the same size for any context",
            Self::Layout { .. } => {
                "use --layout leanbits, or a format such as int4-g128, int8, fp8-e4m3, mxfp4 or nvfp4"
            }
            Self::NoMatch { .. } => "`leanbits inspect` lists the names; `*` stands for any characters",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

fn checkpoint_hint(error: &quant_io::Error) -> Option<String> {
    use quant_io::Error as E;
    let text = match error {
        E::InFile { source, .. } => return checkpoint_hint(source),
        E::Io { source, .. } => return io_hint(source),
        E::Busy { .. } => "wait until the other process is done, or choose another output",
        // The message says what was expected.
        E::NoCheckpoint { .. } | E::Packed { .. } => return None,
        E::MissingShard { .. } | E::ShardLacksTensor { .. } => "the folder is incomplete; fetch the missing files",
        E::UnsupportedVersion { .. } => "a newer version of this program may read it",
        E::GridMismatch { .. } | E::RaggedBlocks { .. } => "use another format, or --layout leanbits",
        E::UndecodableType { .. } => "`leanbits inspect --headers` shows what the file holds",
        _ => "the file is damaged or not what its name says; fetch or copy it again",
    };
    Some(text.to_owned())
}

fn model_hint(error: &quant_models::Error) -> Option<String> {
    use quant_models::Error as E;
    let text = match error {
        E::Weights(error) => return checkpoint_hint(error),
        E::Io { source, .. } => return io_hint(source),
        E::Json { .. } | E::MissingKey { .. } | E::BadValue { .. } => {
            "Llama, Mistral, Qwen, Mixtral, DeepSeek-MoE and RWKV models can be run; config.json must be that of the model"
        }
        E::MissingTensor { .. } | E::WeightShape { .. } => "config.json and the weights do not belong together",
        E::NonFiniteWeight { .. } => "the weights are damaged; `leanbits inspect` shows which are",
        E::Tokenizer { .. } => "the folder needs the tokenizer.json that the model was trained with",
        E::TooFewTokens { .. } => "give a longer text",
        E::VocabularyMismatch { .. } => "compare models that share a tokenizer",
        _ => return None,
    };
    Some(text.to_owned())
}

fn io_hint(error: &io::Error) -> Option<String> {
    let text = match error.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
        io::ErrorKind::StorageFull => {
            "free some space or choose another disk; an interrupted compression can be continued"
        }
        _ => return None,
    };
    Some(text.to_owned())
}
