//! `kv`.

mod common;

use common::{heldout, run, tiny_llama, write_llama};
use leanbits::kv_cache_quant::{KeyStorage, KvGeometry, KvMethod, KvPolicy};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The second half of the held-out text, for calibration.
fn other_text(folder: &Path) -> PathBuf {
    let text = std::fs::read(heldout()).expect("the held-out text");
    let path = folder.join("other.txt");
    std::fs::write(&path, &text[text.len() / 2..]).expect("a file");
    path
}

fn kv(model: &Path, more: &[&str]) -> Vec<OsString> {
    let mut arguments = args!["kv", model.to_owned(), "--text", heldout()].to_vec();
    arguments.extend(more.iter().map(OsString::from));
    arguments
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn row<'a>(report: &'a Value, codec: &str) -> &'a Value {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["codec"] == codec).unwrap_or_else(|| panic!("no row {codec} in {report}"))
}

#[test]
fn a_full_precision_cache_changes_nothing_and_fewer_bits_change_more() {
    let codecs = "f32,int8,int4-min,int2-min,rotated:int4-min";
    let report = run(kv(&tiny_llama(), &["--codec", codecs, "--context", "192", "--tokens", "382", "--json"])).json();
    for key in [
        "codec",
        "bits_nominal",
        "bytes_per_token",
        "perplexity",
        "kl",
        "attn_err_mean",
        "attn_err_worst_head",
        "attend_speedup_vs_f16",
        "append_gb_s",
    ] {
        assert!(!row(&report, "int8")[key].is_null(), "{key} of {report}");
    }
    let plain = row(&report, "f32");
    assert!(number(&plain["kl"]) < 1e-7, "{plain}");
    assert!(number(&plain["attn_err_worst_head"]) < 1e-6, "sums in another order: {plain}");
    let reference = number(&report["reference"]["perplexity"]);
    assert!((number(&plain["perplexity"]) / reference - 1.0).abs() < 1e-5, "{plain} beside {reference}");
    for key in ["kl", "attn_err_mean"] {
        let of = |codec| number(&row(&report, codec)[key]);
        assert!(of("int8") < of("int4-min") / 4.0, "{key}: {report}");
        assert!(of("int4-min") < of("int2-min") / 2.0, "{key}: {report}");
        assert!(of("rotated:int4-min") < of("int4-min"), "{key}: {report}");
    }
    // 5 layers of 2 · 128 elements, 4 bits and 32 bits a head of 64.
    let four = row(&report, "int4-min");
    assert_eq!(number(&four["bits_nominal"]), 4.5, "{four}");
    for length in ["1k", "8k", "32k"] {
        let bytes = number(&four["bytes_per_token"][length]);
        assert!((720.0..750.0).contains(&bytes), "{bytes} at {length}");
    }
}

#[test]
fn factors_of_eight_bits_change_little_and_only_where_codes_are_multiplied() {
    let of = |factors: &str| {
        let more = ["--codec", "f32,int4-min", "--context", "128", "--tokens", "127", "--factors", factors, "--json"];
        let report = run(kv(&tiny_llama(), &more)).json();
        ["f32", "int4-min"].map(|codec| number(&row(&report, codec)["attn_err_mean"]))
    };
    let ([plain, fine], [other_plain, coarse]) = (of("16"), of("8"));
    assert_eq!(plain, other_plain, "floats are multiplied as they are");
    let cache = "int4-min".parse::<KvMethod>().unwrap().cache(
        KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 32, dim_v: 32 },
        KeyStorage::PostRope,
        KvPolicy::default(),
        None,
    );
    assert_eq!(fine != coarse, cache.unwrap().attends_on_codes(), "{fine} and {coarse}");
    assert!((fine / coarse - 1.0).abs() < 0.02, "{fine} and {coarse}");
}

#[test]
fn windows_and_sinks_are_counted_and_help() {
    let run = |more: &[&str]| {
        let base = ["--codec", "int2-min", "--context", "128", "--tokens", "254", "--json"];
        run(kv(&tiny_llama(), &[&base, more].concat())).json()["rows"][0].clone()
    };
    let (without, with) = (run(&[]), run(&["--window", "64", "--sinks", "4"]));
    assert!(number(&with["kl"]) < 0.5 * number(&without["kl"]), "{with} beside {without}");
    let more = number(&with["bytes_per_token"]["1k"]) - number(&without["bytes_per_token"]["1k"]);
    // 68 tokens of 5 · 256 elements have 16 instead of 2.5 bits.
    assert!((more - 68.0 * 1280.0 * 13.5 / 8.0 / 1024.0).abs() < 2.0, "{more} bytes a token more");
}

#[test]
fn keys_before_the_rotary_turn_give_the_same_attention() {
    let codec = ["--codec", "f32", "--context", "96", "--tokens", "95", "--json", "--pre-rope"];
    let report = run(kv(&tiny_llama(), &codec)).json();
    assert!(number(&report["rows"][0]["kl"]) < 1e-6, "{report}");
    assert!(number(&report["rows"][0]["attn_err_worst_head"]) < 1e-5, "{report}");
}

#[test]
fn a_budget_is_distributed_kept_and_better_than_flat_codes() {
    let folder = tempfile::tempdir().expect("a folder");
    let calib = other_text(folder.path());
    let calib = calib.to_str().expect("a path");
    let (context, budget) = (512, 520_000);
    let (context_text, budget_text) = (context.to_string(), budget.to_string());
    let report = run(kv(
        &tiny_llama(),
        &[
            "--calib",
            calib,
            "--calib-tokens",
            "2048",
            "--budget",
            &budget_text,
            "--codec",
            "int2-min",
            "--context",
            &context_text,
            "--tokens",
            "511",
            "--json",
        ],
    ))
    .json();
    let schedule = report["schedule"].as_array().expect("a schedule");
    assert_eq!(schedule.len(), 5, "{report}");
    let total: f64 = schedule.iter().map(|line| number(&line["bytes"])).sum();
    assert!(total <= f64::from(budget), "{total}");
    for line in schedule {
        let steps = line["shrinks"].as_array().expect("steps");
        let last = steps.last().map_or(16.0, |step| number(&step["bits"]));
        assert!(last >= number(&line["final_bits"]), "no layer goes below its width: {line}");
        assert!(steps.is_sorted_by_key(|step| step["tokens"].as_u64()), "{line}");
    }
    let row = report["rows"].as_array().and_then(|rows| rows.last()).expect("a row");
    assert!(row["codec"].as_str().is_some_and(|name| name.starts_with("pm-kvq in ")), "{row}");
    assert!(row["bytes_per_token"]["32k"].is_null(), "the budget is for {context} tokens: {row}");
    let flat = &report["rows"][0];
    assert!(number(&row["kl"]) < 0.2 * number(&flat["kl"]), "{row} beside {flat}");
    let text =
        run(kv(&tiny_llama(), &["--calib", calib, "--calib-tokens", "600", "--budget", "1KiB", "--context", "64"]));
    text.fails_with_hint(1, &["pm-kvq"], "larger budget");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("m");
    write_llama(&model, 1);
    run(kv(&model, &["--codec", "skvq:2"])).fails_with_hint(2, &["skvq:2", "calibration"], "--calib");
    run(kv(&model, &["--budget", "1MiB"])).fails_with_hint(2, &["pm-kvq"], "--calib");
    run(kv(&model, &["--codec", "kiwi:2"])).fails_with_hint(2, &["kiwi:2"], "leanbits kv --help");
    run(kv(&model, &["--budget", "many"])).fails(2, &["--budget"]);
    run(kv(&model, &["--factors", "12"])).fails(2, &["--factors", "8 or 16"]);
    run(kv(&model, &["--codec", "int4-min", "--context", "1"])).fails(2, &["--context"]);
    run(kv(&folder.path().join("none"), &[])).fails(1, &["none"]);
    run(args!["kv", model, "--text", folder.path().join("none")]).fails_with_hint(1, &["none"], "path");
    let recurrent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-rwkv7");
    run(kv(&recurrent, &["--codec", "int8"])).fails(1, &["recurrent"]);
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "too short").expect("a file");
    run(kv(&model, &["--codec", "2d:4", "--calib", short.to_str().expect("a path")])).fails_with_hint(
        1,
        &["short.txt"],
        "longer text",
    );
}

#[test]
fn the_table_and_the_picture_show_every_codec() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, calib, plot) = (folder.path().join("m"), other_text(folder.path()), folder.path().join("kv.svg"));
    write_llama(&model, 2);
    let (calib, plot_name) = (calib.to_str().expect("a path"), plot.to_str().expect("a path"));
    let found = run(kv(
        &model,
        &["--calib", calib, "--calib-tokens", "640", "--context", "64", "--tokens", "63", "--plot", plot_name],
    ));
    assert_eq!(found.code, 0, "{}", found.stderr);
    let picture = std::fs::read_to_string(plot).expect("a picture");
    for codec in ["f16", "kivi:2", "2d:4", "skvq:2/ternary"] {
        assert!(found.stdout.contains(codec), "{codec} is missing in {}", found.stdout);
        assert!(picture.contains(codec), "{codec} is missing in the picture");
    }
}

/// A recipe that names a cache, in a file.
fn recipe(folder: &Path, kv_cache: &str) -> PathBuf {
    let path = folder.join("recipe.toml");
    let text = format!("format = \"int8\"\n[calibration]\nwindows = 4\ntokens = 64\n[kv_cache]\n{kv_cache}\n");
    std::fs::write(&path, text).expect("a recipe");
    path
}

fn compress(folder: &Path, model: &Path, kv_cache: &str) -> PathBuf {
    let out = folder.join("out");
    let calib = other_text(folder);
    let found = run(args!["compress", model, "-o", out, "--recipe", recipe(folder, kv_cache), "--calib", calib]);
    assert_eq!(found.code, 0, "{}", found.stderr);
    out
}

#[test]
fn a_folder_carries_its_cache_and_eval_and_kv_use_it() {
    carries("skvq:2");
}

#[test]
fn a_folder_carries_maps_that_were_trained_in_place_of_the_rows_they_were_trained_on() {
    let trained = carries("cskv:0.5@int4-min+trained");
    let closed = carries("cskv:0.5@int4-min");
    assert!(trained < closed, "{trained} bytes of maps, {closed} of rows");
}

/// Checks a folder with a cache of this method; returns the bytes of its parameters.
fn carries(method: &str) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("m");
    write_llama(&model, 2);
    let cache = format!("method = \"{method}\"\nkeys = \"before-rope\"\nsinks = 2\nwindow = 8");
    let out = compress(folder.path(), &model, &cache);
    assert!(out.join("kv_cache.safetensors").is_file(), "parameters lie beside the weights");
    let config = std::fs::read_to_string(out.join("config.json")).expect("a configuration");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let named = &config["quantization_config"]["kv_cache"];
    assert_eq!((&named["method"], &named["window"]), (&method.into(), &8.into()), "{config}");

    let eval = |model: &Path| {
        run(args!["eval", model, "--text", heldout(), "--context", "64", "--tokens", "126", "--json"]).json()
    };
    let with = eval(&out);
    assert_eq!(with["kv_cache"], method, "{with}");
    let measured = run(kv(&out, &["--context", "64", "--tokens", "126", "--json"])).json();
    let first = &measured["rows"][0];
    assert_eq!(first["codec"], method, "the folder's own cache comes first: {measured}");
    assert_eq!(first["perplexity"], with["perplexity"], "eval reads through the same cache");
    assert!(number(&first["kl"]) > 1e-6, "{first}");

    // Without the cache the folder is as it would have been.
    let mut without = config.clone();
    without["quantization_config"].as_object_mut().expect("an object").remove("kv_cache");
    std::fs::write(out.join("config.json"), without.to_string()).expect("a configuration");
    let plain = eval(&out);
    assert_eq!(plain["perplexity"], measured["reference"]["perplexity"], "the reference has a full-precision cache");
    assert!(plain["kv_cache"].is_null(), "{plain}");
    std::fs::metadata(out.join("kv_cache.safetensors")).expect("parameters").len()
}

#[test]
fn a_compression_with_a_cache_gives_the_same_bytes_for_any_number_of_threads() {
    let mut files = Vec::new();
    for threads in ["1", "3"] {
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("m");
        write_llama(&model, 1);
        let (out, calib) = (folder.path().join("out"), other_text(folder.path()));
        let recipe = recipe(folder.path(), "method = \"2d:4\"");
        let found =
            run(args!["compress", model, "-o", out, "--recipe", recipe, "--calib", calib, "--threads", threads]);
        assert_eq!(found.code, 0, "{}", found.stderr);
        files.push(std::fs::read(out.join("kv_cache.safetensors")).expect("parameters"));
    }
    assert!(files[0] == files[1], "statistics depend on the number of threads");
}

#[test]
fn budgets_of_layers_are_stored_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("m");
    write_llama(&model, 3);
    let out = compress(folder.path(), &model, "method = \"pm-kvq\"\nbudget = 60000\ntokens = 300");
    let config = std::fs::read_to_string(out.join("config.json")).expect("a configuration");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let budgets = config["quantization_config"]["kv_cache"]["layer_budgets"].as_array().expect("budgets");
    assert_eq!(budgets.len(), 3, "{config}");
    assert!(budgets.iter().map(number).sum::<f64>() <= 60000.0, "{config}");
    let report = run(kv(&out, &["--context", "64", "--tokens", "63", "--json"])).json();
    assert!(report["schedule"].as_array().is_some_and(|lines| lines.len() == 3), "{report}");
    let text = std::fs::read(heldout()).expect("a text");
    let long = folder.path().join("long.txt");
    std::fs::write(&long, &text[..900]).expect("a file");
    run(args!["eval", out, "--text", long, "--context", "800"]).fails(1, &["budget"]);
}

#[test]
fn damaged_parameters_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("m");
    write_llama(&model, 1);
    let out = compress(folder.path(), &model, "method = \"2d:4\"");
    let path = out.join("kv_cache.safetensors");
    let whole = std::fs::read(&path).expect("parameters");
    let eval = || run(args!["eval", out, "--text", heldout(), "--context", "64", "--tokens", "63"]);
    assert_eq!(eval().code, 0, "the folder is whole");

    let file = leanbits::io::safetensors::SafetensorsFile::open(&path).expect("a file");
    let header = file.header();
    let nan_at = |name: &str| {
        usize::try_from(header.data_start() + header.get(name).expect("a tensor").range.start).expect("small")
    };
    let mut nan = whole.clone();
    let at = nan_at("layers.0.keys.mean");
    nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, nan).expect("a file");
    eval().fails_with_hint(1, &["kv_cache.safetensors", "layers.0.keys.mean", "NaN"], "compress the model again");

    let renamed = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).expect("there");
        let mut other = whole.clone();
        other[at..at + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, other).expect("a file");
    };
    renamed("layers.0.values.max", "layers.0.values.mux");
    eval().fails(1, &["layers.0.values.max", "missing"]);
    renamed("kv_cache.version\":\"1\"", "kv_cache.version\":\"7\"");
    eval().fails(1, &["kv_cache.version"]);
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("a file");
    eval().fails(1, &["kv_cache.safetensors"]);
    std::fs::remove_file(&path).expect("removed");
    eval().fails(1, &["kv_cache.safetensors", "missing"]);

    let config = std::fs::read_to_string(out.join("config.json")).expect("a configuration");
    for (from, to, word) in
        [("\"2d:4\"", "\"4d:2\"", "4d:2"), ("\"kv_cache.safetensors\"", "\"../m/model.safetensors\"", "../m/")]
    {
        // The recipe is told too, after the cache.
        let at = config.find(from).expect("there");
        let changed = format!("{}{to}{}", &config[..at], &config[at + from.len()..]);
        std::fs::write(out.join("config.json"), changed).expect("a file");
        eval().fails(1, &["config.json", word]);
    }
}

#[test]
fn a_cache_that_a_model_or_layout_cannot_have_is_refused_before_any_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, out) = (folder.path().join("m"), folder.path().join("out"));
    write_llama(&model, 1);
    let calib = other_text(folder.path());
    let compress = |cache: &str, more: &[&str]| {
        let base = args!["compress", model, "-o", out, "--recipe", recipe(folder.path(), cache)];
        run(base.into_iter().chain(more.iter().map(OsString::from)))
    };
    let calib = calib.to_str().expect("a path");
    compress("method = \"skvq:2\"", &[]).fails_with_hint(2, &["skvq:2"], "--calib");
    compress("method = \"int8\"", &["--calib", calib]).fails(2, &["no calibration text"]);
    compress("method = \"int8\"", &["--layout", "compressed-tensors"]).fails(1, &["compressed-tensors"]);
    compress("method = \"int99\"", &[]).fails(1, &["recipe.toml", "line"]);
    compress("method = \"int8\"\nbudget = 5000", &[]).fails(1, &["kv_cache.budget"]);
    compress("method = \"pm-kvq\"\nbudget = 5", &["--calib", calib]).fails_with_hint(1, &["pm-kvq"], "larger budget");
    assert!(!out.exists(), "nothing was written");
}
