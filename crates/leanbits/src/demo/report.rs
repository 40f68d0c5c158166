//! What the demo found, as table and picture.

use crate::picture::{Captions, ParetoPoint, pareto};
use crate::table::{self, Align, Table};
use serde::Serialize;

/// The uncompressed model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DemoReference {
    /// Perplexity a byte of text.
    pub perplexity: f64,
    /// Bytes of all its tensors, in 16 bits each.
    pub bytes: u64,
}

/// The model in one format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DemoRow {
    /// The format of all quantized linears.
    pub format: String,
    /// Bytes of the whole model, what is kept in 16 bits included.
    pub bytes: u64,
    /// Bits stored for each quantized weight, scales and zero points included.
    pub bits_per_weight: f64,
    /// Signal to quantization noise over all quantized weights, in dB.
    pub sqnr_db: f64,
    /// Perplexity a byte of text.
    pub perplexity: f64,
    /// Mean KL divergence of the predictions from those of the uncompressed model, in nats.
    pub kl: f64,
    /// Share of positions at which both models find the same byte most likely.
    pub top1: f64,
}

/// What [`demo`](crate::demo()) found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DemoReport {
    /// What the model is.
    pub model: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Elements of the quantized ones.
    pub quantized_parameters: u64,
    /// Which tensors are quantized, in words.
    pub quantized: String,
    /// Bytes of text that were predicted.
    pub tokens: usize,
    /// Bytes of a window.
    pub context: usize,
    /// The uncompressed model.
    pub reference: DemoReference,
    /// One row a format, smallest first.
    pub rows: Vec<DemoRow>,
    /// Seconds it took.
    pub seconds: f64,
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl DemoReport {
    /// The table and what its columns mean.
    #[must_use]
    pub fn to_text(&self) -> String {
        let bits = self.reference.perplexity.log2();
        let mut out = format!(
            "{}\n{} parameters; quantized: {}, {} parameters.\n\
             Predicting {} bytes of held-out text in windows of {}.\n\n",
            self.model, self.parameters, self.quantized, self.quantized_parameters, self.tokens, self.context
        );
        out.push_str(&self.table().to_text());
        out.push_str(&format!(
            "\nbits/weight  stored for each quantized weight, scales and zero points included\n\
             MiB          the whole model; embedding, head and norms stay in 16 bits\n\
             SQNR         signal to noise of the quantized weights; 6 dB more is half the error\n\
             perplexity   for a byte; the reference needs {bits:.3} bits for one\n\
             KL           divergence from the predictions of the reference, in nats\n\
             top-1        how often both models find the same byte most likely\n\n\
             Took {:.1} s.\n",
            self.seconds
        ));
        out
    }

    /// The table as Markdown.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        self.table().to_markdown()
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            ("format", Align::Left),
            ("bits/weight", Align::Right),
            ("MiB", Align::Right),
            ("SQNR dB", Align::Right),
            ("perplexity", Align::Right),
            ("KL", Align::Right),
            ("top-1 %", Align::Right),
        ]);
        for row in &self.rows {
            table.row(vec![
                row.format.clone(),
                format!("{:.3}", row.bits_per_weight),
                format!("{:.2}", mib(row.bytes)),
                format!("{:.1}", row.sqnr_db),
                format!("{:.3}", row.perplexity),
                format!("{:.5}", row.kl),
                format!("{:.1}", 100.0 * row.top1),
            ]);
        }
        table.row(vec![
            "bf16 (reference)".to_owned(),
            "16.000".to_owned(),
            format!("{:.2}", mib(self.reference.bytes)),
            "-".to_owned(),
            format!("{:.3}", self.reference.perplexity),
            "0".to_owned(),
            "100".to_owned(),
        ]);
        table
    }

    /// Size against KL divergence as an SVG picture, with the formats that no other one beats joined by a line.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let points: Vec<ParetoPoint> = self
            .rows
            .iter()
            .map(|row| ParetoPoint { label: row.format.clone(), x: mib(row.bytes), y: row.kl })
            .collect();
        let title = format!("What each format costs (uncompressed: {})", table::bytes(self.reference.bytes));
        let captions =
            Captions { title: &title, x: "whole model, MiB", y: "KL divergence from the uncompressed model, nats" };
        pareto(captions, &points)
    }
}
