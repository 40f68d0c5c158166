//! What a compression did, for programs, for people and as a picture.

use crate::Error;
use crate::compress::{CalibrationReport, CodeUsage, Energy, Outcome, to_json};
use crate::picture::{Captions, Curve, TensorPoint, curves, tensor_errors};
use crate::plan::PlannedTensor;
use crate::recipe::Recipe;
use crate::storage::StorageLayout;
use crate::table::{self, Align, Table};
use serde::Serialize;

/// One tensor of a [`CompressReport`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it is stored now: a format, or the type it had.
    pub format: String,
    /// How its codes were found, or `keep`.
    pub method: String,
    /// Why it was treated so.
    pub reason: String,
    /// Bytes stored, everything included.
    pub bytes: u64,
    /// Bytes it took before.
    pub source_bytes: u64,
    /// Bits stored for each element.
    pub bits_per_weight: f64,
    /// Signal to quantization noise in dB; `None` when nothing changed, or in a dry run.
    pub sqnr_db: Option<f64>,
    /// Mean squared error of the outputs of the linear, summed over outputs, on the calibration text; `None` without.
    pub loss: Option<f64>,
    /// Signal to noise of these outputs in dB.
    pub output_sqnr_db: Option<f64>,
    /// Tokens of the calibration text that reached the linear.
    pub calibration_tokens: Option<u64>,
    /// Input channels that were zero on all of them.
    pub dead_channels: Option<u64>,
    /// Rank of its factors, if it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u64>,
    /// Singular values in the measure of the method, relative to the largest, in dB; at most 128, evenly spread. Of a
    /// corrected weight those of its rounding error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spectrum_db: Option<Vec<f64>>,
    /// How its code books are used, if it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codes: Option<CodesReport>,
    /// How evenly its weights are spaced, if its method looked at that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uniformity: Option<UniformityReport>,
    /// What else is to be known, such as why another method was used.
    pub note: Option<String>,
}

/// How the code books of a tensor are used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CodesReport {
    /// Entries of all its code books.
    pub entries: u64,
    /// Entries that some vector uses.
    pub used: u64,
    /// Vectors, which bound the entries that can be used.
    pub vectors: u64,
    /// Entropy of the codes of a book in bits, on average over vectors.
    pub entropy_bits: f64,
}

impl CodesReport {
    fn new(usage: CodeUsage) -> Self {
        let CodeUsage { entries, used, vectors, entropy } = usage;
        Self { entries, used, vectors, entropy_bits: entropy.0 }
    }
}

/// RWKVQuant's two measures of how far weights are from evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct UniformityReport {
    /// The coarse proxy: relative entropy of the gaps between sorted weights.
    pub coarse: f64,
    /// The fine proxy: their moments.
    pub fine: f64,
}

/// What a run took; absent from the report in the folder, which is the same for every run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunCost {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Seconds spent reading the input and widening it to f32, writing and flushing the output.
    pub io_seconds: f64,
    /// Seconds spent finding codes, and decoding again to measure the error.
    pub packing_seconds: f64,
    /// Share of `seconds` spent packing.
    pub packing_fraction: f64,
    /// Seconds spent running layers on the calibration text and gathering statistics.
    pub running_seconds: f64,
    /// Largest resident memory of the process, mapped files included; `None` where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// Tensors that an earlier, interrupted run had finished.
    pub resumed_tensors: usize,
}

/// What [`compress`](crate::compress()) did or would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompressReport {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// How packed tensors are stored.
    pub layout: StorageLayout,
    /// The recipe that was followed.
    pub recipe: Recipe,
    /// Bytes of all tensors as stored.
    pub bytes: u64,
    /// Bytes of the safetensors files, headers included.
    pub file_bytes: u64,
    /// Bytes of all tensors before.
    pub source_bytes: u64,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Elements of the quantized tensors.
    pub quantized_parameters: u64,
    /// Bits stored for each element of the quantized tensors, scales and zero points included.
    pub bits_per_weight: f64,
    /// Bits stored for each element of all tensors.
    pub bits_per_parameter: f64,
    /// Signal to quantization noise over all quantized tensors, in dB; `None` when nothing was quantized.
    pub sqnr_db: Option<f64>,
    /// What the model was calibrated on, if it was.
    pub calibration: Option<CalibrationReport>,
    /// What in the recipe had no effect.
    pub warnings: Vec<String>,
    /// What it took to get there.
    #[serde(flatten)]
    pub run: Option<RunCost>,
    /// What decided about how many tensors.
    pub rules: Vec<RuleLine>,
    /// Every tensor, in the order of the files.
    pub tensors: Vec<TensorReport>,
}

impl TensorReport {
    /// A tensor that was written as planned.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub(crate) fn new(tensor: &PlannedTensor, outcome: &Outcome) -> Self {
        let treatment = &tensor.treatment;
        let planned = if tensor.is_kept() { "keep" } else { treatment.method.name() };
        Self {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            format: tensor.format_name(),
            method: outcome.method.clone().unwrap_or_else(|| planned.to_owned()),
            reason: treatment.decision.reason.to_string(),
            bytes: tensor.bytes,
            source_bytes: tensor.source_bytes,
            bits_per_weight: if tensor.elements == 0 {
                0.0
            } else {
                8.0 * tensor.bytes as f64 / tensor.elements as f64
            },
            sqnr_db: outcome.weights.and_then(Energy::sqnr_db),
            loss: outcome.outputs.map(|outputs| outputs.noise),
            output_sqnr_db: outcome.outputs.and_then(Energy::sqnr_db),
            calibration_tokens: outcome.tokens,
            dead_channels: outcome.dead,
            rank: outcome.rank,
            spectrum_db: outcome
                .spectrum
                .as_ref()
                .map(|values| values.iter().map(|v| f64::from(*v) / 1000.0).collect()),
            codes: outcome.codes.map(CodesReport::new),
            uniformity: treatment.uniformity.map(|u| UniformityReport { coarse: u.coarse, fine: u.fine }),
            note: outcome.note.clone().or_else(|| treatment.note.clone()),
        }
    }
}

/// Part of a name that says what kind of tensor it is: `q_proj` of `model.layers.3.self_attn.q_proj.weight`.
fn kind(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| part.parse::<u64>().is_err()).collect();
    match parts.as_slice() {
        [.., module, "weight" | "bias"] => (*module).to_owned(),
        [.., last] => (*last).to_owned(),
        [] => name.to_owned(),
    }
}

/// A key under which numbers in names are sorted as numbers.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(text_end);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        key.push((text.to_owned(), number.parse().unwrap_or(0)));
        rest = after;
    }
    key
}

/// How many tensors were stored in one way for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleLine {
    /// Why: a rule of the recipe, its default, or an exclusion.
    pub reason: String,
    /// How they are stored now.
    pub format: String,
    /// How many there are.
    pub tensors: usize,
    /// Bytes they take now.
    pub bytes: u64,
    /// Name of the first.
    pub example: String,
}

/// Gathers tensors that were treated alike.
pub(crate) fn rule_lines(tensors: &[TensorReport]) -> Vec<RuleLine> {
    let mut lines: Vec<RuleLine> = Vec::new();
    for tensor in tensors {
        match lines.iter_mut().find(|line| line.reason == tensor.reason && line.format == tensor.format) {
            Some(line) => {
                line.tensors += 1;
                line.bytes += tensor.bytes;
            }
            None => lines.push(RuleLine {
                reason: tensor.reason.clone(),
                format: tensor.format.clone(),
                tensors: 1,
                bytes: tensor.bytes,
                example: tensor.name.clone(),
            }),
        }
    }
    lines
}

impl RunCost {
    /// The costs as lines of a list.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = format!(
            "- took {:.1} s: {:.1} s reading and writing, {:.1} s packing and measuring ({:.0} %)",
            self.seconds,
            self.io_seconds,
            self.packing_seconds,
            100.0 * self.packing_fraction
        );
        if self.running_seconds > 0.0 {
            out.push_str(&format!(", {:.1} s running the calibration text", self.running_seconds));
        }
        out.push('\n');
        if let Some(bytes) = self.peak_rss_bytes {
            out.push_str(&format!("- largest resident memory: {}\n", table::bytes(bytes)));
        }
        if self.resumed_tensors > 0 {
            out.push_str(&format!("- {} tensors were there from an interrupted run\n", self.resumed_tensors));
        }
        out
    }
}

impl CompressReport {
    /// The report as Markdown.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut out = String::from("# Compression report\n\n");
        out.push_str(&self.summary());
        out.push_str("\n## Recipe\n\n```toml\n");
        out.push_str(&self.recipe.to_toml());
        out.push_str("```\n\n");
        out.push_str(&self.rules_table().to_markdown());
        out.push_str("\n## Tensors\n\n");
        out.push_str(&tensor_table(&self.tensors).to_markdown());
        out.push_str("\nSQNR: signal to quantization noise of the weights, in dB; 6 dB more is half the error. ");
        out.push_str("A dash marks tensors that did not change. The picture is in `report.svg`.\n");
        if let Some(calibration) = &self.calibration {
            out.push_str("\n## Outputs\n\n");
            out.push_str(&calibration_table(&self.tensors).to_markdown());
            out.push_str(&format!(
                "\nMeasured on {} calibration tokens in {} windows of at most {} (hash {}). Loss: mean over tokens of the squared \
                 error of a linear's outputs, summed over outputs; the inputs are those that the quantized layers before it make. \
                 Dead: input channels that were always zero.\n",
                calibration.tokens, calibration.windows, calibration.context, calibration.hash,
            ));
        }
        if self.tensors.iter().any(|tensor| tensor.rank.is_some()) {
            out.push_str("\n## Ranks\n\n");
            out.push_str(&rank_table(&self.tensors).to_markdown());
            out.push_str(
                "\nDropped: the singular value at the rank, below the largest, in the measure of the method. The spectra are \
                 in `report-spectra.svg`.\n",
            );
        }
        if self.tensors.iter().any(|tensor| tensor.codes.is_some()) {
            out.push_str("\n## Code books\n\n");
            out.push_str(&code_table(&self.tensors).to_markdown());
            out.push_str(
                "\nEntropy: bits that the codes of a book would take at best, on average over vectors; equal to the bits of a \
                 code where all entries are used alike.\n",
            );
        }
        if self.tensors.iter().any(|tensor| tensor.uniformity.is_some()) {
            out.push_str("\n## Scalar or vector codes\n\n");
            out.push_str(&uniformity_table(&self.tensors).to_markdown());
            out.push_str(
                "\nThe proxies of RWKVQuant: 0 for evenly spaced weights. They are drawn in `report-proxies.svg`.\n",
            );
        }
        if !self.warnings.is_empty() {
            out.push_str("\n## Warnings\n\n");
            self.warnings.iter().for_each(|warning| out.push_str(&format!("- {warning}\n")));
        }
        out
    }

    /// The figures that matter, as a short list.
    #[must_use]
    pub fn summary(&self) -> String {
        let quantized = self.tensors.iter().filter(|tensor| tensor.method != "keep").count();
        let mut out = format!(
            "- tensors: {} of {} quantized, holding {} of {} parameters\n- size: {} instead of {} ({} of safetensors files)\n- bits per quantized weight, scales and zero points included: {:.3}; per parameter of the whole model: {:.3}\n",
            quantized,
            self.tensors.len(),
            self.quantized_parameters,
            self.parameters,
            table::bytes(self.bytes),
            table::bytes(self.source_bytes),
            table::bytes(self.file_bytes),
            self.bits_per_weight,
            self.bits_per_parameter,
        );
        if let Some(sqnr) = self.sqnr_db {
            out.push_str(&format!("- SQNR over all quantized weights: {sqnr:.2} dB\n"));
        }
        if let Some(calibration) = &self.calibration {
            out.push_str(&format!(
                "- calibrated on {} tokens: {} of {} windows of the text\n",
                calibration.tokens, calibration.windows, calibration.available
            ));
        }
        let noted = self.tensors.iter().filter(|tensor| tensor.note.is_some()).count();
        if noted > 0 {
            out.push_str(&format!("- {noted} tensors with a note in the report\n"));
        }
        out
    }

    /// Signal to noise of every quantized tensor as an SVG picture: of its outputs where the model was calibrated, else
    /// of its values.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let mut tensors: Vec<&TensorReport> = self.tensors.iter().collect();
        // Files are sorted by name, where layer 10 comes before layer 2.
        tensors.sort_by_key(|tensor| natural(&tensor.name));
        let outputs = self.calibration.is_some();
        let sqnr = |t: &TensorReport| if outputs { t.output_sqnr_db } else { t.sqnr_db };
        let points: Vec<TensorPoint> = tensors
            .iter()
            .filter_map(|t| sqnr(t).map(|sqnr_db| TensorPoint { kind: kind(&t.name), sqnr_db }))
            .collect();
        let what =
            if outputs { "Error of the outputs of every quantized linear" } else { "Error of every quantized tensor" };
        let title = format!("{what} ({:.3} bits per weight)", self.bits_per_weight);
        let captions = Captions { title: &title, x: "tensor, layer by layer", y: "SQNR in dB (higher is better)" };
        tensor_errors(captions, &points)
    }

    /// What decided about how many tensors, as a table for the terminal.
    #[must_use]
    pub fn rules_text(&self) -> String {
        self.rules_table().to_text()
    }

    fn rules_table(&self) -> Table {
        let mut table = Table::new(&[
            ("why", Align::Left),
            ("stored as", Align::Left),
            ("tensors", Align::Right),
            ("size", Align::Right),
            ("for example", Align::Left),
        ]);
        for line in &self.rules {
            table.row(vec![
                line.reason.clone(),
                line.format.clone(),
                line.tensors.to_string(),
                table::bytes(line.bytes),
                line.example.clone(),
            ]);
        }
        table
    }

    /// Singular values of every tensor that has factors, with its rank marked, as an SVG picture.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "positions in a picture")]
    pub fn spectra_svg(&self) -> String {
        let curve = |tensor: &TensorReport| {
            let (values, rank) = (tensor.spectrum_db.as_ref()?, tensor.rank?);
            let side = tensor.shape.iter().copied().min().unwrap_or(1).max(1) as f64;
            let last = (values.len().max(2) - 1) as f64;
            let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(at, v)| (at as f64 / last, *v)).collect();
            let share = rank as f64 / side;
            let mark = points.iter().copied().find(|(x, _)| *x >= share).map(|(_, y)| (share, y));
            Some(Curve { kind: kind(&tensor.name), points, mark })
        };
        let all: Vec<Curve> = self.tensors.iter().filter_map(curve).collect();
        let captions = Captions {
            title: "Singular values of every factored linear; the dot is its rank",
            x: "number of the value, as a share of the smaller side",
            y: "dB below the largest",
        };
        curves(captions, &all)
    }

    /// RWKVQuant's proxies of every matrix, those in vector codes apart from those in scalar codes, as an SVG picture.
    #[must_use]
    pub fn proxies_svg(&self) -> String {
        let point = |tensor: &TensorReport| {
            let proxies = tensor.uniformity?;
            let mark = Some((proxies.coarse, proxies.fine.max(1e-6).log10()));
            let kind = if tensor.codes.is_some() { "vector codes" } else { "scalar codes" };
            Some(Curve { kind: kind.to_owned(), points: Vec::new(), mark })
        };
        let all: Vec<Curve> = self.tensors.iter().filter_map(point).collect();
        let captions = Captions {
            title: "How far the weights of every matrix are from evenly spaced",
            x: "coarse proxy",
            y: "fine proxy, power of ten",
        };
        curves(captions, &all)
    }

    /// Names and contents of the files that go into the output folder. What differs from run to run is left out.
    pub(crate) fn files(&self) -> Result<Vec<(&'static str, String)>, Error> {
        let json = to_json(&Self { run: None, ..self.clone() })?;
        let mut files = vec![("report.json", json), ("report.md", self.to_markdown()), ("report.svg", self.to_svg())];
        if self.tensors.iter().any(|tensor| tensor.spectrum_db.is_some()) {
            files.push(("report-spectra.svg", self.spectra_svg()));
        }
        if self.tensors.iter().any(|tensor| tensor.uniformity.is_some()) {
            files.push(("report-proxies.svg", self.proxies_svg()));
        }
        Ok(files)
    }
}

/// Ranks of factored tensors.
fn rank_table(tensors: &[TensorReport]) -> Table {
    let mut table = Table::new(&[
        ("linear", Align::Left),
        ("rank", Align::Right),
        ("of", Align::Right),
        ("dropped dB", Align::Right),
        ("stored as", Align::Left),
    ]);
    for tensor in tensors {
        let (Some(rank), Some(values)) = (tensor.rank, &tensor.spectrum_db) else { continue };
        let side = tensor.shape.iter().copied().min().unwrap_or(0) as u64;
        let at = usize::try_from(rank * values.len() as u64 / side.max(1)).unwrap_or(usize::MAX);
        table.row(vec![
            tensor.name.clone(),
            rank.to_string(),
            side.to_string(),
            values.get(at).map_or_else(|| "-".to_owned(), |value| format!("{value:.1}")),
            tensor.format.clone(),
        ]);
    }
    table
}

/// How code books are used.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn code_table(tensors: &[TensorReport]) -> Table {
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("stored as", Align::Left),
        ("vectors", Align::Right),
        ("entries", Align::Right),
        ("used", Align::Right),
        ("entropy", Align::Right),
    ]);
    for tensor in tensors {
        let Some(codes) = tensor.codes else { continue };
        table.row(vec![
            tensor.name.clone(),
            tensor.format.clone(),
            codes.vectors.to_string(),
            codes.entries.to_string(),
            format!("{:.1} %", 100.0 * codes.used as f64 / codes.entries.max(1) as f64),
            format!("{:.2} bits", codes.entropy_bits),
        ]);
    }
    table
}

/// RWKVQuant's proxies and what was decided.
fn uniformity_table(tensors: &[TensorReport]) -> Table {
    let mut table = Table::new(&[
        ("matrix", Align::Left),
        ("coarse", Align::Right),
        ("fine", Align::Right),
        ("method", Align::Left),
        ("bits", Align::Right),
    ]);
    for tensor in tensors {
        let Some(proxies) = tensor.uniformity else { continue };
        table.row(vec![
            tensor.name.clone(),
            format!("{:.3}", proxies.coarse),
            format!("{:.3}", proxies.fine),
            tensor.method.clone(),
            format!("{:.3}", tensor.bits_per_weight),
        ]);
    }
    table
}

/// Tensors as a table.
pub(crate) fn tensor_table(tensors: &[TensorReport]) -> Table {
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("shape", Align::Left),
        ("stored as", Align::Left),
        ("why", Align::Left),
        ("bits", Align::Right),
        ("bytes", Align::Right),
        ("SQNR dB", Align::Right),
    ]);
    for tensor in tensors {
        table.row(vec![
            tensor.name.clone(),
            table::shape(&tensor.shape),
            tensor.format.clone(),
            tensor.reason.clone(),
            format!("{:.3}", tensor.bits_per_weight),
            tensor.bytes.to_string(),
            tensor.sqnr_db.map_or_else(|| "-".to_owned(), |sqnr| format!("{sqnr:.2}")),
        ]);
    }
    table
}

/// What calibration says about the linears, as a table.
fn calibration_table(tensors: &[TensorReport]) -> Table {
    let mut table = Table::new(&[
        ("linear", Align::Left),
        ("method", Align::Left),
        ("loss", Align::Right),
        ("SQNR dB", Align::Right),
        ("tokens", Align::Right),
        ("dead", Align::Right),
        ("note", Align::Left),
    ]);
    let dash = || "-".to_owned();
    for tensor in tensors.iter().filter(|tensor| tensor.calibration_tokens.is_some()) {
        table.row(vec![
            tensor.name.clone(),
            tensor.method.clone(),
            tensor.loss.map_or_else(dash, |loss| format!("{loss:.4e}")),
            tensor.output_sqnr_db.map_or_else(dash, |sqnr| format!("{sqnr:.2}")),
            tensor.calibration_tokens.map_or_else(dash, |tokens| tokens.to_string()),
            tensor.dead_channels.map_or_else(dash, |dead| dead.to_string()),
            tensor.note.clone().unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_sorted_by_their_numbers() {
        let mut names = ["layers.10.a", "layers.2.b", "layers.2.a", "embed", "layers.1.z"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["embed", "layers.1.z", "layers.2.a", "layers.2.b", "layers.10.a"], "2 before 10");
    }

    #[test]
    fn the_kind_of_a_tensor_is_the_last_word_that_is_no_number() {
        assert_eq!(kind("model.layers.3.self_attn.q_proj.weight"), "q_proj", "a linear");
        assert_eq!(kind("experts.7.w1"), "w1", "a bare parameter");
    }
}
