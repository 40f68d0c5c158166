//! One function a verb: from arguments to library options, from results to text or JSON.

use super::args::{Bench, Compress, Demo, Dequantize, Dtype, Eval, Inspect, LayoutArg, Quantize};
use super::output::{Failure, print_json, print_text};
use leanbits::{
    BenchOptions, CompressOptions, DemoOptions, DequantizeOptions, EvalOptions, FloatType, InspectOptions, Progress,
    QuantizeOptions, Recipe, SkipBy, SkipOptions, StorageLayout,
};
use serde_json::json;

type Outcome = Result<(), Failure>;

pub(crate) fn formats(json: bool) -> Outcome {
    let formats = leanbits::formats();
    if json {
        return Ok(print_json(&json!({ "formats": formats }))?);
    }
    let mut text = leanbits::formats_table(&formats);
    text.push_str(
        "\nBits per weight are what is really stored for a 4096×4096 matrix, scales and zero points included.\n\
         Names compose: int1 to int8, group sizes -gN, -row, -tensor, tiles -tRxC, rules such as -asym, scale types\n\
         -f32 -f16 -bf16; mxint2 to mxint8, nvint2 to nvint8, bfp1 to bfp9, sefp1 to sefp9. For example int3-g64-asym.\n",
    );
    Ok(print_text(&text)?)
}

pub(crate) fn demo(args: &Demo, json: bool, progress: &mut dyn Progress) -> Outcome {
    let mut options = DemoOptions { tokens: args.tokens as usize, ..DemoOptions::default() };
    if !args.formats.is_empty() {
        options.formats.clone_from(&args.formats);
    }
    let report = leanbits::demo(&options, progress)?;
    leanbits::write_file(&args.svg, report.to_svg().as_bytes())?;
    if json {
        return Ok(print_json(&report)?);
    }
    let mut text = report.to_text();
    text.push_str(&format!(
        "\nThe picture of size against KL divergence is in {}.\n\n\
         What next:\n  \
         leanbits formats                                             all named formats\n  \
         leanbits inspect MODEL_DIR                                   which format suits which tensor\n  \
         leanbits compress MODEL_DIR --recipe balanced -o OUT_DIR     make a model of yours small\n  \
         leanbits eval OUT_DIR --text FILE --against MODEL_DIR        and see what it cost\n",
        args.svg.display()
    ));
    Ok(print_text(&text)?)
}

pub(crate) fn quantize(args: &Quantize, json: bool, progress: &mut dyn Progress) -> Outcome {
    let options = QuantizeOptions {
        format: args.format,
        only: args.only.clone(),
        skip: args.skip.clone(),
        overwrite: args.force,
    };
    let report = leanbits::quantize(&args.input, &args.output, &options, progress)?;
    if json { Ok(print_json(&report)?) } else { Ok(print_text(&report.to_text())?) }
}

pub(crate) fn dequantize(args: &Dequantize, json: bool, progress: &mut dyn Progress) -> Outcome {
    let dtype = match args.dtype {
        Dtype::F32 => FloatType::F32,
        Dtype::F16 => FloatType::F16,
        Dtype::Bf16 => FloatType::Bf16,
    };
    let options = DequantizeOptions { dtype, overwrite: args.force };
    let report = leanbits::dequantize(&args.input, &args.output, &options, progress)?;
    if json { Ok(print_json(&report)?) } else { Ok(print_text(&report.to_text())?) }
}

pub(crate) fn compress(args: &Compress, json: bool, progress: &mut dyn Progress) -> Outcome {
    if args.how.list_presets {
        return presets(json);
    }
    let Some((model, output)) = args.folders() else {
        return Err(Failure::usage("no model and no output", "give MODEL_DIR and --output OUT_DIR"));
    };
    let recipe = match (&args.how.format, &args.how.recipe) {
        (Some(format), _) => Recipe::uniform(*format),
        (None, Some(source)) => Recipe::load(source)?,
        (None, None) => return Err(Failure::usage("no format and no recipe", "give --format or --recipe")),
    };
    let layout = match args.layout {
        LayoutArg::Leanbits => StorageLayout::Leanbits,
        LayoutArg::CompressedTensors => StorageLayout::CompressedTensors,
    };
    let mut options = CompressOptions::new(recipe);
    options.calibration.clone_from(&args.calib);
    options.layout = layout;
    options.dry_run = args.dry_run;
    options.restart = args.restart;
    let report = leanbits::compress(model, output, &options, progress).map_err(|error| {
        // A missing option, or one that would do nothing, is wrong usage.
        let usage =
            matches!(error, leanbits::Error::CalibrationUnused { .. } | leanbits::Error::NeedsCalibration { .. });
        Failure { usage, ..Failure::from(error) }
    })?;
    if json {
        return Ok(print_json(&report)?);
    }
    let mut text = report.rules_text();
    text.push('\n');
    text.push_str(&report.summary());
    if let Some(run) = &report.run {
        text.push_str(&run.to_text());
    }
    let output = output.display();
    if args.dry_run {
        text.push_str("\nThis was a dry run: nothing was written, and the sizes are exact.\n");
    } else {
        text.push_str(&format!(
            "\nWritten to {output}, with report.md, report.json and report.svg.\nNext: leanbits eval {output} --text FILE --against {}\n",
            model.display()
        ));
    }
    Ok(print_text(&text)?)
}

fn presets(json: bool) -> Outcome {
    let presets = leanbits::presets();
    if json {
        let list: Vec<_> = presets
            .iter()
            .map(|preset| json!({ "name": preset.name, "summary": preset.summary, "recipe": preset.toml }))
            .collect();
        return Ok(print_json(&json!({ "presets": list }))?);
    }
    let width = presets.iter().map(|preset| preset.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for preset in presets {
        let calibrated = Recipe::preset(preset.name).is_ok_and(|recipe| recipe.looks_at_activations().is_some());
        let note = if calibrated { "; needs --calib" } else { "" };
        text.push_str(&format!("{:width$}  {}{note}\n", preset.name, preset.summary));
    }
    Ok(print_text(&text)?)
}

pub(crate) fn eval(args: &Eval, json: bool, progress: &mut dyn Progress) -> Outcome {
    let options = EvalOptions {
        tokens: args.tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        context: args.context.map(|n| n as usize),
        against: args.against.clone(),
        split: args.split.clone(),
        bos: args.bos,
        skip: args.skip_experts.zip(args.calib.clone()).map(|(share, calibration)| SkipOptions {
            share,
            calibration,
            tokens: args.calib_tokens,
            by: if args.skip_by_gate { SkipBy::Gate } else { SkipBy::Importance },
            importance: args.importance.clone(),
        }),
    };
    let report = leanbits::evaluate(&args.model, &args.text, &options, progress)?;
    if json { Ok(print_json(&report)?) } else { Ok(print_text(&report.to_text())?) }
}

pub(crate) fn bench(args: &Bench, json: bool, progress: &mut dyn Progress) -> Outcome {
    let mut options = BenchOptions::default();
    options.prompt = args.prompt as usize;
    options.tokens = args.tokens as usize;
    options.rounds = args.rounds as usize;
    let report = leanbits::bench(&args.model, &options, progress)?;
    if json { Ok(print_json(&report)?) } else { Ok(print_text(&report.to_text())?) }
}

pub(crate) fn inspect(args: &Inspect, json: bool, progress: &mut dyn Progress) -> Outcome {
    let options = InspectOptions { only: args.only.clone(), headers_only: args.headers };
    let report = leanbits::inspect(&args.path, &options, progress)?;
    if json { Ok(print_json(&report)?) } else { Ok(print_text(&report.to_text())?) }
}
