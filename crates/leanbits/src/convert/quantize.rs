//! Tensors of a file or folder to one format, in one safetensors file.

use super::{check_output, check_patterns};
use crate::compress::{Energy, Outcome};
use crate::encode::encode;
use crate::plan::{Plan, PlannedTensor, Treatment, decide, is_quantized};
use crate::recipe::{Choice, Decision, Reason};
use crate::report::{TensorReport, tensor_table};
use crate::storage::{Compressed, Section, StorageLayout};
use crate::usage::peak_rss_bytes;
use crate::{Error, NamePattern, Progress, table};
use quant_core::Format;
use quant_core::metrics::ErrorStats;
use quant_io::safetensors::SafetensorsWriter;
use quant_io::{Checkpoint, Entry};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// What to quantize, and to what.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeOptions {
    /// The format.
    pub format: Format,
    /// Exactly the float tensors that match one of these; every float tensor with two axes or more when empty.
    pub only: Vec<NamePattern>,
    /// Tensors that stay as they are whatever `only` says.
    pub skip: Vec<NamePattern>,
    /// Whether an output that exists is replaced.
    pub overwrite: bool,
}

impl QuantizeOptions {
    /// Every float tensor with two axes or more to this format, into a new file.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, only: Vec::new(), skip: Vec::new(), overwrite: false }
    }

    fn selects(&self, entry: &Entry) -> Result<(), Reason> {
        let matches = |patterns: &[NamePattern]| patterns.iter().any(|pattern| pattern.matches(&entry.name));
        match () {
            () if matches(&self.skip) => Err(Reason::Skipped),
            () if !self.only.is_empty() && !matches(&self.only) => Err(Reason::NotSelected),
            () if self.only.is_empty() && entry.shape.len() < 2 && !is_quantized(&entry.stored) => Err(Reason::FewAxes),
            () => Ok(()),
        }
    }
}

/// What [`quantize`] did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// Bytes of all tensors as stored.
    pub bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of all tensors before.
    pub source_bytes: u64,
    /// Bits stored for each quantized element.
    pub bits_per_weight: f64,
    /// Signal to quantization noise over all quantized tensors, in dB; `None` when nothing was lost.
    pub sqnr_db: Option<f64>,
    /// Seconds it took.
    pub seconds: f64,
    /// Largest resident memory of the process; `None` where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// Every tensor.
    pub tensors: Vec<TensorReport>,
}

/// Quantizes tensors of a file or folder into one safetensors file, one tensor at a time.
///
/// # Errors
///
/// [`Error::AlreadyQuantized`] for a selected tensor that is not stored as floats, [`Error::NothingSelected`],
/// [`Error::NoMatch`] for a pattern that matches nothing, [`Error::Tensor`] for values that are not finite,
/// [`Error::Exists`], [`Error::Io`]. Nothing is left behind.
pub fn quantize(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &QuantizeOptions,
    progress: &mut dyn Progress,
) -> Result<QuantizeReport, Error> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let start = Instant::now();
    check_output(output, options.overwrite)?;
    let checkpoint = Checkpoint::open(input)?;
    check_patterns(&checkpoint, &options.only)?;
    check_patterns(&checkpoint, &options.skip)?;
    let quantized = |entry: &&Entry| is_quantized(&entry.stored) && options.selects(entry).is_ok();
    if let Some(entry) = checkpoint.entries().iter().find(quantized) {
        let stored = crate::plan::stored_name(&entry.stored);
        return Err(Error::AlreadyQuantized { file: input.to_owned(), tensor: entry.name.clone(), stored });
    }
    let treatment = |entry: &Entry| match options.selects(entry) {
        Ok(()) => {
            match decide(entry, |_| Decision { choice: Choice::Quantize(options.format), reason: Reason::Default }) {
                decision if decision.choice == Choice::Keep => Treatment::kept(decision),
                decision => Treatment::rounded(decision, options.format),
            }
        }
        Err(reason) => Treatment::kept(decide(entry, |_| Decision { choice: Choice::Keep, reason })),
    };
    let treatments = checkpoint.entries().iter().map(treatment).collect();
    let plan = Plan::new(&checkpoint, checkpoint.entries(), StorageLayout::Leanbits, u64::MAX, treatments)?;
    if plan.compressed().next().is_none() {
        return Err(Error::NothingSelected { file: input.to_owned(), tensors: plan.tensors.len() });
    }
    progress.begin("quantizing", plan.sum(|tensor| tensor.source_bytes));
    let mut tensors = Vec::with_capacity(plan.tensors.len());
    let mut all = ErrorStats::default();
    for (_, file) in plan.shards.files() {
        let mut writer = SafetensorsWriter::create(output, file.clone())?;
        for tensor in &plan.tensors {
            let errors = write(&checkpoint, tensor, &mut writer)?;
            if let Some(errors) = &errors {
                all.merge(errors);
            }
            let outcome = Outcome { weights: errors.as_ref().map(Energy::of), ..Outcome::default() };
            tensors.push(TensorReport::new(tensor, &outcome));
            progress.advance(tensor.source_bytes, &tensor.name);
        }
        writer.finish()?;
    }
    progress.end();
    Ok(QuantizeReport {
        bytes: plan.sum(|tensor| tensor.bytes),
        file_bytes: plan.file_bytes(),
        source_bytes: plan.sum(|tensor| tensor.source_bytes),
        bits_per_weight: plan.bits_per_weight(),
        sqnr_db: Some(all.sqnr_db()).filter(|sqnr| sqnr.is_finite()),
        seconds: start.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        tensors,
    })
}

fn write(
    checkpoint: &Checkpoint,
    tensor: &PlannedTensor,
    writer: &mut SafetensorsWriter,
) -> Result<Option<ErrorStats>, Error> {
    let (sections, errors) = match tensor.packed_format() {
        None => (Section::kept(checkpoint, &tensor.name)?, None),
        Some(format) => {
            let values = checkpoint.read_f32(&tensor.name)?;
            let (packed, errors) = encode(checkpoint.path(), &tensor.name, &values, &tensor.shape, format, None)?;
            let packed = Compressed::Packed(packed);
            (Section::compressed(&tensor.name, &packed, StorageLayout::Leanbits)?, Some(errors))
        }
    };
    for section in &sections {
        writer.write(&section.name, &section.bytes)?;
    }
    drop(sections);
    checkpoint.release_pages();
    Ok(errors)
}

impl QuantizeReport {
    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = tensor_table(&self.tensors).to_text();
        out.push_str(&format!(
            "\n{} instead of {}; {:.3} bits per quantized weight",
            table::bytes(self.bytes),
            table::bytes(self.source_bytes),
            self.bits_per_weight
        ));
        if let Some(sqnr) = self.sqnr_db {
            out.push_str(&format!(", SQNR {sqnr:.2} dB"));
        }
        out.push_str(&format!("; took {:.1} s\n", self.seconds));
        out
    }
}
