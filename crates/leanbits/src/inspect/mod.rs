//! What a file or folder holds.

mod analysis;

pub use analysis::{Distribution, OUTLIER_SIGMAS, Suitable, TRIAL_ELEMENTS, Trial, suitable_formats};

use crate::convert::check_patterns;
use crate::plan::is_quantized;
use crate::storage::{read_f32, stored_form};
use crate::table::{self, Align, Table};
use crate::{Error, NamePattern, Progress};
use quant_io::{Checkpoint, CheckpointLayout, Entry, Stored};
use serde::Serialize;
use std::path::Path;

/// What to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InspectOptions {
    /// Only tensors that match one of these; all when empty.
    pub only: Vec<NamePattern>,
    /// Whether values are left unread.
    pub headers_only: bool,
}

/// One tensor of an [`InspectReport`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it is stored: a dtype, a format, or a ggml type.
    pub stored: String,
    /// Whether that is a quantized form.
    pub quantized: bool,
    /// Bytes it takes.
    pub bytes: u64,
    /// Bits stored for each element.
    pub bits: f64,
    /// What its values look like; absent when they were not read, or are no numbers.
    #[serde(flatten)]
    pub distribution: Option<Distribution>,
    /// Position of the first value that is NaN or infinite, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub non_finite: Option<usize>,
    /// Which formats suit it; only for float tensors with two axes or more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suitable: Vec<Suitable>,
}

/// What [`inspect`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InspectReport {
    /// The container: `safetensors`, `leanbits`, `compressed-tensors` or `gguf`.
    pub layout: String,
    /// Elements of all tensors shown.
    pub parameters: u64,
    /// Bytes of all tensors shown.
    pub bytes: u64,
    /// The tensors, in the order of the files.
    pub tensors: Vec<TensorInfo>,
}

/// Looks into a file or folder.
///
/// # Errors
///
/// [`Error::Io`] when it cannot be read, [`Error::NoMatch`] for a pattern that matches nothing. Values that are not finite
/// are no error here: they are what one looks for.
pub fn inspect(
    path: impl AsRef<Path>,
    options: &InspectOptions,
    progress: &mut dyn Progress,
) -> Result<InspectReport, Error> {
    let checkpoint = Checkpoint::open(path.as_ref())?;
    check_patterns(&checkpoint, &options.only)?;
    let wanted = |entry: &&Entry| options.only.is_empty() || options.only.iter().any(|p| p.matches(&entry.name));
    let entries: Vec<&Entry> = checkpoint.entries().iter().filter(wanted).collect();
    let bytes = entries.iter().map(|entry| entry.bytes).sum();
    progress.begin("reading", bytes);
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in &entries {
        let mut info = header(&checkpoint, entry)?;
        if !options.headers_only {
            look(&checkpoint, entry, &mut info)?;
            checkpoint.release_pages();
        }
        tensors.push(info);
        progress.advance(entry.bytes, &entry.name);
    }
    progress.end();
    Ok(InspectReport {
        layout: layout_name(checkpoint.layout()).to_owned(),
        parameters: entries.iter().map(|entry| entry.elements() as u64).sum(),
        bytes,
        tensors,
    })
}

fn layout_name(layout: CheckpointLayout) -> &'static str {
    match layout {
        CheckpointLayout::Safetensors => "safetensors",
        CheckpointLayout::Leanbits => "leanbits",
        CheckpointLayout::CompressedTensors => "compressed-tensors",
        CheckpointLayout::Gguf => "gguf",
        _ => "unknown",
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn header(checkpoint: &Checkpoint, entry: &Entry) -> Result<TensorInfo, Error> {
    let elements = entry.elements();
    Ok(TensorInfo {
        name: entry.name.clone(),
        shape: entry.shape.clone(),
        stored: stored_form(checkpoint, entry)?,
        quantized: is_quantized(&entry.stored),
        bytes: entry.bytes,
        bits: if elements == 0 { 0.0 } else { 8.0 * entry.bytes as f64 / elements as f64 },
        distribution: None,
        non_finite: None,
        suitable: Vec::new(),
    })
}

/// Reads the values of a tensor.
fn look(checkpoint: &Checkpoint, entry: &Entry, info: &mut TensorInfo) -> Result<(), Error> {
    if entry.elements() == 0 {
        return Ok(());
    }
    let values = match read_f32(checkpoint, &entry.name) {
        // Complex numbers, and ggml types without a decoder here: the header is all there is to show.
        Err(Error::Io(error)) if is_unreadable(&error) => return Ok(()),
        other => other?,
    };
    let tensor = |source: quant_core::Error| Error::Tensor {
        file: checkpoint.path().to_owned(),
        tensor: entry.name.clone(),
        source: source.into(),
    };
    match Distribution::of(&values) {
        Ok(found) => info.distribution = Some(found),
        Err(quant_core::Error::NonFinite { index, .. }) => {
            info.non_finite = Some(index);
            return Ok(());
        }
        Err(source) => return Err(tensor(source)),
    }
    let original = matches!(entry.stored, Stored::Plain(dtype) if dtype.is_float());
    if original && entry.shape.len() >= 2 {
        info.suitable = suitable_formats(&values, &entry.shape).map_err(tensor)?;
    }
    Ok(())
}

fn is_unreadable(error: &quant_io::Error) -> bool {
    match error {
        quant_io::Error::InFile { source, .. } => is_unreadable(source),
        quant_io::Error::NotNumeric { .. } | quant_io::Error::UndecodableType { .. } => true,
        _ => false,
    }
}

impl InspectReport {
    /// The report as a table for the terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut headings =
            vec![("tensor", Align::Left), ("shape", Align::Left), ("stored", Align::Left), ("bits", Align::Right)];
        let values = self.tensors.iter().any(|t| t.distribution.is_some() || t.non_finite.is_some());
        let suits = self.tensors.iter().any(|t| !t.suitable.is_empty());
        if values {
            headings.extend([
                ("min", Align::Right),
                ("max", Align::Right),
                ("crest", Align::Right),
                ("kurtosis", Align::Right),
                ("outliers", Align::Right),
            ]);
        }
        if suits {
            headings.extend([("best at 4 bits", Align::Left), ("at 6", Align::Left), ("at 8", Align::Left)]);
        }
        let mut table = Table::new(&headings);
        for tensor in &self.tensors {
            let mut row = vec![
                tensor.name.clone(),
                table::shape(&tensor.shape),
                tensor.stored.clone(),
                format!("{:.3}", tensor.bits),
            ];
            if values {
                row.extend(value_cells(tensor));
            }
            if suits {
                let best = |bits| tensor.suitable.iter().find(|suitable| suitable.about_bits == bits).map(best_cell);
                row.extend([4, 6, 8].map(|bits| best(bits).unwrap_or_default()));
            }
            table.row(row);
        }
        let mut out = table.to_text();
        out.push_str(&format!(
            "\n{} layout, {} tensors, {} parameters, {}\n",
            self.layout,
            self.tensors.len(),
            self.parameters,
            table::bytes(self.bytes)
        ));
        if suits {
            out.push_str(
                "\ncrest: largest magnitude over RMS. kurtosis: 3 for normal values. outliers: beyond 6 standard deviations.\n\
                 best: highest SQNR after 6.02 dB are taken off for each bit stored; in brackets its SQNR and its bits.\n",
            );
        }
        out
    }
}

fn value_cells(tensor: &TensorInfo) -> [String; 5] {
    let dash = || "-".to_owned();
    match (&tensor.distribution, tensor.non_finite) {
        (Some(d), _) => [
            format!("{:.4}", d.min),
            format!("{:.4}", d.max),
            d.crest_factor.map_or_else(dash, |crest| format!("{crest:.2}")),
            d.kurtosis.map_or_else(dash, |kurtosis| format!("{kurtosis:.2}")),
            d.outliers.to_string(),
        ],
        (None, Some(index)) => [format!("not finite at {index}"), dash(), dash(), dash(), dash()],
        (None, None) => [dash(), dash(), dash(), dash(), dash()],
    }
}

fn best_cell(suitable: &Suitable) -> String {
    let best = &suitable.best;
    let sqnr = best.sqnr_db.map_or_else(|| "exact".to_owned(), |sqnr| format!("{sqnr:.1} dB"));
    format!("{} ({sqnr}, {:.2})", best.format, best.bits)
}
