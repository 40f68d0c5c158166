//! What key-value caches cost: bytes, predictions, attention, speed.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the call, from options to report |
//! | `caches.rs` | from a method's name to caches of all layers, and a model that reads through them |
//! | `slot.rs` | a quantized cache in a decoder's slot, and a meter of what it does to attention |
//! | `calibrate.rs` | statistics of keys and values over a text |
//! | `train.rs` | CSKV's maps, trained for the format of their latents |
//! | `budget.rs` | PM-KVQ: sensitivities, who gets which width, when layers shrink |
//! | `measure.rs` | bytes and speed |
//! | `stored.rs` | the cache that a compressed folder names, and its parameters |
//! | `report.rs` | table, JSON, picture |

mod budget;
mod caches;
mod calibrate;
mod measure;
mod report;
mod slot;
mod stored;
mod train;

pub use budget::{KvLayerSchedule, KvShrink};
pub(crate) use caches::{Cached, Caches};
pub(crate) use calibrate::of_layer;
pub use report::{KvBytes, KvReference, KvReport, KvRow};
pub(crate) use stored::{KV_CACHE, Stored, check, store};

use crate::compress::Windows as CalibrationWindows;
use crate::evaluate::{DEFAULT_CONTEXT, Loaded};
use crate::models::eval::{Predictor, WindowOptions, Windows, compare};
use crate::models::{Config, Text};
use crate::recipe::{Calibration, KeyPlace, KvCacheChoice};
use crate::{Error, Progress};
use kv_cache_quant::{Factors, KvMethod};
use measure::{Baseline, Measured, Sample};
use slot::Meter;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct KvOptions {
    /// Methods; the usual ones if there are none.
    pub codecs: Vec<KvMethod>,
    /// How keys are kept.
    pub keys: KeyPlace,
    /// First tokens in full precision; each method's own if `None`.
    pub sinks: Option<usize>,
    /// Newest tokens in full precision; each method's own if `None`.
    pub window: Option<usize>,
    /// How attention rounds queries and weights where it multiplies with integer codes.
    pub factors: Factors,
    /// Bytes of the caches of all layers at `context` tokens: PM-KVQ with this budget is measured too.
    pub budget: Option<u64>,
    /// A text to calibrate methods on that need it.
    pub calibration: Option<PathBuf>,
    /// Most tokens of it.
    pub calibration_tokens: usize,
    /// Tokens of a window; what the model was trained for, at most [`DEFAULT_CONTEXT`], if `None`.
    pub context: Option<usize>,
    /// Most tokens to predict; the whole text if `None`.
    pub tokens: Option<usize>,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            codecs: Vec::new(),
            keys: KeyPlace::AfterRope,
            sinks: None,
            window: None,
            factors: Factors::default(),
            budget: None,
            calibration: None,
            calibration_tokens: 16384,
            context: None,
            tokens: Some(4096),
        }
    }
}

/// Tokens of a calibration window.
const CALIBRATION_WINDOW: usize = 512;

/// The methods that are compared when none is named: at 8, 4 and 2 bits, and those that need calibration where there is
/// a text for it.
#[must_use]
pub fn usual_codecs(calibrated: bool) -> Vec<KvMethod> {
    const PLAIN: [&str; 8] =
        ["f16", "int8", "int4-min", "rotated:int4-min", "kivi:4", "int2-g32-min", "rotated:int2-g32-min", "kivi:2"];
    const CALIBRATED: [&str; 6] = ["centred:int4-min", "smooth:int4-min", "2d:4", "2d:2", "skvq:2", "skvq:2/ternary"];
    let names = PLAIN.iter().chain(CALIBRATED.iter().filter(|_| calibrated));
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Measures key-value caches on a model and a text.
///
/// Every token is read through the cache, as in decoding: it attends to the quantized past and to itself unquantized,
/// then it is quantized. Predictions are compared with those of the same model and a full-precision cache, outputs
/// of attention, at every fourth token, with attention over exact rows. Bytes and speed are measured on a cache of the
/// layer in the middle that is filled with its rows.
///
/// # Errors
///
/// [`Error::Io`] and [`Error::Model`] for folders that cannot be loaded, [`Error::NoKvCache`] for recurrent models,
/// [`Error::File`] for texts, [`Error::NeedsCalibration`] and [`Error::ShortCalibration`], [`Error::KvCache`] for what a
/// method cannot do with this model.
pub fn kv(
    model: impl AsRef<Path>,
    text: impl AsRef<Path>,
    options: &KvOptions,
    progress: &mut dyn Progress,
) -> Result<KvReport, Error> {
    let (model, text) = (model.as_ref(), text.as_ref());
    let start = Instant::now();
    let bytes = std::fs::read(text).map_err(|source| Error::file(text, "read", source))?;
    let loaded = Loaded::open(model)?;
    let config = loaded.decoder.config();
    caches::check_model(config, model)?;
    let choices = choices(options, loaded.kv_cache.as_ref())?;
    let context = options.context.unwrap_or(config.max_positions.min(DEFAULT_CONTEXT));
    let reader = Text::open(model, config)?;
    let cut = WindowOptions { max_tokens: options.tokens, ..WindowOptions::new(context) };
    let windows = Windows::of_text(&reader.encode(&bytes)?, cut)?;
    let first: &[u32] = windows.list().first().map(|window| window.tokens.as_slice()).unwrap_or_default();
    let sample = Sample::new(&loaded.decoder, first)?;

    let calibration = match &options.calibration {
        Some(text) if choices.iter().any(KvCacheChoice::needs_calibration) => {
            Some(calibration_windows(model, config, text, options.calibration_tokens)?)
        }
        _ => None,
    };
    let mut seen = loaded.kv_cache.as_ref().and_then(|stored| stored.statistics.clone());
    if let Some(windows) =
        calibration.as_ref().filter(|_| choices.iter().any(|choice| choice.method.needs_statistics()))
    {
        progress.begin("calibrating", windows.report.tokens as u64);
        let rows = choices.iter().map(|choice| calibrate::rows_needed(&choice.method)).max().unwrap_or(0);
        let told = |tokens| progress.advance(tokens as u64, "");
        seen = Some(calibrate::run(&loaded.decoder, &windows.texts, rows, told)?);
        progress.end();
    }
    let seen = seen.as_deref();
    let (mut all, mut schedule) = (Vec::new(), None);
    let positions = context.max(measure::MARKS[2]);
    for choice in &choices {
        let budgets = match (choice.budget, &calibration) {
            (Some(total), Some(windows)) => {
                let tokens = choice.tokens.unwrap_or(context);
                budget::check(choice, config, total, tokens)?;
                let lost = budget::sensitivities(&loaded.decoder, &windows.texts, progress)?;
                Some(budget::distribute(choice, config, &lost, total, tokens)?)
            }
            (Some(_), None) => loaded.kv_cache.as_ref().and_then(|stored| stored.budgets.clone()),
            _ => None,
        };
        let learned = loaded.kv_cache.as_ref().and_then(|stored| stored.learned(&choice.method, choice.keys));
        let seen = learned.or(seen);
        let trained = match seen.filter(|seen| train::is_needed(choice, seen)) {
            Some(seen) => Some(train::train(choice, config, seen, progress)?),
            None => None,
        };
        let seen = trained.as_deref().or(seen);
        let mut caches = Caches::new(choice, config, positions, seen, budgets.as_deref())?;
        caches.factors = options.factors;
        if let Some(budgets) = &budgets {
            caches.name = format!("{} in {}", choice.method, crate::table::bytes(budgets.iter().sum()));
            schedule = Some(budget::schedule(&caches.layers, budgets, &sample, choice.tokens.unwrap_or(context))?);
        }
        all.push(caches);
    }

    let measured = measure_all(&all, &sample, config, progress)?;
    let meters: Vec<_> = all.iter().map(|_| Meter::new(config.layers, config.heads)).collect();
    let total = windows.list().iter().map(|window| window.tokens.len() as u64 - 1).sum::<u64>() * all.len() as u64;
    progress.begin("reading", total);
    let found = {
        let cell = RefCell::new(&mut *progress);
        let told = |tokens| cell.borrow_mut().advance(tokens, "");
        let through: Vec<Cached<'_>> = all
            .iter()
            .zip(&meters)
            .map(|(caches, meter)| Cached {
                decoder: &loaded.decoder,
                caches,
                meter: Some(meter.clone()),
                told: Some(&told),
            })
            .collect();
        let predictors: Vec<&dyn Predictor> = through.iter().map(|cached| cached as &dyn Predictor).collect();
        compare(&loaded.decoder, &predictors, &windows, &mut |_| {})?
    };
    progress.end();
    let rows = all.iter().zip(&meters).zip(measured.iter().zip(&found)).map(|((caches, meter), (measured, found))| {
        let errors = meter.errors();
        #[expect(clippy::cast_precision_loss, reason = "a number of heads")]
        let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
        let [at_1k, at_8k, at_32k] = measured.bytes_per_token;
        KvRow {
            codec: caches.name.clone(),
            bits_nominal: measured.bits,
            bytes_per_token: KvBytes { at_1k, at_8k, at_32k },
            perplexity: found.model.perplexity(),
            kl: found.kl,
            attn_err_mean: mean,
            attn_err_worst_head: errors.into_iter().fold(0.0, f64::max),
            attend_speedup_vs_f16: measured.attend_speedup,
            append_gb_s: measured.append_gb_s,
        }
    });
    let rows: Vec<KvRow> = rows.collect();
    let reference = found.first().map_or(f64::NAN, |found| found.reference.perplexity());
    Ok(KvReport {
        reference: KvReference { perplexity: reference },
        rows,
        schedule,
        context,
        tokens: windows.scored(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The caches to be measured.
fn choices(options: &KvOptions, stored: Option<&Stored>) -> Result<Vec<KvCacheChoice>, Error> {
    let with = |choice: KvCacheChoice| KvCacheChoice {
        sinks: options.sinks.or(choice.sinks),
        window: options.window.or(choice.window),
        ..choice
    };
    let new = |method: &KvMethod| with(KvCacheChoice { keys: options.keys, ..KvCacheChoice::new(*method) });
    let mut choices: Vec<KvCacheChoice> = options.codecs.iter().map(new).collect();
    if options.codecs.is_empty() && options.budget.is_none() {
        choices.extend(stored.map(|stored| with(stored.choice.clone())));
        choices.extend(usual_codecs(options.calibration.is_some()).iter().map(new));
    }
    if options.budget.is_some() {
        choices.push(KvCacheChoice { budget: options.budget, keys: KeyPlace::AfterRope, ..new(&KvMethod::PmKvq) });
    }
    for choice in &choices {
        choice.validate().map_err(|source| Error::Recipe { file: "the command line".into(), source })?;
        let known = stored.is_some_and(|stored| match choice.budget {
            None => stored.statistics.is_some() && stored.choice.keys == choice.keys,
            Some(_) => stored.choice.budget == choice.budget,
        });
        if choice.needs_calibration() && options.calibration.is_none() && !known {
            return Err(Error::NeedsCalibration { what: format!("the cache {}", choice.method) });
        }
    }
    Ok(choices)
}

/// Windows of the calibration text.
fn calibration_windows(
    model: &Path,
    config: &Config,
    text: &Path,
    most_tokens: usize,
) -> Result<CalibrationWindows, Error> {
    let tokens = CALIBRATION_WINDOW.min(most_tokens).max(2);
    let wanted = Calibration { windows: (most_tokens / tokens).max(1), tokens, ..Calibration::default() };
    CalibrationWindows::open(model, config, text, &wanted)
}

fn measure_all(
    all: &[Caches],
    sample: &Sample,
    config: &Config,
    progress: &mut dyn Progress,
) -> Result<Vec<Measured>, Error> {
    let baseline = Baseline::new(config, sample)?;
    progress.begin("timing", all.len() as u64);
    let measure = |caches: &Caches| {
        let measured = measure::measure(caches, sample, &baseline);
        progress.advance(1, &caches.name);
        measured
    };
    let measured = all.iter().map(measure).collect();
    progress.end();
    measured
}
