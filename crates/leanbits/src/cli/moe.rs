//! The verbs `calib` and `profile`.

use super::output::{Failure, print_json, print_text};
use clap::{Args, Subcommand, ValueEnum};
use leanbits::models::Config;
use leanbits::{ProfileOptions, Progress, moe_quant};
use moe_quant::{Counters, EbssConfig, Filters, Scheme};
use serde_json::json;
use std::path::PathBuf;

/// Make calibration text
#[derive(Debug, Args)]
pub(crate) struct Calib {
    #[command(subcommand)]
    how: How,
}

#[derive(Debug, Subcommand)]
enum How {
    Ebss(Ebss),
}

/// Let a mixture of experts write its own calibration text, balanced over its experts (MoEQuant's EBSS)
///
/// A beam search over the model itself that trades likelihood against even use of experts. The file holds token ids,
/// settings and a report, and is what `leanbits compress --calib` takes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  leanbits calib ebss model/ -o calib.json\n  \
    leanbits calib ebss model/ --sequences 32 --length 256 -o calib.json\n  \
    leanbits compress model/ --recipe moequant-4 --calib calib.json -o out/")]
struct Ebss {
    /// Model folder
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    /// File to write
    #[arg(long, short, value_name = "CALIB.json")]
    output: PathBuf,
    /// Temperature of the imbalance; smaller balances more
    #[arg(long, value_name = "T", default_value_t = 1.2)]
    tau: f64,
    /// Branches of the search
    #[arg(long, value_name = "N", default_value_t = 4)]
    width: usize,
    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 128)]
    sequences: usize,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 512)]
    length: usize,
    /// Draw tokens at this temperature in place of searching: ordinary sampled text, to compare with
    #[arg(long, value_name = "T", conflicts_with_all = ["tau", "width"])]
    temperature: Option<f64>,
    /// What the imbalance is counted over
    #[arg(long, value_enum, default_value_t = CountersArg::Set)]
    counters: CountersArg,
    /// Only the likeliest next tokens of a branch
    #[arg(long, value_name = "N")]
    top_tokens: Option<usize>,
    /// Most equal tokens in a row
    #[arg(long, value_name = "N")]
    most_equal: Option<usize>,
    /// Write no sequence of so many tokens twice
    #[arg(long, value_name = "N")]
    no_repeat: Option<usize>,
    /// Tokens never to write, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    ban: Vec<u32>,
    /// Seed of the first tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CountersArg {
    /// All sequences together
    Set,
    /// Each sequence by itself
    Sequence,
}

/// Measure what packed products take on this machine, for allocations that weigh time
///
/// Times each scheme for the shapes of a model's experts and for 1 to 512 rows, many weights in one grouped product on all
/// threads, as a layer of experts runs them. A recipe with `[experts] r` below 1 names the file as `profile`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  leanbits profile --model model/ -o profile.json\n  \
    leanbits profile --shape 1408x2048 --shape 2048x1408 --schemes int4-g128-asym,int8,int8/int8 -o profile.json")]
pub(crate) struct ProfileArgs {
    /// Model folder whose experts' shapes are measured
    #[arg(long, value_name = "MODEL_DIR", required_unless_present = "shape")]
    model: Option<PathBuf>,
    /// Shape OUTxIN of a weight
    #[arg(long, value_name = "OUTxIN", value_parser = parse_shape)]
    shape: Vec<[usize; 2]>,
    /// Schemes, separated by commas: FORMAT, or FORMAT/FORMAT with that of the inputs
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "int1-g128-asym,int2-g128-asym,int3-g128-asym,int4-g128-asym,int6-g128-asym,int8"
    )]
    schemes: Vec<Scheme>,
    /// File to write
    #[arg(long, short, value_name = "PROFILE.json")]
    output: PathBuf,
}

fn parse_shape(text: &str) -> Result<[usize; 2], String> {
    let sizes: Vec<usize> = text.split('x').filter_map(|size| size.parse().ok()).collect();
    match sizes[..] {
        [outputs, features] if outputs > 0 && features > 0 => Ok([outputs, features]),
        _ => Err("expected OUTxIN, such as 1408x2048".to_owned()),
    }
}

pub(crate) fn calib(args: &Calib, json: bool, progress: &mut dyn Progress) -> Result<(), Failure> {
    let How::Ebss(args) = &args.how;
    let config = EbssConfig {
        tau: args.tau,
        width: args.width,
        sequences: args.sequences,
        length: args.length,
        counters: match args.counters {
            CountersArg::Set => Counters::Set,
            CountersArg::Sequence => Counters::Sequence,
        },
        filters: Filters {
            top_tokens: args.top_tokens,
            most_equal: args.most_equal,
            no_repeat: args.no_repeat,
            banned: args.ban.clone(),
        },
        seed: args.seed,
        temperature: args.temperature,
    };
    let sampled = leanbits::sample_calibration(&args.model, &config, progress)?;
    let text = serde_json::to_string(&sampled).map_err(|source| leanbits::Error::Json { source })?;
    leanbits::write_file(&args.output, text.as_bytes())?;
    let report = &sampled.report;
    if json {
        return Ok(print_json(&json!({
            "windows": sampled.set.windows().len(),
            "tokens": sampled.set.tokens(),
            "hash": format!("{:016x}", sampled.set.hash()),
            "config": sampled.config,
            "report": report,
        }))?);
    }
    let unused: usize = report.experts.iter().map(|layer| layer.iter().filter(|n| **n == 0).count()).sum();
    let text = format!(
        "{} windows, {} tokens\nperplexity  {:.4}\nimbalance   {:.5}\nunused      {unused} experts\nleft out    {} repeated, {} \
         equal, {} banned continuations\n\nWritten to {}.\n",
        sampled.set.windows().len(),
        sampled.set.tokens(),
        report.perplexity,
        report.imbalance,
        report.left_out.no_repeat,
        report.left_out.most_equal,
        report.left_out.banned,
        args.output.display()
    );
    Ok(print_text(&text)?)
}

pub(crate) fn profile(args: &ProfileArgs, json: bool, progress: &mut dyn Progress) -> Result<(), Failure> {
    let mut shapes = args.shape.clone();
    let mut options = ProfileOptions::new(args.schemes.clone(), Vec::new());
    if let Some(model) = &args.model {
        let config = Config::from_folder(model).map_err(leanbits::Error::from)?;
        let Some(mixture) = &config.mixture else {
            return Err(Failure::usage("the model has no experts", "give shapes with --shape"));
        };
        let (hidden, inner) = (config.hidden_size, mixture.expert_size);
        shapes.extend([[inner, hidden], [hidden, inner]]);
        (options.experts, options.top_k) = (mixture.experts, mixture.top_k);
        options.weights = 3 * mixture.experts * mixture.layers.iter().filter(|is| **is).count();
    }
    options.shapes = shapes;
    let profile = leanbits::measure_profile(&options, progress)?;
    let text = serde_json::to_string_pretty(&profile).map_err(|source| leanbits::Error::Json { source })?;
    leanbits::write_file(&args.output, text.as_bytes())?;
    if json {
        return Ok(print_json(&profile)?);
    }
    let mut text = format!("{}\n\n", profile.device());
    for entry in profile.schemes() {
        for times in entry.tiles.iter().flat_map(|tile| &tile.times) {
            let ends = [times.seconds.first(), times.seconds.last()];
            let ends = ends.map(|end| end.map_or(String::new(), |(rows, s)| format!("{rows} rows {:.1} ns", s * 1e9)));
            text.push_str(&format!("{:20} {:6} inputs: {} an output\n", entry.scheme, times.features, ends.join(", ")));
        }
    }
    text.push_str(&format!("\nWritten to {}.\n", args.output.display()));
    Ok(print_text(&text)?)
}
