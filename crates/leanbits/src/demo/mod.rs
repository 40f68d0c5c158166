//! The main job on a small model that is part of the program.

mod report;

pub use report::{DemoReference, DemoReport, DemoRow};

use crate::encode::encode;
use crate::models::eval::{Recording, WindowOptions, Windows};
use crate::models::{Apply, Config, Decoder, Error as ModelError, Text, WeightSource};
use crate::{Error, Progress};
use quant_core::metrics::ErrorStats;
use quant_core::{Footprint, Format, Linear};
use quant_io::FileBytes;
use quant_io::safetensors::SafetensorsFile;
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const CONFIG: &str = include_str!("../../../../models/tiny-llama/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../../../models/tiny-llama/model.safetensors");
const TEXT: &[u8] = include_bytes!("../../../../models/heldout.txt");
/// What errors call the embedded model.
const ORIGIN: &str = "the embedded model";
const HEAD: &str = "lm_head";

/// What the demo tries unless it is told otherwise.
const FORMATS: [&str; 20] = [
    "int8",
    "int6-g128",
    "int4-g32",
    "int4-g32-asym",
    "int4-g128",
    "int4-g128-asym",
    "int3-g32-asym",
    "int3-g128-asym",
    "int2-g32-asym",
    "fp8-e4m3",
    "mxint8",
    "mxfp8-e4m3",
    "mxfp6-e2m3",
    "mxfp4",
    "nvfp4",
    "nvint4",
    "nf4",
    "sefp7",
    "bfp4",
    "ternary-row",
];

/// What to try, and on how much text.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoOptions {
    /// The formats.
    pub formats: Vec<Format>,
    /// Bytes of held-out text to predict, at most; the text has 82,760.
    pub tokens: usize,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { formats: FORMATS.iter().filter_map(|name| name.parse().ok()).collect(), tokens: 8192 }
    }
}

/// Quantizes all linears of the embedded model to each format and measures what that costs.
///
/// The model is a byte-level Llama of 3.5 million parameters, trained for this project on Wikipedia text.
///
/// # Errors
///
/// [`Error::Tensor`] for a format that a weight cannot be stored in, [`Error::Model`].
pub fn demo(options: &DemoOptions, progress: &mut dyn Progress) -> Result<DemoReport, Error> {
    let start = Instant::now();
    let source = Embedded::open()?;
    let (parameters, source_bytes) = source.size();
    let config: serde_json::Value = serde_json::from_str(CONFIG)
        .map_err(|error| Error::Config { path: ORIGIN.into(), reason: error.to_string() })?;
    let config = Config::from_json(&config, Path::new(ORIGIN))?;
    let context = config.max_positions.min(512);
    let decoder = Decoder::from_source(config, &source, Apply::Decoded)?;
    let windows = Windows::of_text(
        &Text::Bytes.encode(TEXT)?,
        WindowOptions { max_tokens: Some(options.tokens), ..WindowOptions::new(context) },
    )?;
    let tokens = windows.scored();
    progress.begin("measuring", ((options.formats.len() + 1) * tokens) as u64);
    let reference = Recording::new(&decoder, windows, &mut |_| {})?;
    progress.advance(tokens as u64, "reference");
    let mut rows = Vec::with_capacity(options.formats.len());
    let mut quantized_parameters = 0;
    for &format in &options.formats {
        let (model, footprint, errors) = quantize_linears(&decoder, format)?;
        let found = reference.compare(&model, &mut |_| {})?;
        quantized_parameters = footprint.elements;
        rows.push(DemoRow {
            format: format.to_string(),
            // What is not quantized stays in the two bytes it has.
            bytes: source_bytes - 2 * footprint.elements + footprint.total_bytes(),
            bits_per_weight: footprint.bits_per_element(),
            sqnr_db: errors.sqnr_db(),
            perplexity: found.model.perplexity(),
            kl: found.kl,
            top1: found.top1,
        });
        progress.advance(tokens as u64, &format.to_string());
    }
    progress.end();
    rows.sort_by(|a, b| a.bytes.cmp(&b.bytes).then_with(|| a.format.cmp(&b.format)));
    Ok(DemoReport {
        model: "tiny-llama: a byte-level Llama, trained on Wikipedia text, stored in bf16".to_owned(),
        parameters,
        quantized_parameters,
        quantized: "all linears of all layers".to_owned(),
        tokens,
        context,
        reference: DemoReference { perplexity: reference.score().perplexity(), bytes: source_bytes },
        rows,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A copy of the model with every linear but the head in this format.
fn quantize_linears(decoder: &Decoder, format: Format) -> Result<(Decoder, Footprint, ErrorStats), Error> {
    let slots: Vec<_> = decoder.slots().filter(|slot| slot.name() != HEAD).collect();
    let encoded: Vec<_> = slots
        .par_iter()
        .map(|slot| encode(Path::new(ORIGIN), slot.name(), &slot.weight()?, &slot.shape(), format, None))
        .collect::<Result<_, Error>>()?;
    let names: Vec<String> = slots.iter().map(|slot| slot.name().to_owned()).collect();
    let mut model = decoder.clone();
    let (mut footprint, mut errors) = (Footprint::default(), ErrorStats::default());
    for (name, (packed, stats)) in names.iter().zip(encoded) {
        footprint = footprint + packed.footprint();
        errors.merge(&stats);
        let linear: Arc<dyn Linear> = Arc::new(packed);
        model.slot_mut(name)?.set_linear(linear, Apply::Decoded)?;
    }
    Ok((model, footprint, errors))
}

/// The embedded weights.
struct Embedded(SafetensorsFile);

impl Embedded {
    fn open() -> Result<Self, Error> {
        Ok(Self(SafetensorsFile::from_bytes(FileBytes::owned(ORIGIN, WEIGHTS.to_vec()))?))
    }

    /// Elements and bytes of all tensors.
    fn size(&self) -> (u64, u64) {
        self.0.tensors().fold((0, 0), |(n, bytes), t| (n + t.elements() as u64, bytes + t.bytes.len() as u64))
    }
}

impl WeightSource for Embedded {
    fn origin(&self) -> String {
        ORIGIN.to_owned()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|tensor| tensor.shape.to_vec())
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        Ok(self.0.tensor(name)?.to_f32()?)
    }

    fn linear(&self, _name: &str) -> Result<Option<Arc<dyn Linear>>, ModelError> {
        Ok(None)
    }
}
