//! WKVQuant: weights and cache of every layer learned together, stored, and read back.

mod common;

use common::{Stop, contents, heldout, program, run, tiny_llama, write_llama};
use leanbits::{CompressOptions, Error, Recipe, RecipeError, Silent, compress};
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A model, a text to calibrate on, and another one.
struct Place {
    folder: tempfile::TempDir,
    model: PathBuf,
    calibration: PathBuf,
}

impl Place {
    fn new(layers: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (model, calibration) = (folder.path().join("m"), folder.path().join("calibration.txt"));
        write_llama(&model, layers);
        let text = std::fs::read(heldout()).expect("the held-out text");
        std::fs::write(&calibration, &text[text.len() / 2..]).expect("written");
        Self { folder, model, calibration }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, method: &str, cache: &str) -> CompressOptions {
        let text = format!(
            "format = \"int3-g32-asym\"\nmethod = {method}\n[calibration]\nwindows = 6\ntokens = 48\n\
             [kv_cache]\nmethod = \"{cache}\"\nsinks = 2\nwindow = 4\n"
        );
        let mut options = CompressOptions::new(Recipe::from_toml(&text).expect("a recipe"));
        options.calibration = Some(self.calibration.clone());
        options
    }
}

const LEARNED: &str = "{ name = \"wkvquant\", blocks = 2, epochs = 2, clip_rate = 0.05, smoothing_rate = 0.01 }";

fn eval(model: &Path) -> Value {
    run(args!["eval", model, "--text", heldout(), "--context", "64", "--tokens", "126", "--json"]).json()
}

#[test]
fn a_folder_carries_what_was_learned_and_eval_and_kv_use_it() {
    let place = Place::new(3);
    let report =
        compress(&place.model, place.path("out"), &place.options(LEARNED, "2d:4"), &mut Silent).expect("a folder");
    let linears: Vec<_> = report.tensors.iter().filter(|tensor| tensor.name.contains("_proj.weight")).collect();
    assert_eq!(linears.len(), 21);
    for linear in &linears {
        assert_eq!(linear.method, "wkvquant", "{linear:?}");
        assert!(linear.note.as_ref().is_some_and(|note| note.contains("after learning")), "{linear:?}");
    }
    let path = place.path("out").join("kv_cache.safetensors");
    let file = leanbits::io::safetensors::SafetensorsFile::open(&path).expect("parameters");
    for layer in 0..3 {
        let of = |part: &str| file.get(&format!("layers.{layer}.{part}")).expect(part).to_f32().expect("floats");
        assert_ne!(of("keys.learned.scale"), of("keys.deviation"), "it left the closed form");
        assert_ne!(of("values.learned.shift"), of("values.mean"));
    }

    let with = eval(&place.path("out"));
    assert_eq!(with["kv_cache"], "2d:4", "{with}");
    let measured = ["kv", "--text", "--context", "64", "--tokens", "126", "--json"];
    let measured = args![measured[0], place.path("out"), measured[1], heldout()];
    let measured = measured.into_iter().chain(["--context", "64", "--tokens", "126", "--json"].map(Into::into));
    let measured = run(measured.collect::<Vec<_>>()).json();
    assert_eq!(measured["rows"][0]["perplexity"], with["perplexity"], "eval reads through the same cache");

    // The same statistics without what was learned are another cache.
    let whole = std::fs::read(&path).expect("parameters");
    let renamed = |from: &str, to: &str| {
        let mut other = whole.clone();
        let mut at = 0;
        while let Some(found) = other[at..].windows(from.len()).position(|window| window == from.as_bytes()) {
            at += found;
            other[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
        std::fs::write(&path, other).expect("written");
    };
    renamed("learned.shift", "learnt_.shift");
    assert_ne!(eval(&place.path("out"))["perplexity"], with["perplexity"]);
    // A part alone is damage.
    renamed("learned.scale", "learnt_.scale");
    let broken = run(args!["eval", place.path("out"), "--text", heldout(), "--context", "64", "--tokens", "63"]);
    broken.fails(1, &["learned.scale", "missing"]);
}

#[test]
fn the_same_folder_comes_out_for_any_number_of_threads() {
    let place = Place::new(2);
    let recipe = place.path("recipe.toml");
    std::fs::write(&recipe, place.options(LEARNED, "2d-range:2").recipe.to_toml()).expect("written");
    let folder = |threads: &str| {
        let out = place.path(threads);
        let arguments = args![
            "compress",
            place.model,
            "-o",
            out,
            "--recipe",
            recipe,
            "--calib",
            place.calibration,
            "--threads",
            threads
        ];
        let output = program().env("RAYON_NUM_THREADS", threads).args(arguments).output().expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        contents(&out)
    };
    assert!(folder("1") == folder("3"), "the folder depends on the number of threads");
}

#[test]
fn an_interrupted_run_keeps_what_earlier_layers_learned() {
    let place = Place::new(3);
    let options = place.options(LEARNED, "2d:4");
    compress(&place.model, place.path("whole"), &options, &mut Silent).expect("a whole run");
    for after in [13, 22] {
        let out = place.path("out");
        let stopped = catch_unwind(AssertUnwindSafe(|| compress(&place.model, &out, &options, &mut Stop(after))));
        assert!(stopped.is_err(), "not interrupted after {after} tensors");
        let report = compress(&place.model, &out, &options, &mut Silent).expect("the resumed run");
        assert!(report.run.is_some_and(|run| run.resumed_tensors >= 9), "a layer was done");
        assert!(contents(&out) == contents(&place.path("whole")), "another folder after {after} tensors");
        std::fs::remove_dir_all(&out).expect("removed");
    }
}

#[test]
fn what_it_is_not_for_is_refused_before_any_work() {
    let recipe = |text: &str| Recipe::from_toml(text).expect_err(text);
    let cache = "[kv_cache]\nmethod = \"2d:4\"\n";
    let base = "format = \"int4-g128-asym\"\nmethod = \"wkvquant\"\n";
    for (text, name) in [
        (base.to_owned(), "kv_cache"),
        (format!("{base}[kv_cache]\nmethod = \"kivi:2\"\n"), "kv_cache.method"),
        (format!("{base}[kv_cache]\nmethod = \"pm-kvq\"\n"), "kv_cache.method"),
        (format!("{base}{cache}keys = \"before-rope\"\n"), "kv_cache.keys"),
        (format!("{base}activations = \"int8\"\n{cache}"), "activations"),
        (
            format!(
                "format = \"int8\"\n{cache}[[rule]]\nmatch = \"*.q_proj.*\"\nformat = \"int4\"\nmethod = \"wkvquant\"\n"
            ),
            "method",
        ),
        (base.replace("\"wkvquant\"", "{ name = \"wkvquant\", blocks = 0 }") + cache, "blocks"),
        (base.replace("\"wkvquant\"", "{ name = \"wkvquant\", clip_rate = 2.0 }") + cache, "clip_rate"),
    ] {
        let error = recipe(&text);
        assert!(matches!(&error, RecipeError::BadSetting { name: found, .. } if *found == name), "{text}: {error}");
    }
    let place = Place::new(1);
    let refused = |model: &Path, format: &str| {
        let mut options = place.options(LEARNED, "2d:4");
        options.recipe.format = format.parse().expect("a format");
        let error = compress(model, place.path("out"), &options, &mut Silent).expect_err(format);
        assert!(!place.path("out").exists(), "nothing was begun");
        error
    };
    let symmetric = refused(&place.model, "int4-g32").to_string();
    assert!(symmetric.contains("asymmetric"), "{symmetric}");
    let mixture = refused(&tiny_llama().with_file_name("tiny-moe"), "int4-g32-asym");
    assert!(matches!(&mixture, Error::Model(_)) && mixture.to_string().contains("dense"), "{mixture}");
    let recurrent = refused(&tiny_llama().with_file_name("tiny-rwkv7"), "int4-g32-asym");
    assert!(matches!(recurrent, Error::NoKvCache { .. }), "{recurrent}");
}

#[test]
fn three_bits_that_were_learned_are_closer_than_those_of_rounding_to_nearest() {
    let place = Place::new(1);
    let kl = |method: &str, name: &str| {
        let preset = Recipe::preset("wkvquant-4").expect("the preset").to_toml();
        let text = preset.replace("\"wkvquant\"", method).replace("int4", "int3").replace("2d:4", "2d-range:4");
        let mut recipe = Recipe::from_toml(&text).expect("a recipe");
        (recipe.calibration.windows, recipe.calibration.tokens) = (6, 128);
        let mut options = CompressOptions::new(recipe);
        options.calibration = Some(place.calibration.clone());
        compress(tiny_llama(), place.path(name), &options, &mut Silent).expect(name);
        let more = ["--context", "256", "--tokens", "510", "--json"].map(Into::into);
        let base = args!["eval", place.path(name), "--against", tiny_llama(), "--text", heldout()];
        run(base.into_iter().chain(more).collect::<Vec<_>>()).json()["kl"].as_f64().expect("a number")
    };
    let nearest = kl("\"rtn\"", "nearest");
    let learned = kl("{ name = \"wkvquant\", blocks = 2, epochs = 2, clip_rate = 0.02 }", "learned");
    assert!(learned < nearest, "{learned} beside {nearest}");
}
