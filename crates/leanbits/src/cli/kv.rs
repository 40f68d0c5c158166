//! The verb `kv`.

use super::output::{Failure, print_json, print_text};
use clap::Args;
use kv_cache_quant::{Factors, KvMethod};
use leanbits::{KeyPlace, KvOptions, Progress, kv_cache_quant};
use std::path::PathBuf;

/// Measure what quantized key-value caches cost
///
/// Reads a text token by token through each cache, as in decoding: a token attends to the quantized past and to itself,
/// then it is quantized. Shows the bytes that a token takes at three lengths, perplexity, KL divergence from the same
/// model with a full-precision cache, how far the outputs of attention are off, and speed beside f16.
#[derive(Debug, Args)]
#[command(after_help = "Codecs, the two streams apart as KEYS/VALUES where they differ:\n  \
    f32, int8, int4-g32-min, nvfp4 …  any format, token by token; `leanbits formats` lists the named ones\n  \
    rotated:FORMAT                    heads rotated first\n  \
    kivi:BITS                         keys by channel, values by token (KIVI)\n  \
    centred:FORMAT, smooth:FORMAT     means removed, channels scaled; these and the next three need --calib\n  \
    2d:BITS                           two-dimensional quantization (WKVQuant); 2d-range: scaled by ranges\n  \
    skvq:BITS, skvq:ternary           channels reordered, ranges clipped, window, sinks (SKVQ); skvq:2-g32: groups of 32\n  \
    cskv:0.5, cskv:0.2@int4-min       latents of fewer channels (CSKV), best with --pre-rope\n  \
    cskv:0.2@int4-min+trained         the same, trained on the calibration text for the format\n  \
    pm-kvq                            codes of 16 bits that are halved as memory fills (PM-KVQ), see --budget\n\n\
    Examples:\n  leanbits kv model/ --text book.txt\n  \
    leanbits kv model/ --text book.txt --calib other.txt --codec int4-min,2d:4 --codec skvq:2/ternary\n  \
    leanbits kv model/ --text book.txt --calib other.txt --budget 2MiB --context 4096\n  \
    leanbits kv small/ --text book.txt --codec kivi:4/2 --sinks 4 --plot kv.svg --json")]
pub(crate) struct Kv {
    /// Model folder, original or compressed
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Text to predict (UTF-8)
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Codecs, separated by commas or in several options [default: a list at 8, 4 and 2 bits]
    #[arg(long, value_name = "SPEC", value_delimiter = ',', value_parser = parse_codec)]
    codec: Vec<KvMethod>,
    /// Calibration text, for codecs that need one; better not the text to predict
    #[arg(long, value_name = "TEXT")]
    calib: Option<PathBuf>,
    /// Most tokens of the calibration text
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(2..))]
    calib_tokens: u32,
    /// Tokens of a window, which is what a cache holds [default: what the model was trained for, at most 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    context: Option<u32>,
    /// Stop after this many tokens
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..))]
    tokens: u64,
    /// First tokens that stay in full precision [default: each codec's own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    sinks: Option<u32>,
    /// Newest tokens that stay in full precision [default: each codec's own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    window: Option<u32>,
    /// Keep keys as they are before the rotary turn
    #[arg(long)]
    pre_rope: bool,
    /// Bits that attention rounds queries and weights to where it multiplies with integer codes: 8 for speed
    #[arg(long, value_name = "8|16", default_value = "16", value_parser = parse_factors)]
    factors: Factors,
    /// Also give PM-KVQ so many bytes for all layers at --context tokens, and print who gets which width
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    budget: Option<u64>,
    /// Draw bytes against KL divergence
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

pub(super) fn kv(args: &Kv, json: bool, progress: &mut dyn Progress) -> Result<(), Failure> {
    let options = KvOptions {
        codecs: args.codec.clone(),
        keys: if args.pre_rope { KeyPlace::BeforeRope } else { KeyPlace::AfterRope },
        sinks: args.sinks.map(|n| n as usize),
        window: args.window.map(|n| n as usize),
        factors: args.factors,
        budget: args.budget,
        calibration: args.calib.clone(),
        calibration_tokens: args.calib_tokens as usize,
        context: args.context.map(|n| n as usize),
        tokens: Some(usize::try_from(args.tokens).unwrap_or(usize::MAX)),
    };
    let report = leanbits::kv(&args.model, &args.text, &options, progress).map_err(|error| {
        let usage = matches!(error, leanbits::Error::NeedsCalibration { .. });
        Failure { usage, ..Failure::from(error) }
    })?;
    if let Some(path) = &args.plot {
        leanbits::write_file(path, report.to_svg().as_bytes())?;
    }
    if json {
        return Ok(print_json(&report)?);
    }
    let mut text = report.to_text();
    if let Some(path) = &args.plot {
        text.push_str(&format!("The picture of bytes against KL divergence is in {}.\n", path.display()));
    }
    Ok(print_text(&text)?)
}

fn parse_codec(text: &str) -> Result<KvMethod, String> {
    text.parse::<KvMethod>().map_err(|error| error.to_string())
}

fn parse_factors(text: &str) -> Result<Factors, String> {
    match text {
        "8" => Ok(Factors::Bits8),
        "16" => Ok(Factors::Bits16),
        _ => Err("expected 8 or 16".to_owned()),
    }
}

/// A number of bytes, with a unit if it ends in one.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let at = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(at);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("expected a number of bytes, such as 500000, 512KiB or 2MiB".to_owned()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected a number of bytes, such as 500000, 512KiB or 2MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_powers_of_two() {
        for (text, bytes) in [("7", 7), ("3KiB", 3072), ("2m", 2 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "-3", "0", "3 MB", "99999999999GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
