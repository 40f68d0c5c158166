//! How well a model predicts a text, original or compressed.

use crate::compress::activations;
use crate::kv::{Cached, Caches, Stored};
use crate::models::eval::{Predictor, Score, WindowOptions, Windows, compare, perplexity};
use crate::models::{Apply, Config, Decoder, Slot, Text};
use crate::plan::is_quantized;
use crate::skip::{self, SkipOptions, SkipReport, Skipping};
use crate::{Error, Progress, Weights};
use quant_core::Format;
use quant_io::Checkpoint;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Context of models that were trained for a longer one.
pub const DEFAULT_CONTEXT: usize = 2048;

/// How to measure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalOptions {
    /// Most tokens to predict; the whole text if `None`.
    pub tokens: Option<usize>,
    /// Tokens of a window; what the model was trained for, at most [`DEFAULT_CONTEXT`], if `None`.
    pub context: Option<usize>,
    /// A model to compare the predictions with.
    pub against: Option<PathBuf>,
    /// Where the text is cut into documents, each with a window of its own; blanks around documents are cut off.
    pub split: Option<String>,
    /// Whether the begin-of-sequence token stands before every window.
    pub bos: bool,
    /// Choices of experts that are left out.
    pub skip: Option<SkipOptions>,
}

/// What [`evaluate`] measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalReport {
    /// `exp` of the mean negative log likelihood of a token.
    pub perplexity: f64,
    /// Bits for each byte of text: comparable between models with different tokenizers.
    pub bits_per_byte: f64,
    /// Tokens predicted.
    pub tokens: usize,
    /// Bytes of text these tokens stand for.
    pub text_bytes: u64,
    /// Tokens of a window.
    pub context: usize,
    /// Bytes of the model's tensors as stored.
    pub model_bytes: u64,
    /// The quantized key-value cache that the folder names and every token was read through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<String>,
    /// What was left out of the choices of experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkipReport>,
    /// What the comparison found.
    #[serde(flatten)]
    pub against: Option<AgainstReport>,
    /// Seconds it took.
    pub seconds: f64,
}

/// How a model differs from another one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AgainstReport {
    /// Mean KL divergence of the model's predictions from those of the other one, in nats.
    pub kl: f64,
    /// The 99.9th percentile of the divergence.
    pub kl_p999: f64,
    /// The largest divergence.
    pub kl_max: f64,
    /// Share of tokens for which both find the same one most likely.
    pub top1: f64,
    /// Perplexity of the other model.
    pub against_perplexity: f64,
    /// Bytes of the other model's tensors as stored.
    pub against_bytes: u64,
}

/// Measures a model folder on a text.
///
/// A folder that names a key-value cache is read through it, token by token; others are read a window at once. With
/// [`EvalOptions::skip`] experts are left out of the model, not of the one that it is compared with.
///
/// The text is read as it is. Without [`EvalOptions::split`] it is cut into windows that do not overlap, and every token of
/// a window but the first is predicted; a remainder that fills no window is left out.
///
/// # Errors
///
/// [`Error::Io`] and [`Error::Model`] for folders that cannot be loaded, [`Error::File`] for the text,
/// [`Error::NoBos`] when `bos` is asked of a model that has no such token, [`Error::Experts`] when experts are to be skipped
/// of a model that has none or that reads through a cache, and for a share outside (0, 1].
pub fn evaluate(
    model: impl AsRef<Path>,
    text: impl AsRef<Path>,
    options: &EvalOptions,
    progress: &mut dyn Progress,
) -> Result<EvalReport, Error> {
    let (model, text) = (model.as_ref(), text.as_ref());
    let start = Instant::now();
    let bytes = std::fs::read(text).map_err(|source| Error::file(text, "read", source))?;
    let loaded = Loaded::open(model)?;
    let config = loaded.decoder.config();
    let context = options.context.unwrap_or(config.max_positions.min(DEFAULT_CONTEXT));
    let bos = match options.bos {
        true => Some(config.bos.ok_or_else(|| Error::NoBos { path: model.to_owned() })?),
        false => None,
    };
    let window = WindowOptions { context, stride: None, bos, max_tokens: options.tokens };
    let reader = Text::open(model, config)?;
    let windows = cut(&reader, &bytes, options.split.as_deref(), window)?;
    let total = windows.scored() as u64;
    let caches = loaded.caches(context)?;
    let through = match &options.skip {
        None => Reader::new(&loaded.decoder, caches.as_ref()),
        Some(_) if caches.is_some() => {
            let (name, value) = ("skipping experts", "a folder that names a key-value cache".to_owned());
            let source = moe_quant::Error::Setting { name, value, expected: "a model that reads windows at once" };
            return Err(Error::Experts { file: model.to_owned(), source: Box::new(source) });
        }
        Some(skip) => {
            Reader::Skipping(Skipping::by(&loaded.decoder, skip::rule(&loaded.decoder, model, skip, progress)?))
        }
    };
    let mut seen = 0;
    let (score, against) = match &options.against {
        None => {
            progress.begin("evaluating", total);
            let mut step = |now: crate::models::eval::Progress| {
                progress.advance((now.scored - seen) as u64, &format!("perplexity {:.4}", now.perplexity));
                seen = now.scored;
            };
            (perplexity(through.model(), &windows, &mut step)?, None)
        }
        Some(other) => {
            let reference = Loaded::open(other)?;
            progress.begin("comparing", total);
            let mut step = |now: crate::models::eval::Progress| {
                progress.advance((now.scored - seen) as u64, &format!("perplexity {:.4}", now.perplexity));
                seen = now.scored;
            };
            let reference_caches = reference.caches(context)?;
            let expected = Reader::new(&reference.decoder, reference_caches.as_ref());
            let found = compare(expected.model(), &[through.model()], &windows, &mut step)?;
            let found = found
                .first()
                .ok_or_else(|| Error::Config { path: model.to_owned(), reason: "nothing was compared".to_owned() })?;
            let report = AgainstReport {
                kl: found.kl,
                kl_p999: found.kl_p999,
                kl_max: found.kl_max,
                top1: found.top1,
                against_perplexity: found.reference.perplexity(),
                against_bytes: reference.bytes,
            };
            (found.model, Some(report))
        }
    };
    progress.end();
    let kv_cache = caches.as_ref().map(|caches| caches.name.clone());
    let skipped = match (&through, &options.skip) {
        (Reader::Skipping(through), Some(options)) => Some(through.report(model, options)?),
        _ => None,
    };
    Ok(EvalReport { kv_cache, skipped, ..report(score, context, loaded.bytes, against, start) })
}

/// A model as it reads: at once, or through the caches of its folder.
enum Reader<'a> {
    Plain(&'a Decoder),
    Cached(Cached<'a>),
    Skipping(Skipping<'a>),
}

impl<'a> Reader<'a> {
    fn new(decoder: &'a Decoder, caches: Option<&'a Caches>) -> Self {
        match caches {
            None => Self::Plain(decoder),
            Some(caches) => Self::Cached(Cached { decoder, caches, meter: None, told: None }),
        }
    }

    fn model(&self) -> &dyn Predictor {
        match self {
            Self::Plain(decoder) => *decoder,
            Self::Cached(cached) => cached,
            Self::Skipping(skipping) => skipping,
        }
    }
}

fn report(score: Score, context: usize, bytes: u64, against: Option<AgainstReport>, start: Instant) -> EvalReport {
    EvalReport {
        perplexity: score.perplexity(),
        bits_per_byte: score.bits_per_byte(),
        tokens: score.tokens,
        text_bytes: score.bytes,
        context,
        model_bytes: bytes,
        kv_cache: None,
        skipped: None,
        against,
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// A decoder and the bytes its folder stores.
pub(crate) struct Loaded {
    pub(crate) decoder: Decoder,
    bytes: u64,
    /// The cache that the folder names.
    pub(crate) kv_cache: Option<Stored>,
}

/// Makes linears whose weights are quantized round their inputs.
pub(crate) fn round_inputs<'a>(
    slots: impl IntoIterator<Item = &'a mut Slot>,
    checkpoint: &Checkpoint,
    format: Option<Format>,
) -> Result<(), Error> {
    for slot in slots {
        if checkpoint.entry(&slot.origin().tensor).is_some_and(|entry| is_quantized(&entry.stored)) {
            slot.set_input_format(format)?;
        }
    }
    Ok(())
}

impl Loaded {
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let weights = Weights::open(folder)?;
        let checkpoint = weights.checkpoint();
        let config = Config::from_folder(folder)?;
        let bytes = checkpoint.entries().iter().map(|entry| entry.bytes).sum();
        let mut decoder = Decoder::from_source(config, &weights, Apply::Decoded)?;
        if let Some(format) = activations(folder, checkpoint.config())? {
            for layer in decoder.layers_mut() {
                round_inputs(layer.slots_mut(), checkpoint, Some(format))?;
            }
            round_inputs([decoder.head_mut().slot_mut()], checkpoint, Some(format))?;
        }
        let kv_cache = Stored::open(folder, checkpoint.config(), decoder.config())?;
        Ok(Self { decoder, bytes, kv_cache })
    }

    /// The caches that the folder names, for windows of so many tokens.
    fn caches(&self, context: usize) -> Result<Option<Caches>, Error> {
        self.kv_cache.as_ref().map(|stored| stored.caches(self.decoder.config(), context)).transpose()
    }
}

pub(crate) fn cut(reader: &Text, bytes: &[u8], split: Option<&str>, options: WindowOptions) -> Result<Windows, Error> {
    let Some(separator) = split else { return Ok(Windows::of_text(&reader.encode(bytes)?, options)?) };
    let documents: Result<Vec<_>, _> = pieces(bytes, separator.as_bytes())
        .into_iter()
        .map(<[u8]>::trim_ascii)
        .filter(|document| !document.is_empty())
        .map(|document| reader.encode(document))
        .collect();
    Ok(Windows::of_documents(&documents?, options)?)
}

/// The pieces between separators.
fn pieces<'a>(mut text: &'a [u8], separator: &[u8]) -> Vec<&'a [u8]> {
    let mut out = Vec::new();
    if !separator.is_empty() {
        while let Some(at) = text.windows(separator.len()).position(|window| window == separator) {
            out.push(&text[..at]);
            text = &text[at + separator.len()..];
        }
    }
    out.push(text);
    out
}

impl EvalReport {
    /// The figures for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = format!(
            "perplexity     {:.4}\nbits per byte  {:.4}\npredicted      {} tokens ({} bytes) in windows of {}\nmodel          {}\n",
            self.perplexity,
            self.bits_per_byte,
            self.tokens,
            self.text_bytes,
            self.context,
            crate::table::bytes(self.model_bytes),
        );
        if let Some(kv_cache) = &self.kv_cache {
            out.push_str(&format!("cache          {kv_cache}, read token by token\n"));
        }
        if let Some(skipped) = &self.skipped {
            out.push_str(&format!(
                "skipped        {:.2} % of the choices of experts; {:.2} % of tokens without any in a layer\n",
                100.0 * skipped.share,
                100.0 * skipped.empty,
            ));
        }
        if let Some(against) = &self.against {
            out.push_str(&format!(
                "against        perplexity {:.4}, {}\nKL divergence  {:.6} nats (99.9%: {:.4}, largest: {:.4})\ntop-1 equal    {:.2} %\n",
                against.against_perplexity,
                crate::table::bytes(against.against_bytes),
                against.kl,
                against.kl_p999,
                against.kl_max,
                100.0 * against.top1,
            ));
        }
        out.push_str(&format!("took           {:.1} s\n", self.seconds));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_every_separator() {
        let cut: Vec<&[u8]> = pieces(b"one<|>two<|><|>three", b"<|>");
        assert_eq!(cut, [&b"one"[..], b"two", b"", b"three"], "empty pieces are kept here");
        assert_eq!(pieces(b"one", b""), [&b"one"[..]], "an empty separator never cuts");
    }
}
