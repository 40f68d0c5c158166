//! Leaving out experts while a model is evaluated (MoDES, arXiv 2511.15690).
//!
//! 1. Each mixture layer is switched off by itself, and how far the predictions of a calibration text move is its importance.
//! 2. The threshold is halved in until it leaves out just the share of choices that was asked for.
//! 3. The model is evaluated with the rule.

use crate::evaluate::cut;
use crate::models::eval::{Predictor, WindowOptions, Windows, compare};
use crate::models::{Choices, Decoder, Error as ModelFault, Hidden, Observer, Text};
use crate::{Error, Progress};
use moe_quant::{LayerImportance, Modality, SkipRule, SkipStats};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which choices of experts an evaluation leaves out.
#[derive(Clone, Debug, PartialEq)]
pub struct SkipOptions {
    /// Share of all choices to leave out, above 0 and at most 1.
    pub share: f64,
    /// Text that importance and threshold are found on.
    pub calibration: PathBuf,
    /// Most tokens of it.
    pub tokens: usize,
    /// What is looked at.
    pub by: SkipBy,
    /// Importance of layers that was measured before, in place of measuring it: a JSON list with a number for each layer, or
    /// what `leanbits eval --json` printed with experts left out.
    pub importance: Option<PathBuf>,
}

/// What a choice is judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SkipBy {
    /// The importance of its layer times its share of the token's gates (MoDES).
    #[default]
    Importance,
    /// Its share of the token's gates alone. A baseline.
    Gate,
}

/// What an evaluation left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SkipReport {
    /// What choices were judged by.
    pub by: SkipBy,
    /// Share of choices that was asked for.
    pub asked: f64,
    /// Share of choices that was left out.
    pub share: f64,
    /// Share of tokens and layers that lost all of their experts.
    pub empty: f64,
    /// The threshold.
    pub threshold: f64,
    /// Importance of each layer, 0 for those that are no mixtures; their sum is 1.
    pub importance: Vec<f64>,
}

/// Halvings of the threshold.
const HALVINGS: usize = 14;

/// Finds the rule that leaves out a share of the choices.
pub(crate) fn rule(
    decoder: &Decoder,
    model: &Path,
    options: &SkipOptions,
    progress: &mut dyn Progress,
) -> Result<SkipRule, Error> {
    let refused = |source| Error::Experts { file: model.to_owned(), source: Box::new(source) };
    let config = decoder.config();
    let Some(mixture) = &config.mixture else {
        return Err(refused(moe_quant::Error::Nothing { what: "mixtures of experts in the model" }));
    };
    let share = options.share;
    if !(share > 0.0 && share <= 1.0) {
        let (value, expected) = (share.to_string(), "above 0 and at most 1");
        return Err(refused(moe_quant::Error::Setting { name: "the share of skipped experts", value, expected }));
    }
    let text = &options.calibration;
    let bytes = std::fs::read(text).map_err(|source| Error::file(text, "read", source))?;
    let context = config.max_positions.min(crate::DEFAULT_CONTEXT);
    let window = WindowOptions { max_tokens: Some(options.tokens), ..WindowOptions::new(context) };
    let windows = cut(&Text::open(model, config)?, &bytes, None, window)?;
    progress.begin("measuring layers", (mixture.layers.len() + HALVINGS) as u64);
    let losses = match options.by {
        SkipBy::Gate => vec![1.0; mixture.layers.len()],
        SkipBy::Importance => match &options.importance {
            Some(file) => known(file, mixture.layers.len())?,
            None => measured(decoder, &mixture.layers, &windows, progress)?,
        },
    };
    let importance = LayerImportance::new(&losses, &vec![0.0; losses.len()]).map_err(refused)?;
    let most = (0..importance.layers()).filter_map(|layer| importance.of(layer, Modality::Text)).fold(0.0, f64::max);
    // No choice weighs more than its layer, and a threshold is one that is not reached.
    let (mut few, mut enough) = (0.0, most * 1.001);
    let at = |tau_text: f64| SkipRule { importance: importance.clone(), tau_text, tau_visual: 0.0 };
    for halving in 0..HALVINGS {
        let middle = 0.5 * (few + enough);
        let skipping = Skipping::new(decoder, Off::By(at(middle)));
        for window in windows.list() {
            skipping.hidden(&[&window.tokens])?;
        }
        let found = skipping.stats().map_err(refused)?.ratio();
        progress.advance(1, &format!("step {halving}: {:.2} % of choices", 100.0 * found));
        *(if found < share { &mut few } else { &mut enough }) = middle;
    }
    progress.end();
    Ok(at(enough))
}

/// The importance of each layer as a file has it.
fn known(file: &Path, layers: usize) -> Result<Vec<f64>, Error> {
    /// A list, or the report of an evaluation.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Saved {
        List(Vec<f64>),
        Report { skipped: Skipped },
    }
    #[derive(Deserialize)]
    struct Skipped {
        importance: Vec<f64>,
    }
    let bytes = std::fs::read(file).map_err(|source| Error::file(file, "read", source))?;
    let (Saved::List(found) | Saved::Report { skipped: Skipped { importance: found } }) =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { source })?;
    if found.len() == layers {
        return Ok(found);
    }
    let source = moe_quant::Error::Length { what: "importances of layers", expected: layers, found: found.len() };
    Err(Error::Experts { file: file.to_owned(), source: Box::new(source) })
}

/// What predictions lose when each mixture layer is switched off.
fn measured(
    decoder: &Decoder,
    layers: &[bool],
    windows: &Windows,
    progress: &mut dyn Progress,
) -> Result<Vec<f64>, Error> {
    let mut losses = Vec::with_capacity(layers.len());
    for (layer, is_mixture) in layers.iter().enumerate() {
        let mut loss = 0.0;
        if *is_mixture {
            let without = Skipping::new(decoder, Off::Layer(layer));
            let found = compare(decoder, &[&without], windows, &mut |_| {})?;
            loss = found.first().map_or(0.0, |found| found.kl);
        }
        progress.advance(1, &format!("layer {layer}"));
        losses.push(loss);
    }
    Ok(losses)
}

/// A model of which some choices of experts are left out.
pub(crate) struct Skipping<'a> {
    decoder: &'a Decoder,
    off: Off,
    seen: Mutex<Seen>,
}

/// What is left out.
enum Off {
    /// All experts of a layer.
    Layer(usize),
    By(SkipRule),
}

#[derive(Default)]
struct Seen {
    stats: SkipStats,
    tokens: u64,
    refused: Option<moe_quant::Error>,
}

impl<'a> Skipping<'a> {
    fn new(decoder: &'a Decoder, off: Off) -> Self {
        Self { decoder, off, seen: Mutex::default() }
    }

    pub(crate) fn by(decoder: &'a Decoder, rule: SkipRule) -> Self {
        Self::new(decoder, Off::By(rule))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> Result<SkipStats, moe_quant::Error> {
        let seen = self.seen();
        seen.refused.clone().map_or(Ok(seen.stats), Err)
    }

    /// What was left out so far.
    pub(crate) fn report(&self, model: &Path, options: &SkipOptions) -> Result<SkipReport, Error> {
        let refused = |source| Error::Experts { file: model.to_owned(), source: Box::new(source) };
        let stats = self.stats().map_err(refused)?;
        let (importance, threshold) = match &self.off {
            Off::Layer(_) => (Vec::new(), 0.0),
            Off::By(rule) => {
                let shares = (0..rule.importance.layers()).filter_map(|at| rule.importance.of(at, Modality::Text));
                (shares.collect(), rule.tau_text)
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "numbers of tokens")]
        let empty = stats.empty_tokens as f64 / self.seen().tokens.max(1) as f64;
        let (by, asked) = (options.by, options.share);
        Ok(SkipReport { by, asked, share: stats.ratio(), empty, threshold, importance })
    }
}

impl Predictor for Skipping<'_> {
    fn decoder(&self) -> &Decoder {
        self.decoder
    }

    fn hidden(&self, texts: &[&[u32]]) -> Result<Hidden, ModelFault> {
        Decoder::hidden(self.decoder, texts, Some(&mut Chooser(self)))
    }
}

/// Takes choices away.
struct Chooser<'a>(&'a Skipping<'a>);

impl Observer for Chooser<'_> {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}

    fn choices(&mut self, choices: &mut Choices<'_>) {
        match &self.0.off {
            Off::Layer(layer) if *layer == choices.layer => {
                choices.ids.fill(choices.experts);
                choices.gates.fill(0.0);
            }
            Off::Layer(_) => {}
            Off::By(rule) => {
                let tokens = vec![Modality::Text; choices.ids.len() / choices.top_k.max(1)];
                let applied = rule.apply(choices.layer, &tokens, choices.experts, choices.ids, choices.gates);
                let mut seen = self.0.seen();
                match applied {
                    Ok(stats) => {
                        (seen.stats, seen.tokens) = (seen.stats.plus(&stats), seen.tokens + tokens.len() as u64)
                    }
                    Err(source) => seen.refused = Some(source),
                }
            }
        }
    }
}
