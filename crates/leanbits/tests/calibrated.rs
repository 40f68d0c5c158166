//! `compress` with a calibration text: layer by layer, on what the quantized layers before make of it.

mod common;

use common::{Stop, contents, heldout, run, tiny_llama, write_llama, write_safetensors};
use leanbits::io::{Checkpoint, Stored};
use leanbits::{
    Calibration, CompressOptions, CompressReport, Error, EvalOptions, EvalReport, Method, Recipe, Silent, compress,
    evaluate, presets,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Windows of calibration text, of 256 tokens each.
const WINDOWS: usize = 4;

/// A folder with a calibration text and another text to measure on.
struct Place {
    folder: tempfile::TempDir,
    calibration: PathBuf,
    text: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = std::fs::read(heldout()).expect("the held-out text");
        let (first, second) = text.split_at(40_000);
        let (calibration, rest) = (folder.path().join("calibration.txt"), folder.path().join("text.txt"));
        std::fs::write(&calibration, first).expect("written");
        std::fs::write(&rest, second).expect("written");
        Self { folder, calibration, text: rest }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Follows a recipe on a little of the calibration text.
    fn compress(&self, model: &Path, name: &str, recipe: Recipe) -> CompressReport {
        compress(model, self.path(name), &self.options(recipe), &mut Silent).expect(name)
    }

    fn options(&self, mut recipe: Recipe) -> CompressOptions {
        let mut calibration = Calibration::default();
        (calibration.windows, calibration.tokens) = (WINDOWS, 256);
        let calibrated = recipe.looks_at_activations().is_some();
        if calibrated {
            recipe.calibration = calibration;
        }
        let mut options = CompressOptions::new(recipe);
        options.calibration = calibrated.then(|| self.calibration.clone());
        options
    }

    fn evaluate(&self, name: &str) -> EvalReport {
        let options = EvalOptions { tokens: Some(1022), against: Some(tiny_llama()), ..EvalOptions::default() };
        evaluate(self.path(name), &self.text, &options, &mut Silent).expect(name)
    }

    fn kl(&self, name: &str) -> f64 {
        self.evaluate(name).against.expect("a comparison").kl
    }
}

fn recipe(text: &str) -> Recipe {
    Recipe::from_toml(text).expect("a recipe")
}

#[test]
fn every_preset_of_scalar_codes_gives_a_folder_that_evaluates() {
    let place = Place::new();
    // Those for mixtures of experts have tests of their own.
    for preset in presets().iter().filter(|preset| !preset.name.contains("moe")) {
        let recipe = Recipe::preset(preset.name).expect(preset.name);
        // Factors, vectors and what is learned have tests of their own.
        if !recipe.method.is_scalar() || matches!(recipe.method, Method::Wkvquant(_)) {
            continue;
        }
        let calibrated = recipe.looks_at_activations().is_some();
        let report = place.compress(&tiny_llama(), preset.name, recipe);
        let kl = place.kl(preset.name);
        assert!(kl > 0.0 && kl < 1.5, "{}: {kl}", preset.name);
        assert_eq!(report.calibration.is_some(), calibrated, "{}", preset.name);
        let linears = report.tensors.iter().filter(|tensor| tensor.name.contains("proj"));
        for linear in linears {
            assert_eq!(linear.loss.is_some_and(|loss| loss > 0.0), calibrated, "{}: {linear:?}", preset.name);
            assert_eq!(
                linear.calibration_tokens,
                calibrated.then_some(WINDOWS as u64 * 256),
                "{}: {linear:?}",
                preset.name
            );
        }
        let stored = Checkpoint::open(place.path(preset.name)).expect("a checkpoint");
        let bytes: u64 = stored.entries().iter().map(|entry| entry.bytes).sum();
        assert_eq!(report.bytes, bytes, "{}: everything stored is counted", preset.name);
    }
}

#[test]
fn methods_that_look_at_activations_move_the_model_less_at_the_same_bytes() {
    let place = Place::new();
    let of = |name: &str, method: &str| {
        let mut options = place.options(recipe(&format!("format = \"int3-g128-asym\"\nmethod = {method}\n")));
        options.recipe.calibration.windows = 24;
        let report = compress(tiny_llama(), place.path(name), &options, &mut Silent).expect(name);
        (place.kl(name), report.bytes)
    };
    let (rtn, bytes) = of("rtn", "\"rtn\"");
    let (gptq, with_gptq) = of("gptq", "{ name = \"gptq\", order = \"group-aware\" }");
    let (awq, with_awq) = of("awq", "\"awq\"");
    assert!(bytes == with_gptq && bytes == with_awq, "equal bytes");
    assert!(gptq < 0.85 * rtn, "GPTQ {gptq}, rounding to nearest {rtn}");
    assert!(awq < 0.95 * rtn, "AWQ {awq}, rounding to nearest {rtn}");
}

#[test]
fn rotating_changes_no_function_and_unties_the_head() {
    let place = Place::new();
    let report = place.compress(&tiny_llama(), "plain", recipe("format = \"int8\"\n"));
    let rotated =
        place.compress(&tiny_llama(), "rotated", recipe("format = \"int8\"\n[transform]\nrotate = \"hadamard\"\n"));
    let head = rotated.tensors.iter().find(|tensor| tensor.name == "lm_head.weight").expect("a head of its own");
    assert_eq!(rotated.bytes, report.bytes + head.bytes, "the head is counted");
    let (plain, turned) = (place.kl("plain"), place.kl("rotated"));
    // Embedding and head were rounded to bfloat16 once more.
    assert!(turned < 4.0 * plain + 1e-4, "{turned} against {plain}");
    let gains = Checkpoint::open(place.path("rotated")).expect("a checkpoint");
    let norm = gains.read_f32("model.layers.2.input_layernorm.weight").expect("a norm");
    assert!(norm.iter().all(|gain| *gain == 1.0), "gains are folded into the linears");
}

#[test]
fn rounded_activations_are_stored_in_the_folder_and_applied() {
    let place = Place::new();
    place.compress(&tiny_llama(), "weights", recipe("format = \"int8\"\n"));
    place.compress(&tiny_llama(), "coarse", recipe("format = \"int8\"\nactivations = \"int4\"\n"));
    place.compress(&tiny_llama(), "both", recipe("format = \"int8\"\nactivations = \"int8\"\n"));
    let (weights, both, coarse) = (place.kl("weights"), place.kl("both"), place.kl("coarse"));
    assert!(weights < both && 4.0 * both < coarse, "{weights}, {both}, {coarse}");
    let config = contents(&place.path("both"))["config.json"].clone();
    assert!(String::from_utf8(config).expect("text").contains("\"activations\": \"int8\""), "it is in config.json");
}

#[test]
fn rules_name_methods_and_what_they_say_is_in_the_report() {
    let place = Place::new();
    let report = place.compress(
        &tiny_llama(),
        "out",
        recipe(
            "format = \"int4-g128\"\nmethod = { name = \"gptq\", damp = 0.05, order = \"act-order\", groups = \"static\" }\n\
             [[rule]]\nmatch = \"*.v_proj.weight\"\nformat = \"int8\"\nmethod = \"rtn\"\n\
             [[rule]]\nmatch = \"*.o_proj.weight\"\nformat = \"nf4\"\nmethod = \"awq\"\n\
             [[rule]]\nmatch = \"model.embed_tokens.weight\"\nformat = \"int8\"\n\
             [[rule]]\nmatch = \"*.nothing.weight\"\nformat = \"int8\"\n",
        ),
    );
    let of = |name: &str| {
        let tensor = report.tensors.iter().find(|tensor| tensor.name == name).expect(name);
        (tensor.method.as_str(), tensor.format.as_str())
    };
    assert_eq!(of("model.layers.1.self_attn.q_proj.weight"), ("gptq", "int4-g128"), "the recipe's own");
    assert_eq!(of("model.layers.1.self_attn.v_proj.weight"), ("rtn", "int8"), "a rule's");
    assert_eq!(of("model.layers.1.self_attn.o_proj.weight"), ("awq", "nf4"), "another rule's");
    assert_eq!(of("model.embed_tokens.weight"), ("rtn", "int8"), "no linear of a layer");
    assert_eq!(report.warnings, ["rule 4 (\"*.nothing.weight\") matches no tensor"]);
    let markdown = String::from_utf8(contents(&place.path("out"))["report.md"].clone()).expect("text");
    for word in ["## Outputs", "## Warnings", "damp = 0.05", "4 windows"] {
        assert!(markdown.contains(word), "{word:?} is missing in\n{markdown}");
    }
}

#[test]
fn mixtures_and_recurrences_take_the_same_way() {
    let place = Place::new();
    for (model, windows) in [("tiny-moe", 3), ("tiny-rwkv7", 1)] {
        let folder = tiny_llama().with_file_name(model);
        let mut options = place.options(recipe("format = \"int4-g64\"\nmethod = \"gptq\"\n"));
        (options.recipe.calibration.windows, options.recipe.calibration.tokens) = (windows, 128);
        let report = compress(&folder, place.path(model), &options, &mut Silent).expect(model);
        let of = |method: &str| report.tensors.iter().filter(|tensor| tensor.method == method).count();
        assert!(of("gptq") > 40, "{model}: {} by GPTQ, {} rounded to nearest", of("gptq"), of("rtn"));
        // What so few tokens do not reach is rounded to nearest, and said.
        let unseen = report.tensors.iter().filter(|tensor| tensor.calibration_tokens == Some(0));
        for tensor in unseen {
            assert!(tensor.method == "rtn" && tensor.note.is_some() && tensor.loss.is_none(), "{tensor:?}");
        }
        let options = EvalOptions { tokens: Some(255), against: Some(folder), ..EvalOptions::default() };
        let found = evaluate(place.path(model), &place.text, &options, &mut Silent).expect(model);
        assert!(found.against.is_some_and(|against| against.kl > 0.0 && against.kl < 0.5), "{model}: {found:?}");
    }
}

#[test]
fn the_same_folder_comes_out_for_any_number_of_threads() {
    let place = Place::new();
    let recipe = place.path("recipe.toml");
    let text = "format = \"nvfp4\"\nmethod = \"gptq\"\n[transform]\nrotate = \"hadamard\"\nsmooth = 0.5\n\
                [calibration]\nwindows = 4\ntokens = 128\n";
    std::fs::write(&recipe, text).expect("written");
    let folder = |threads: &str| {
        let out = place.path(threads);
        let output = common::program()
            .env("RAYON_NUM_THREADS", threads)
            .args(args![
                "compress",
                tiny_llama(),
                "-o",
                out,
                "--recipe",
                recipe,
                "--calib",
                place.calibration,
                "--quiet"
            ])
            .output()
            .expect("a run");
        assert!(output.status.success(), "{threads} threads: {}", String::from_utf8_lossy(&output.stderr));
        contents(&out)
    };
    let one = folder("1");
    assert!(one == folder("2") && one == folder("3"), "the folders differ");
}

#[test]
fn an_interrupted_run_goes_on_with_the_layer_it_was_in_and_gives_the_same_bytes() {
    let place = Place::new();
    let (model, out) = (place.path("m"), place.path("out"));
    write_llama(&model, 3);
    let text = "format = \"int4-g32\"\nmethod = \"gptq\"\n[transform]\nrotate = \"orthogonal\"\n\
                [[rule]]\nmatch = \"*.down_proj.weight\"\nformat = \"int8\"\nmethod = \"awq\"\n";
    let mut options = place.options(recipe(text));
    (options.recipe.calibration.windows, options.recipe.calibration.tokens) = (5, 40);
    options.max_shard_bytes = 9_000;
    let whole = compress(&model, place.path("whole"), &options, &mut Silent).expect("a whole run");
    let expected = contents(&place.path("whole"));
    let mut resumed = Vec::new();
    for after in [0, 4, 5, 12, 13, 14, 15, 23, 24, whole.tensors.len() - 1] {
        let run = || compress(&model, &out, &options, &mut Stop(after));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "interrupted after {after}");
        assert!(!out.join("config.json").exists(), "an unfinished folder");
        let report = compress(&model, &out, &options, &mut Silent).expect("the resumed run");
        assert_eq!(contents(&out), expected, "interrupted after {after}");
        resumed.push(report.run.expect("a run").resumed_tensors);
        std::fs::remove_dir_all(&out).expect("removed");
    }
    assert!(resumed.is_sorted() && resumed.last() == Some(&whole.tensors.len()), "{resumed:?}");

    // Damage in a finished layer, or in the saved activations, costs time but changes nothing.
    for damaged in ["model-00002", "leanbits-state"] {
        let run = || compress(&model, &out, &options, &mut Stop(24));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "interrupted");
        let files = std::fs::read_dir(&out).expect("a folder").map(|entry| entry.expect("an entry").path());
        let is_meant = |path: &PathBuf| path.file_name().is_some_and(|f| f.to_string_lossy().contains(damaged));
        let file = files.into_iter().find(is_meant).expect(damaged);
        let mut bytes = std::fs::read(&file).expect("a file");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&file, bytes).expect("written");
        compress(&model, &out, &options, &mut Silent).expect("the resumed run");
        assert_eq!(contents(&out), expected, "{damaged} was damaged");
        std::fs::remove_dir_all(&out).expect("removed");
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_any_work() {
    let place = Place::new();
    let (model, out, toml, short) = (place.path("m"), place.path("out"), place.path("r.toml"), place.path("short"));
    write_llama(&model, 1);
    std::fs::write(&short, "Too short.").expect("written");
    let compress = |text: &str, calibration: &Path| {
        std::fs::write(&toml, text).expect("written");
        let found = run(args!["compress", model, "-o", out, "--recipe", toml, "--calib", calibration]);
        assert!(!out.exists(), "nothing is left behind");
        found
    };
    let gptq = "format = \"int4-g32\"\nmethod = \"gptq\"\n";
    run(args!["compress", model, "-o", out, "--recipe", "w4-gptq"]).fails_with_hint(
        2,
        &["gptq", "calibration text"],
        "--calib",
    );
    run(args!["compress", model, "-o", out, "--recipe", "w8a8-smoothquant"]).fails(2, &["smoothing"]);
    compress(gptq, &short).fails_with_hint(1, &["short", "10 tokens", "64"], "longer text");
    compress(gptq, &place.path("none")).fails_with_hint(1, &["none", "cannot read"], "path");
    let rule = |name: &str, method: &str| {
        compress(
            &format!("{gptq}[[rule]]\nmatch = \"{name}\"\nformat = \"int8\"\nmethod = {method}\n"),
            &place.calibration,
        )
    };
    rule("model.embed_tokens.weight", "\"gptq\"").fails_with_hint(1, &["embed_tokens", "gptq", "no linear"], "rule");
    rule("*.o_proj.weight", "{ name = \"gptq\", damp = 7.0 }").fails(1, &["o_proj", "damp", "7"]);
    rule("*.o_proj.weight", "{ name = \"gptq\", dampp = 0.1 }").fails(1, &["line 6", "dampp"]);
    rule("*.o_proj.weight", "\"magic\"").fails(1, &["line 6", "magic"]);
    compress("format = \"int8\"\nactivations = \"nvfp4\"\nmethod = \"gptq\"\n", &place.calibration)
        .fails(1, &["activations", "nvfp4"]);
    compress(&format!("{gptq}[transform]\nsmooth = 1.5\n"), &place.calibration).fails(1, &["smooth", "1.5"]);
    compress(&format!("{gptq}[calibration]\nwindows = 0\n"), &place.calibration).fails(1, &["windows"]);
    compress(&format!("{gptq}[calibration]\nbos = true\n"), &place.calibration).fails(1, &["bos_token_id"]);
}

#[test]
fn activations_that_are_not_finite_are_named_by_linear_and_window() {
    let place = Place::new();
    let (model, out) = (place.path("m"), place.path("out"));
    write_llama(&model, 2);
    let mut tensors = common::llama_tensors(2);
    let spoilt = tensors.iter().position(|(spec, _)| spec.name.ends_with("layers.1.mlp.up_proj.weight"));
    let bytes = &mut tensors[spoilt.expect("a tensor")].1;
    bytes.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&1e38_f32.to_le_bytes()));
    write_safetensors(&model.join("model.safetensors"), &tensors);
    let text = "format = \"int8\"\nmethod = \"gptq\"\n[[rule]]\nmatch = \"*.up_proj.weight\"\nformat = \"keep\"\n";
    let mut options = place.options(recipe(text));
    (options.recipe.calibration.windows, options.recipe.calibration.tokens) = (3, 32);
    let error = compress(&model, &out, &options, &mut Silent).expect_err("infinite activations");
    assert!(matches!(error, Error::Activations { first_window: 0, .. }), "{error}");
    assert!(error.to_string().contains("layers.1.mlp.down_proj"), "{error}");
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn smoothing_and_scales_fold_into_what_stands_before_and_change_no_function() {
    let place = Place::new();
    // Eight bits hide nothing but the folding.
    place.compress(&tiny_llama(), "plain", recipe("format = \"int8\"\n"));
    place.compress(&tiny_llama(), "smooth", recipe("format = \"int8\"\n[transform]\nsmooth = 0.5\n"));
    place.compress(&tiny_llama(), "awq", recipe("format = \"int8\"\nmethod = { name = \"awq\" }\n"));
    let (plain, smooth, awq) = (place.kl("plain"), place.kl("smooth"), place.kl("awq"));
    assert!(smooth < 4.0 * plain + 1e-4 && awq < 4.0 * plain + 1e-4, "{plain}, {smooth}, {awq}");
    let gain = |name: &str| {
        let folder = Checkpoint::open(place.path(name)).expect("a checkpoint");
        assert!(matches!(
            folder.entry("model.norm.weight").map(|entry| entry.stored),
            Some(Stored::Plain(dtype)) if dtype.name() == "BF16"
        ));
        folder.read_f32("model.layers.0.input_layernorm.weight").expect("a norm")
    };
    assert!(gain("smooth") != gain("plain") && gain("awq") != gain("plain"), "gains took the scales");
}

#[test]
fn a_dry_run_with_calibration_knows_the_size_and_writes_nothing() {
    let place = Place::new();
    let mut options = place.options(Recipe::preset("w4-rotated-gptq").expect("a preset"));
    options.dry_run = true;
    let dry = compress(tiny_llama(), place.path("dry"), &options, &mut Silent).expect("a dry run");
    assert!(!place.path("dry").exists(), "nothing is written");
    options.dry_run = false;
    let wet = compress(tiny_llama(), place.path("wet"), &options, &mut Silent).expect("a run");
    assert_eq!((dry.bytes, dry.file_bytes), (wet.bytes, wet.file_bytes));
}

#[test]
fn presets_are_listed_with_what_they_are_for() {
    let text = run(["compress", "--list-presets"]).stdout;
    for preset in presets() {
        assert!(text.contains(preset.name) && text.contains(preset.summary), "{} is missing in\n{text}", preset.name);
    }
    let json = run(["compress", "--list-presets", "--json"]).json();
    assert_eq!(json["presets"].as_array().map(Vec::len), Some(presets().len()));
    assert!(matches!(Recipe::preset("w4-gptq").map(|recipe| recipe.method), Ok(Method::Gptq(_))));
}
