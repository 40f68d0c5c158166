//! What was found about caches, as table, JSON and picture.

use super::budget::KvLayerSchedule;
use crate::picture::{Captions, ParetoPoint, pareto};
use crate::table::{self, Align, Table};
use serde::Serialize;

/// What [`crate::kv`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvReport {
    /// The model without a quantized cache.
    pub reference: KvReference,
    /// One row a codec, in the order they were asked for.
    pub rows: Vec<KvRow>,
    /// What a budget makes of each layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Vec<KvLayerSchedule>>,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Seconds it took.
    pub seconds: f64,
}

/// The model with a full-precision cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KvReference {
    /// `exp` of the mean negative log likelihood of a token.
    pub perplexity: f64,
}

/// What one codec costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvRow {
    /// Its name.
    pub codec: String,
    /// Bits of a quantized key or value element, its share of scales and the like included.
    pub bits_nominal: f64,
    /// Bytes that the caches of all layers take, for each token held.
    pub bytes_per_token: KvBytes,
    /// Perplexity when every token is read through the cache.
    pub perplexity: f64,
    /// Mean KL divergence from the predictions of the reference, in nats.
    pub kl: f64,
    /// Relative error of attention outputs, mean over layers and query heads.
    pub attn_err_mean: f64,
    /// The same of the worst head.
    pub attn_err_worst_head: f64,
    /// How many times faster attention over 8192 tokens is than over an f16 cache.
    pub attend_speedup_vs_f16: f64,
    /// Gigabytes of f32 rows that are appended a second, one token at a time.
    pub append_gb_s: f64,
}

/// Bytes for a token at three lengths; `None` where a budget does not allow so many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KvBytes {
    /// Of 1024 tokens.
    #[serde(rename = "1k")]
    pub at_1k: Option<f64>,
    /// Of 8192 tokens.
    #[serde(rename = "8k")]
    pub at_8k: Option<f64>,
    /// Of 32768 tokens.
    #[serde(rename = "32k")]
    pub at_32k: Option<f64>,
}

impl KvReport {
    /// The table and what its columns mean.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = format!(
            "Read {} tokens one by one in windows of {}; perplexity with a full-precision cache: {:.4}\n\n",
            self.tokens, self.context, self.reference.perplexity
        );
        out.push_str(&self.table().to_text());
        out.push_str(
            "\nbits        stored for each quantized element, scales and zero points included\n\
             B/token     bytes of all layers for each token held at this length, window and sinks included\n\
             KL          divergence from the predictions with a full-precision cache, in nats\n\
             attention   relative error of the outputs of attention: mean over heads, and the worst head\n\
             attend      speed of attention over 8192 tokens, f16 = 1; timings depend on what else the machine does\n\
             append      GB/s of f32 rows, token by token\n",
        );
        if let Some(schedule) = &self.schedule {
            out.push_str("\nThe budget by layer (codes begin with 16 bits):\n\n");
            out.push_str(&schedule_table(schedule).to_text());
        }
        out.push_str(&format!("\nTook {:.1} s.\n", self.seconds));
        out
    }

    /// The table as Markdown.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        self.table().to_markdown()
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            ("codec", Align::Left),
            ("bits", Align::Right),
            ("B/token 1k", Align::Right),
            ("8k", Align::Right),
            ("32k", Align::Right),
            ("perplexity", Align::Right),
            ("KL", Align::Right),
            ("attention", Align::Right),
            ("worst head", Align::Right),
            ("attend", Align::Right),
            ("append", Align::Right),
        ]);
        let bytes = |bytes: Option<f64>| bytes.map_or("-".to_owned(), |bytes| format!("{bytes:.0}"));
        for row in &self.rows {
            table.row(vec![
                row.codec.clone(),
                format!("{:.3}", row.bits_nominal),
                bytes(row.bytes_per_token.at_1k),
                bytes(row.bytes_per_token.at_8k),
                bytes(row.bytes_per_token.at_32k),
                format!("{:.4}", row.perplexity),
                format!("{:.6}", row.kl),
                format!("{:.4}", row.attn_err_mean),
                format!("{:.4}", row.attn_err_worst_head),
                format!("{:.2}", row.attend_speedup_vs_f16),
                format!("{:.3}", row.append_gb_s),
            ]);
        }
        table
    }

    /// Size against KL divergence as an SVG picture, with the codecs that no other one beats joined by a line.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let point =
            |row: &KvRow| row.bytes_per_token.at_8k.map(|x| ParetoPoint { label: row.codec.clone(), x, y: row.kl });
        let points: Vec<ParetoPoint> = self.rows.iter().filter_map(point).collect();
        let captions = Captions {
            title: "What each key-value cache costs",
            x: "bytes for a token at 8192 tokens, all layers",
            y: "KL divergence from a full-precision cache, nats",
        };
        pareto(captions, &points)
    }
}

fn schedule_table(schedule: &[KvLayerSchedule]) -> Table {
    let mut table = Table::new(&[
        ("layer", Align::Right),
        ("final bits", Align::Right),
        ("budget", Align::Right),
        ("shrinks", Align::Left),
    ]);
    for line in schedule {
        let steps: Vec<String> =
            line.shrinks.iter().map(|step| format!("{} bits from token {}", step.bits, step.tokens)).collect();
        let steps = if steps.is_empty() { "never".to_owned() } else { steps.join(", ") };
        table.row(vec![line.layer.to_string(), line.final_bits.to_string(), table::bytes(line.bytes), steps]);
    }
    table
}
