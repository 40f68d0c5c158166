//! The command line.

use super::kv::Kv;
use super::moe::{Calib, ProfileArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};
use leanbits::NamePattern;
use quant_core::Format;
use std::path::PathBuf;

/// Make trained models small, and see what it costs.
#[derive(Debug, Parser)]
#[command(
    name = "leanbits",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Start with `leanbits demo`: it quantizes a small model that is part of the program.\n\n\
        Exit codes: 0 done, 1 the job failed, 2 wrong usage.\n\
        With --json standard output is one JSON object; progress and remarks go to standard error."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Print one JSON object on standard output and nothing else
    #[arg(long, global = true, help_heading = "Common options")]
    pub(crate) json: bool,
    /// Threads to use; results are the same for any number [default: one for each core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Common options")]
    pub(crate) threads: Option<u16>,
    /// Show no progress
    #[arg(long, short, global = true, help_heading = "Common options")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Demo(Demo),
    /// List the named formats
    Formats,
    Quantize(Quantize),
    Dequantize(Dequantize),
    Compress(Compress),
    Eval(Eval),
    Kv(Kv),
    Calib(Calib),
    Profile(ProfileArgs),
    Bench(Bench),
    Inspect(Inspect),
}

/// Quantize a small trained model to many formats and show what each costs
///
/// Quantizes the embedded model (a byte-level Llama, trained on Wikipedia text) to many formats, all linears
/// of all layers; embedding, head and norms stay in 16 bits. For each format it shows the bits really
/// stored for a quantized weight (scales and zero points included), the size of the whole model, and how
/// far the model moved: signal-to-noise of the weights (SQNR, higher is better), perplexity for
/// bytes of held-out text, KL divergence from the 16-bit model's predictions, and how often both
/// models agree on the most likely next byte.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  leanbits demo\n  leanbits demo --formats int4-g32,mxfp4,nvfp4 --tokens 16384\n  leanbits demo --json > demo.json"
)]
pub(crate) struct Demo {
    /// Formats to try instead of the usual ones, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_format)]
    pub(crate) formats: Vec<Format>,
    /// Bytes of held-out text to predict
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(256..=1_000_000))]
    pub(crate) tokens: u32,
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "leanbits-demo.svg")]
    pub(crate) svg: PathBuf,
}

/// Quantize the tensors of a file or folder into one safetensors file
///
/// Quantizes every float tensor with at least two axes; with --only, exactly the float tensors that match.
/// All others are copied as they are. The input is read one tensor at a time, so it may be larger
/// than memory.
#[derive(Debug, Args)]
#[command(
    after_help = "Patterns: `*` stands for any characters, `?` for one. Each option may be given several times.\n\n\
    Examples:\n  leanbits quantize model.safetensors --format mxfp4 -o small.safetensors\n  \
    leanbits quantize model.gguf --format int4-g32 --skip 'token_embd*' --skip 'output*' -o small.safetensors\n  \
    leanbits quantize model/ --format int8 --only '*mlp*' -o mlp8.safetensors"
)]
pub(crate) struct Quantize {
    /// Safetensors file, GGUF file, or folder with safetensors
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// Format, such as int4-g128; `leanbits formats` lists the named ones
    #[arg(long, short, value_name = "F", value_parser = parse_format)]
    pub(crate) format: Format,
    /// Quantize only tensors whose name matches
    #[arg(long, value_name = "GLOB", value_parser = parse_pattern)]
    pub(crate) only: Vec<NamePattern>,
    /// Leave tensors alone whose name matches
    #[arg(long, value_name = "GLOB", value_parser = parse_pattern)]
    pub(crate) skip: Vec<NamePattern>,
    /// File to write
    #[arg(long, short, value_name = "OUT.safetensors")]
    pub(crate) output: PathBuf,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

/// Turn quantized tensors back into floats
///
/// Decodes every quantized tensor of a leanbits, GGUF or compressed-tensors file or folder. A folder becomes a
/// folder that any tool loads (its quantization_config is taken out), a file becomes a safetensors file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  leanbits dequantize small.safetensors -o plain.safetensors\n  \
    leanbits dequantize model.gguf -o model.safetensors --dtype f16\n  leanbits dequantize compressed/ -o plain/ --dtype bf16")]
pub(crate) struct Dequantize {
    /// File or folder with quantized tensors
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// File or folder to write
    #[arg(long, short, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Type of the decoded tensors; others keep theirs
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub(crate) dtype: Dtype,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

/// Type of decoded tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32-bit floats: every decoded value exactly
    F32,
    /// 16-bit floats; a value beyond ±65504 is an error
    F16,
    /// bfloat16
    Bf16,
}

/// Compress a model folder, with a report
///
/// Compresses a Hugging Face model folder into another one that `leanbits eval` and, with --layout
/// compressed-tensors, other tools load. Embeddings, output head, norms and routers stay as they are
/// unless a recipe says otherwise. The model is read one tensor at a time, or one layer at a time where a recipe
/// looks at activations of a calibration text; a run that was interrupted
/// continues where it was when the same command is given again, and gives the same bytes.
#[derive(Debug, Args)]
#[command(after_help = "A recipe is a TOML file; the first rule that matches a tensor decides:\n\n  \
    format = \"int4-g128-asym\"            # linears that no rule names; or \"keep\"\n  \
    [[rule]]\n  match = [\"*.down_proj.weight\"]      # one pattern or a list\n  format = \"int8\"\n\n\
    Further keys: `method` for all tensors or in a rule: \"rtn\", \"mse\", \"gptq\", \"awq\"; \"svd\", \"asvd\",\n\
    \"svd-llm\", \"corrected\", which store factors; with format = \"vectors\" also \"kmeans\", \"gptvq\", \"e8p\",\n\
    \"pcdvq\"; \"rwkvquant\"; or a table with settings such as { name = \"gptq\", damp = 0.05 }; `activations = \"int8\"`; [transform] with\n\
    `rotate = \"hadamard\"` and `smooth = 0.5`; [calibration] with `windows`, `tokens`, `seed`, `bos`, `split`;\n\
    `default-exclusions = false` also quantizes embeddings, head, norms and routers.\n\
    `leanbits compress --list-presets` shows the recipes that come with the program.\n\n\
    Examples:\n  leanbits compress model/ --format int4-g128 --dry-run -o out/\n  \
    leanbits compress model/ --recipe balanced -o out/\n  \
    leanbits compress model/ --recipe w4-gptq --calib text.txt -o out/\n  \
    leanbits compress model/ --format nvfp4 --layout compressed-tensors -o out/\n  \
    leanbits eval out/ --text book.txt --against model/")]
pub(crate) struct Compress {
    /// Model folder: config.json and safetensors
    #[arg(value_name = "MODEL_DIR", required_unless_present = "list_presets")]
    pub(crate) model: Option<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "OUT_DIR", required_unless_present = "list_presets")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) how: How,
    /// Calibration text, for recipes whose method looks at activations; or what `leanbits calib` wrote (.json)
    #[arg(long, value_name = "TEXT")]
    pub(crate) calib: Option<PathBuf>,
    /// How packed tensors are stored
    #[arg(long, value_enum, default_value_t = LayoutArg::Leanbits)]
    pub(crate) layout: LayoutArg,
    /// Say what would be done and the exact size of the result, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Throw away what an interrupted run with other settings left in OUT_DIR
    #[arg(long)]
    pub(crate) restart: bool,
}

impl Compress {
    /// Model and output folder, which the parser asks for unless presets are listed.
    pub(crate) fn folders(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.model.as_ref().zip(self.output.as_ref())
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct How {
    /// One format for all linears
    #[arg(long, short, value_name = "F", value_parser = parse_format)]
    pub(crate) format: Option<Format>,
    /// Recipe file, or the name of one that comes with the program
    #[arg(long, short, value_name = "R.toml")]
    pub(crate) recipe: Option<PathBuf>,
    /// List the recipes that come with the program
    #[arg(long)]
    pub(crate) list_presets: bool,
}

/// Layout of packed tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutArg {
    /// All formats, smallest files
    Leanbits,
    /// What vLLM and transformers load; integer, fp8, MX and NVFP4 formats only
    CompressedTensors,
}

/// Measure how well a model predicts a text
///
/// Cuts the text into windows of --context tokens and predicts every token of a window from those before it.
/// Lower perplexity is better; bits per byte allows comparing models with different tokenizers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  leanbits eval model/ --text book.txt\n  \
    leanbits eval out/ --text book.txt --tokens 20480 --context 2048 --against model/\n  \
    leanbits eval stories/ --text stories.txt --split '<|endoftext|>' --bos --context 256")]
pub(crate) struct Eval {
    /// Model folder, original or compressed
    #[arg(value_name = "MODEL_DIR")]
    pub(crate) model: PathBuf,
    /// Text to predict (UTF-8)
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Stop after this many tokens [default: the whole text]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) tokens: Option<u64>,
    /// Tokens of a window [default: what the model was trained for, at most 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) context: Option<u32>,
    /// Also compare the predictions with those of this model
    #[arg(long, value_name = "MODEL_DIR")]
    pub(crate) against: Option<PathBuf>,
    /// Cut the text at this string; every piece is a document with a window of its own
    #[arg(long, value_name = "SEP")]
    pub(crate) split: Option<String>,
    /// Put the begin-of-sequence token in front of every window
    #[arg(long)]
    pub(crate) bos: bool,
    /// Leave out this share of the choices of experts, those that matter least (MoDES)
    #[arg(long, value_name = "SHARE", requires = "calib")]
    pub(crate) skip_experts: Option<f64>,
    /// Text on which importance of layers and the threshold of skipping are measured
    #[arg(long, value_name = "TEXT", requires = "skip_experts")]
    pub(crate) calib: Option<PathBuf>,
    /// Most tokens of that text
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "skip_experts")]
    pub(crate) calib_tokens: usize,
    /// Importance of layers measured before: a JSON list, or what --json printed with experts left out
    #[arg(long, value_name = "FILE.json", requires = "skip_experts", conflicts_with = "skip_by_gate")]
    pub(crate) importance: Option<PathBuf>,
    /// Judge choices by their gates alone, whatever their layer
    #[arg(long, requires = "skip_experts")]
    pub(crate) skip_by_gate: bool,
}

/// Time a model folder: tokens a second, bytes a token, share of memory's bandwidth
///
/// Runs a made-up prompt in one pass (prefill) and then token by token (decode). A compressed folder is run twice over:
/// with the packed weights as they are, and decoded to f32. Generating a token reads all weights that it passes, so that
/// memory sets the limit: the last column says how much of what memory gives was used.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  leanbits bench model/\n  leanbits bench out/ --prompt 512 --tokens 64 --threads 1"
)]
pub(crate) struct Bench {
    /// Model folder, original or compressed
    #[arg(value_name = "MODEL_DIR")]
    pub(crate) model: PathBuf,
    /// Tokens of the prompt; at most half of what the model was trained for
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt: u32,
    /// Tokens generated after it
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tokens: u32,
    /// Runs of each way; the fastest counts
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
}

/// Show what a file or folder holds, and which formats would suit it
///
/// Lists every tensor with its shape, how it is stored, bits and range. For float tensors it also
/// measures the crest factor (largest magnitude over RMS: what one scale has to bridge), kurtosis
/// (3 for normal values, larger for heavy tails), outliers (values beyond 6 standard deviations), and
/// which format keeps most of the signal at about 4, 6 and 8 bits.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  leanbits inspect model/\n  leanbits inspect model.gguf --only 'blk.0.*'\n  \
    leanbits inspect small.safetensors --json")]
pub(crate) struct Inspect {
    /// Safetensors file, GGUF file, or model folder
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Show only tensors whose name matches
    #[arg(long, value_name = "GLOB", value_parser = parse_pattern)]
    pub(crate) only: Vec<NamePattern>,
    /// Read headers only: no ranges, no statistics
    #[arg(long)]
    pub(crate) headers: bool,
}

fn parse_format(text: &str) -> Result<Format, String> {
    text.parse::<Format>().map_err(|error| match error {
        // The message of the library ends in a hint; here the hint has a line of its own.
        quant_core::Error::UnknownFormat { reason, .. } => reason,
        other => other.to_string(),
    })
}

fn parse_pattern(text: &str) -> Result<NamePattern, String> {
    text.parse().map_err(|error: leanbits::PatternError| error.to_string())
}
