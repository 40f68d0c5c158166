//! `compress`: sizes, layouts, reports, and folders that can be evaluated.

mod common;

use common::{contents, heldout, names, run, tiny_llama, write_llama, write_safetensors};
use leanbits::io::{Checkpoint, CheckpointLayout};
use leanbits::{CompressOptions, Recipe, Silent};
use serde_json::Value;
use std::path::Path;

fn json_of(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(name)).expect("a file")).expect("JSON")
}

#[test]
fn the_report_has_its_keys_and_the_dry_run_knew_the_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    for format in ["int4-g128", "mxfp4", "nvfp4", "fp8-e4m3", "int3-g64-asym"] {
        let dry = run(args!["compress", tiny_llama(), "-o", out, "--format", format, "--dry-run", "--json"]).json();
        assert!(!out.exists(), "a dry run writes nothing");
        let wet = run(args!["compress", tiny_llama(), "-o", out, "--format", format, "--json"]).json();
        for key in ["bytes", "bits_per_weight", "tensors", "seconds", "peak_rss_bytes", "packing_fraction", "rules"] {
            assert!(!wet[key].is_null(), "{format}: {key}");
        }
        assert_eq!((&dry["bytes"], &dry["file_bytes"]), (&wet["bytes"], &wet["file_bytes"]), "{format}");
        let file = std::fs::metadata(out.join("model.safetensors")).expect("a file").len();
        assert_eq!(wet["file_bytes"], file, "{format}");
        let checkpoint = Checkpoint::open(&out).expect("a checkpoint");
        let stored: u64 = checkpoint.entries().iter().map(|entry| entry.bytes).sum();
        assert_eq!(wet["bytes"], stored, "{format}");
        for tensor in wet["tensors"].as_array().expect("tensors") {
            for key in ["name", "format", "method", "bytes"] {
                assert!(!tensor[key].is_null(), "{key} of {tensor}");
            }
            let linear = tensor["name"].as_str().is_some_and(|name| name.contains("proj"));
            assert_eq!(tensor["format"] == format, linear, "{tensor}");
            assert_eq!(tensor["sqnr_db"].is_number(), linear, "{tensor}");
            assert_eq!(tensor["method"], if linear { "rtn" } else { "keep" }, "{tensor}");
        }
        let expected = [
            "config.json",
            "generation_config.json",
            "golden.json",
            "model.safetensors",
            "report.json",
            "report.md",
            "report.svg",
            "train-log.json",
        ];
        assert_eq!(names(&out), expected, "{format}: everything is there and nothing else");
        assert_eq!(json_of(&out, "report.json")["tensors"], wet["tensors"], "{format}");
        assert!(json_of(&out, "report.json")["seconds"].is_null(), "the folder does not depend on time");
        assert_eq!(json_of(&out, "config.json")["quantization_config"]["quant_method"], "leanbits", "{format}");
        std::fs::remove_dir_all(&out).expect("removed");
    }
}

#[test]
fn a_compressed_folder_is_evaluated_like_the_original() {
    let folder = tempfile::tempdir().expect("a folder");
    let eval = |model: &Path| {
        let arguments =
            args!["eval", model, "--text", heldout(), "--tokens", "2044", "--against", tiny_llama(), "--json"];
        run(arguments).json()
    };
    let itself = eval(&tiny_llama());
    let original = itself["perplexity"].as_f64().expect("a number");
    assert!((1.8..3.0).contains(&original), "{original}");
    assert_eq!((itself["tokens"].as_u64(), itself["top1"].as_f64()), (Some(2044), Some(1.0)), "{itself}");
    assert!(itself["kl"].as_f64().expect("a number").abs() < 1e-9, "{itself}");
    for (format, limit) in [("int8", 1.002), ("fp8-e4m3", 1.01), ("int4-g32-asym", 1.05), ("mxfp4", 1.15)] {
        let (out, plain) = (folder.path().join(format), folder.path().join(format!("{format}-plain")));
        run(args!["compress", tiny_llama(), "-o", out, "--format", format, "--json"]).json();
        let found = eval(&out);
        let perplexity = found["perplexity"].as_f64().expect("a number");
        assert!(perplexity / original < limit, "{format}: {perplexity} against {original}");
        assert!(found["kl"].as_f64().expect("a number") > 0.0, "{format}: {found}");
        assert_eq!(found["against_perplexity"], original, "{format}");
        // Back in floats the model predicts the very same.
        run(args!["dequantize", out, "-o", plain, "--json"]).json();
        let again = eval(&plain);
        assert_eq!(again["perplexity"], found["perplexity"], "{format}");
        assert!(json_of(&plain, "config.json").get("quantization_config").is_none(), "{format}");
    }
}

#[test]
fn a_recipe_may_quantize_the_embedding_that_is_also_the_head() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let report = run(args!["compress", tiny_llama(), "-o", out, "--recipe", "small", "--json"]).json();
    let embedding =
        report["tensors"].as_array().expect("tensors").iter().find(|t| t["name"] == "model.embed_tokens.weight");
    assert_eq!(embedding.expect("the embedding")["format"], "int8", "the preset says so");
    let found = run(args!["eval", out, "--text", heldout(), "--tokens", "1022", "--json"]).json();
    assert!(found["perplexity"].as_f64().expect("a number") < 3.0, "{found}");
}

#[test]
fn the_rules_that_were_followed_are_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = folder.path().join("r.toml");
    std::fs::write(&recipe, "format = \"int4-g32\"\n[[rule]]\nmatch = \"*.layers.0.*\"\nformat = \"keep\"\n")
        .expect("a file");
    let out = folder.path().join("out");
    let text = run(args!["compress", tiny_llama(), "-o", out, "--recipe", recipe]).stdout;
    for word in ["rule 1", "default", "int4-g32", "embedding", "norm", "bits per quantized weight", "leanbits eval"] {
        assert!(text.contains(word), "{word:?} is missing in\n{text}");
    }
    let markdown = String::from_utf8(contents(&out)["report.md"].clone()).expect("text");
    assert!(markdown.contains("model.layers.1.mlp.down_proj.weight") && markdown.contains("[[rule]]"), "{markdown}");
    let svg = String::from_utf8(contents(&out)["report.svg"].clone()).expect("text");
    assert!(svg.starts_with("<svg") && svg.contains("down_proj"), "a picture with a legend");
}

#[test]
fn the_same_folder_comes_out_for_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut folders = Vec::new();
    for threads in ["1", "2", "3"] {
        let out = folder.path().join(threads);
        let output = common::program()
            .env("RAYON_NUM_THREADS", threads)
            .args(args!["compress", tiny_llama(), "-o", out, "--recipe", "balanced", "--quiet"])
            .output();
        assert!(output.expect("a run").status.success(), "{threads} threads");
        folders.push(contents(&out));
    }
    assert!(folders[0] == folders[1] && folders[1] == folders[2], "the folders differ");
}

#[test]
fn other_programs_layout_is_written_and_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    for format in ["int4-g128", "int8", "fp8-e4m3", "mxfp4", "nvfp4", "int4-g128-asym"] {
        let out = folder.path().join(format);
        let arguments = ["--layout", "compressed-tensors", "--format", format, "--json"];
        let report =
            run(args!["compress", tiny_llama(), "-o", out].into_iter().chain(arguments.map(Into::into))).json();
        let config = json_of(&out, "config.json");
        assert_eq!(config["quantization_config"]["quant_method"], "compressed-tensors", "{format}");
        let checkpoint = Checkpoint::open(&out).expect("a checkpoint");
        assert_eq!(checkpoint.layout(), CheckpointLayout::CompressedTensors, "{format}");
        let stored: u64 = checkpoint.entries().iter().map(|entry| entry.bytes).sum();
        assert_eq!(report["bytes"], stored, "{format}");
        let found =
            run(args!["eval", out, "--text", heldout(), "--tokens", "511", "--against", tiny_llama(), "--json"]).json();
        assert!(found["kl"].as_f64().is_some_and(|kl| kl > 0.0 && kl < 0.2), "{format}: {found}");
    }
    let refused = run(args![
        "compress",
        tiny_llama(),
        "-o",
        folder.path().join("x"),
        "--layout",
        "compressed-tensors",
        "-f",
        "nf4"
    ]);
    refused.fails_with_hint(1, &["proj", "compressed-tensors", "nf4"], "--layout leanbits");
    assert!(!folder.path().join("x").exists(), "nothing is left behind");
}

#[test]
fn sharded_models_are_read_and_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, out, packed) = (folder.path().join("m"), folder.path().join("out"), folder.path().join("one"));
    write_llama(&model, 3);
    let mut options = CompressOptions::new(Recipe::uniform("int8".parse().expect("a format")));
    leanbits::compress(&model, &packed, &options, &mut Silent).expect("one file");
    options.max_shard_bytes = 20_000;
    let report = leanbits::compress(&model, &out, &options, &mut Silent).expect("several files");
    let files: Vec<String> = names(&out).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(files.len() > 2 && files[0].starts_with("model-00001-of-"), "{files:?}");
    let index = json_of(&out, "model.safetensors.index.json");
    assert!(index["weight_map"].as_object().is_some_and(|map| map.len() > report.tensors.len()), "sections are listed");
    let (one, many) = (Checkpoint::open(&packed).expect("one"), Checkpoint::open(&out).expect("many"));
    for entry in one.entries() {
        assert_eq!(
            one.read_f32(&entry.name).expect("one"),
            many.read_f32(&entry.name).expect("many"),
            "{}",
            entry.name
        );
    }
    // What was written in shards is read in shards.
    let plain = folder.path().join("plain");
    run(args!["dequantize", out, "-o", plain, "--json"]).json();
    assert_eq!(Checkpoint::open(&plain).expect("plain").entries().len(), one.entries().len(), "all tensors");
    std::fs::remove_file(out.join(&files[1])).expect("removed");
    run(args!["eval", out, "--text", heldout()]).fails(1, &[&files[1]]);
}

#[test]
fn bad_models_are_refused_by_name_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, out) = (folder.path().join("m"), folder.path().join("out"));
    let compress = || run(args!["compress", model, "-o", out, "--format", "int8"]);
    compress().fails(1, &["m"]);
    write_llama(&model, 1);
    let mut tensors = common::llama_tensors(1);
    let spoilt = tensors.iter().position(|(spec, _)| spec.name.contains("up_proj")).expect("a tensor");
    tensors[spoilt].1[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
    write_safetensors(&model.join("model.safetensors"), &tensors);
    compress().fails_with_hint(1, &["up_proj", "element 100", "NaN"], "keep");
    assert!(!out.exists(), "nothing is left behind");
    write_llama(&model, 1);
    std::fs::write(model.join("config.json"), "{\"model_type\": ").expect("a file");
    compress().fails(1, &["config.json"]);
    std::fs::remove_file(model.join("config.json")).expect("removed");
    compress().fails_with_hint(1, &["config.json"], "leanbits quantize");
    assert!(!out.exists(), "nothing is left behind");
    write_llama(&model, 1);
    run(args!["compress", model, "-o", model, "--format", "int8"]).fails(1, &["both the input and the output"]);
    let recipe = folder.path().join("r.toml");
    std::fs::write(&recipe, "format = \"int8\"\nrules = 3\n").expect("a file");
    run(args!["compress", model, "-o", out, "--recipe", recipe]).fails_with_hint(
        1,
        &["r.toml", "line 2", "rules"],
        "--help",
    );
    run(args!["compress", model, "-o", out, "--recipe", "huge"]).fails_with_hint(1, &["huge"], "balanced");
    assert!(!out.exists(), "nothing is left behind");
    run(args!["compress", model, "-o", out, "--format", "int8", "--json"]).json();
    run(args!["compress", out, "-o", folder.path().join("twice"), "--format", "int4"]).fails_with_hint(
        1,
        &["proj", "int8", "quantized already"],
        "dequantize",
    );
    assert!(!folder.path().join("twice").exists(), "nothing is left behind");
}

#[test]
fn folders_that_hold_something_else_are_not_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, out) = (folder.path().join("m"), folder.path().join("out"));
    write_llama(&model, 1);
    std::fs::create_dir(&out).expect("a folder");
    std::fs::write(out.join("thesis.txt"), "precious").expect("a file");
    run(args!["compress", model, "-o", out, "--format", "int8"]).fails_with_hint(1, &["not empty"], "OUT_DIR");
    assert_eq!(names(&out), ["thesis.txt"], "untouched");
    std::fs::remove_file(out.join("thesis.txt")).expect("removed");
    run(args!["compress", model, "-o", out, "--format", "int8", "--json"]).json();
    let before = contents(&out);
    run(args!["compress", model, "-o", out, "--format", "int8"]).fails_with_hint(1, &["finished"], "OUT_DIR");
    assert_eq!(contents(&out), before, "untouched");
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    write_llama(&folder.path().join("m"), 1);
    // A folder of the system that refuses everybody.
    let place = "/proc/leanbits-test";
    run(args!["compress", folder.path().join("m"), "-o", place, "--format", "int8"]).fails(1, &[place]);
    run(args!["quantize", folder.path().join("m"), "-o", place, "--format", "int8"]).fails(1, &[place]);
    run(args!["dequantize", folder.path().join("m"), "-o", place]).fails(1, &["none of"]);
}
