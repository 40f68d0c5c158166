//! Low-rank and vector-coded weights: recipes, folders, reports.

mod common;

use common::{Stop, contents, heldout, program, write_llama};
use leanbits::io::safetensors::{DType, TensorSpec, serialize};
use leanbits::io::{Checkpoint, Stored};
use leanbits::{
    Calibration, CompressOptions, CompressReport, DequantizeOptions, Error, EvalOptions, InspectOptions, Recipe,
    RecipeError, Silent, Weights, compress, dequantize, evaluate, inspect, presets,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A small random model, and a text.
struct Place {
    folder: tempfile::TempDir,
    model: PathBuf,
    text: PathBuf,
}

impl Place {
    fn new(layers: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (model, text) = (folder.path().join("model"), folder.path().join("text.txt"));
        write_llama(&model, layers);
        let words = std::fs::read(heldout()).expect("the held-out text");
        std::fs::write(&text, &words[..8_000]).expect("written");
        Self { folder, model, text }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, recipe: Recipe, windows: usize, tokens: usize) -> CompressOptions {
        let calibrated = recipe.looks_at_activations().is_some();
        let mut options = CompressOptions::new(recipe);
        if calibrated {
            let mut calibration = Calibration::default();
            (calibration.windows, calibration.tokens) = (windows, tokens);
            options.recipe.calibration = calibration;
            options.calibration = Some(self.text.clone());
        }
        options
    }

    fn compress(&self, name: &str, toml: &str) -> CompressReport {
        let options = self.options(recipe(toml), 8, 64);
        compress(&self.model, self.path(name), &options, &mut Silent).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn perplexity(&self, folder: &Path) -> f64 {
        let options = EvalOptions { tokens: Some(256), ..EvalOptions::default() };
        evaluate(folder, &self.text, &options, &mut Silent).expect("evaluated").perplexity
    }
}

fn recipe(text: &str) -> Recipe {
    Recipe::from_toml(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// One recipe a form, small enough for matrices of 32 columns.
const FORMS: [(&str, &str); 11] = [
    ("pair", "format = \"f16\"\nmethod = { name = \"svd\", ranks = { rank = 6 } }\n"),
    ("pair-int4", "format = \"int4-g32\"\nmethod = { name = \"svd-llm\", ranks = { kept = 0.8 } }\n"),
    ("scaled", "format = \"bf16\"\nmethod = { name = \"asvd\", ranks = { removed = 0.4 } }\n"),
    ("fisher-rows", "format = \"f16\"\nmethod = { name = \"fwsvd\", ranks = { rank = 6 } }\n"),
    ("fisher", "format = \"f16\"\nmethod = { name = \"asvd\", source = \"fisher_abs_mean\", ranks = { rank = 6 } }\n"),
    ("corrected", "format = \"int3-g32\"\nmethod = { name = \"corrected\", base = \"gptq\", rank = 2 }\n"),
    (
        "corrected-f32",
        "format = \"int3-g32\"\nmethod = { name = \"corrected\", rank = 2, factors = \"f32\", metric = \"svd\" }\n",
    ),
    ("kmeans", "format = \"vectors\"\nmethod = { name = \"kmeans\", dim = 2, bits = 4, weighted = false }\n"),
    ("gptvq", "format = \"vectors\"\nmethod = { name = \"gptvq\", rows = 16 }\n"),
    ("e8p", "format = \"vectors\"\nmethod = { name = \"e8p\", bits = 4 }\n"),
    ("pcdvq", "format = \"vectors\"\nmethod = { name = \"pcdvq\", direction_bits = 6, feedback = false }\n"),
];

/// The recipe of a form.
fn form(name: &str) -> &'static str {
    FORMS.iter().find(|(form, _)| *form == name).expect("a form of this name").1
}

#[test]
fn every_form_round_trips_through_a_folder() {
    let place = Place::new(2);
    let original = Checkpoint::open(&place.model).expect("the model");
    let before = place.perplexity(&place.model);
    for (name, toml) in FORMS {
        let dry = CompressOptions { dry_run: true, ..place.options(recipe(toml), 8, 64) };
        let planned = compress(&place.model, place.path("nowhere"), &dry, &mut Silent).expect(name);
        let report = place.compress(name, toml);
        assert_eq!((planned.bytes, planned.file_bytes), (report.bytes, report.file_bytes), "{name}: exact in advance");

        let weights = Weights::open(place.path(name)).expect(name);
        let entries = weights.checkpoint().entries();
        assert_eq!(entries.iter().map(|entry| entry.bytes).sum::<u64>(), report.bytes, "{name}: all is counted");
        let mut composed = 0;
        for entry in entries.iter().filter(|entry| entry.stored == Stored::Composed) {
            composed += 1;
            let linear = weights.linear(&entry.name).expect(name).expect("a linear");
            let rotation = if name == "e8p" || name == "pcdvq" { 8 } else { 0 };
            let bytes = linear.footprint().total_bytes();
            assert!(bytes == entry.bytes || bytes == entry.bytes + rotation, "{name}: {bytes} of {}", entry.bytes);
            // The report measured what is stored.
            let (values, stored) = (original.read_f32(&entry.name).expect("read"), linear.to_dense().expect("dense"));
            let noise: f64 = values.iter().zip(&stored).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let signal: f64 = values.iter().map(|a| f64::from(*a).powi(2)).sum();
            let told = report.tensors.iter().find(|tensor| tensor.name == entry.name).and_then(|t| t.sqnr_db);
            let found = 10.0 * (signal / noise).log10();
            assert!((told.expect("measured") - found).abs() < 1e-4, "{name}: {}: {told:?} and {found}", entry.name);
        }
        assert_eq!(composed, 14, "{name}: all linears");

        let after = place.perplexity(&place.path(name));
        assert!(after.is_finite() && after < 4.0 * before, "{name}: {before} to {after}");
        let plain = place.path(&format!("{name}-plain"));
        let decoded = dequantize(place.path(name), &plain, &DequantizeOptions::default(), &mut Silent).expect(name);
        assert_eq!(decoded.decoded, 14, "{name}");
        assert_eq!(place.perplexity(&plain), after, "{name}: the decoded folder computes the same");
        let seen = inspect(place.path(name), &InspectOptions::default(), &mut Silent).expect(name);
        let seen = seen.tensors.iter().find(|tensor| tensor.name.ends_with("q_proj.weight")).expect("a query");
        let told = report.tensors.iter().find(|tensor| tensor.name == seen.name).expect("in the report");
        assert_eq!(seen.stored, told.format, "{name}: inspect says how it is stored");
        assert!(seen.quantized && seen.distribution.is_some(), "{name}: {seen:?}");
    }
}

#[test]
fn reports_have_ranks_spectra_and_the_use_of_code_books() {
    let place = Place::new(1);
    let pair = place.compress("pair", form("pair"));
    let query = pair.tensors.iter().find(|tensor| tensor.name.ends_with("q_proj.weight")).expect("a query");
    assert_eq!((query.rank, query.format.as_str()), (Some(6), "rank 6 in f16"), "the rank is told");
    let spectrum = query.spectrum_db.as_ref().expect("a spectrum");
    assert!(spectrum.len() == 32 && spectrum[0] == 0.0 && spectrum.is_sorted_by(|a, b| a >= b), "{spectrum:?}");
    let files = contents(&place.path("pair"));
    let svg = String::from_utf8(files["report-spectra.svg"].clone()).expect("text");
    assert!(svg.contains("q_proj") && svg.contains("polyline"), "curves");
    assert!(String::from_utf8(files["report.md"].clone()).expect("text").contains("## Ranks"), "a table");

    let vectors = place.compress("kmeans", form("kmeans"));
    let codes = vectors.tensors.iter().filter_map(|tensor| tensor.codes);
    assert_eq!(codes.clone().count(), 7, "every linear has code books");
    for codes in codes {
        assert!(codes.used <= codes.entries && codes.entropy_bits <= 4.0 && codes.entropy_bits > 2.0, "{codes:?}");
    }
    assert!(!contents(&place.path("kmeans")).contains_key("report-spectra.svg"), "nothing to draw");
}

#[test]
fn a_rank_above_break_even_keeps_the_weight_whole_and_says_so() {
    let place = Place::new(1);
    for size in ["rank = 32", "rank = 400", "kept = 1.0"] {
        let toml = format!("format = \"f16\"\nmethod = {{ name = \"svd\", ranks = {{ {size} }} }}\n");
        let report = place.compress(&size.replace(' ', ""), &toml);
        let query = report.tensors.iter().find(|tensor| tensor.name.ends_with("q_proj.weight")).expect("a query");
        assert_eq!(query.format, "f16", "{size}");
        assert!(query.note.as_ref().is_some_and(|note| note.contains("whole")), "{size}: {query:?}");
    }
}

#[test]
fn a_budget_is_kept_and_more_of_it_never_loses_more() {
    let place = Place::new(2);
    let of = |bits: &str| {
        let toml = format!(
            "format = \"int4-g32\"\nmethod = {{ name = \"svd-llm\", ranks = {{ bits_per_weight = {bits} }}, \
             menu = {{ dense = [\"int4-g32\", \"int3-g32\"], factors = [\"int4-g32\"], corrected = [\"int3-g32\"], \
             correction_ranks = [1, 2] }} }}\n"
        );
        let report = place.compress(&format!("budget-{bits}"), &toml);
        assert!(report.bits_per_weight <= bits.parse::<f64>().expect("a number"), "{bits}: {}", report.bits_per_weight);
        assert!(place.perplexity(&place.path(&format!("budget-{bits}"))).is_finite(), "{bits}");
        report.tensors.iter().filter_map(|tensor| tensor.loss).sum::<f64>()
    };
    let losses = [of("3.2"), of("4.0"), of("5.5")];
    assert!(losses.is_sorted_by(|a, b| a >= b), "{losses:?}");
    let toml = "format = \"int4-g32\"\nmethod = { name = \"svd\", ranks = { bytes = 10 } }\n";
    let refused = compress(&place.model, place.path("x"), &place.options(recipe(toml), 4, 64), &mut Silent);
    assert!(matches!(refused, Err(Error::LowRank { .. })), "a budget below the smallest plans: {refused:?}");
}

#[test]
fn gradients_weigh_rows_and_no_other_error_of_weights_is_below_that_of_plain_factors() {
    let place = Place::new(2);
    let sqnr = |report: &CompressReport| -> Vec<f64> { report.tensors.iter().filter_map(|t| t.sqnr_db).collect() };
    let plain = sqnr(&place.compress("svd", form("pair")));
    for (name, more) in [("fwsvd", ""), ("fwsvd", ", axis = \"columns\""), ("asvd", ", source = \"fisher\"")] {
        let toml = format!("format = \"f16\"\nmethod = {{ name = \"{name}\", ranks = {{ rank = 6 }}{more} }}\n");
        let weighted = place.compress(&format!("{name}{}", more.len()), &toml);
        let found = sqnr(&weighted);
        assert_eq!(found.len(), plain.len());
        let below = found.iter().zip(&plain).filter(|(a, b)| **a < **b - 1e-3).count();
        assert!(below == found.len(), "{toml}: {found:?} beside {plain:?}");
        assert!(weighted.tensors.iter().all(|tensor| tensor.note.is_none()), "{toml}: nothing fell back");
    }
    let budget = "format = \"int4-g32\"\nmethod = { name = \"fwsvd\", ranks = { bits_per_weight = 4.0 } }\n";
    assert!(place.compress("budget", budget).bits_per_weight <= 4.0);
}

#[test]
fn recipes_that_make_no_sense_are_refused() {
    for (toml, word) in [
        ("format = \"vectors\"\n", "format"),
        ("format = \"int4\"\nmethod = \"kmeans\"\n", "format"),
        ("format = \"int4\"\n[[rule]]\nmatch = \"*\"\nformat = \"vectors\"\n", "format"),
        ("format = \"f16\"\nmethod = { name = \"svd\", ranks = { kept = 1.5 } }\n", "ranks"),
        ("format = \"f16\"\nmethod = { name = \"svd\", ranks = { rank = 0 } }\n", "ranks"),
        ("format = \"f16\"\nmethod = \"fwsvd\"\n[transform]\nsmooth = 0.5\n", "method"),
        (
            "format = \"int4\"\nmethod = \"awq\"\n[[rule]]\nmatch = \"*.o_proj.weight\"\nformat = \"f16\"\nmethod = \"fwsvd\"\n",
            "method",
        ),
        ("format = \"f16\"\nmethod = { name = \"fwsvd\", alpha = -1.0 }\n", "alpha"),
        ("format = \"f16\"\nmethod = { name = \"svd-llm\", menu = { dense = [\"int4\"] } }\n", "menu"),
        ("format = \"f16\"\nmethod = { name = \"corrected\", base = \"svd\" }\n", "base"),
        ("format = \"vectors\"\nmethod = { name = \"e8p\", bits = 3 }\n", "bits"),
        ("format = \"vectors\"\nmethod = { name = \"kmeans\", dim = 17 }\n", "dim"),
        ("format = \"vectors\"\nmethod = { name = \"pcdvq\", direction_bits = 20 }\n", "direction_bits"),
        ("format = \"int3\"\nmethod = { name = \"rwkvquant\", clip = [0.9, 0.1] }\n", "clip"),
        (
            "format = \"int3\"\nmethod = { name = \"rwkvquant\", assign = { rule = \"scalar-share\", share = 2.0 } }\n",
            "assign.share",
        ),
    ] {
        match Recipe::from_toml(toml) {
            Err(RecipeError::BadSetting { name, .. }) => assert_eq!(name, word, "{toml}"),
            other => panic!("{toml}: {other:?}"),
        }
    }
    for unknown in [
        "format = \"f16\"\nmethod = { name = \"svd\", ratio = 0.5 }\n",
        "format = \"f16\"\nmethod = { name = \"svd\", ranks = { kept = 0.5, removed = 0.5 } }\n",
        "format = \"vectors\"\nmethod = { name = \"pcdvq\", bits = 2 }\n",
    ] {
        assert!(matches!(Recipe::from_toml(unknown), Err(RecipeError::Syntax { .. })), "{unknown}");
    }
}

#[test]
fn every_preset_reads_back_as_it_was_written() {
    for preset in presets() {
        let recipe = Recipe::preset(preset.name).expect(preset.name);
        assert_eq!(Recipe::from_toml(&recipe.to_toml()).expect(preset.name), recipe, "{}", preset.name);
        assert_eq!(Recipe::load(preset.name).expect(preset.name), recipe, "{}: by name", preset.name);
    }
}

#[test]
fn methods_refuse_what_they_cannot_do_before_any_work() {
    let place = Place::new(1);
    let refused = |toml: &str| {
        let error = compress(&place.model, place.path("out"), &place.options(recipe(toml), 4, 64), &mut Silent);
        assert!(!place.path("out").exists(), "{toml}: nothing was begun");
        error.err().unwrap_or_else(|| panic!("{toml} was accepted"))
    };
    let dim = refused("format = \"vectors\"\nmethod = { name = \"kmeans\", dim = 5, weighted = false }\n");
    assert!(matches!(dim, Error::VectorQuant { .. }), "{dim}");
    let share = refused("format = \"f16\"\nmethod = { name = \"svd\", ranks = { kept = 0.001 } }\n");
    assert!(matches!(share, Error::LowRank { .. }), "{share}");
    let rule =
        "format = \"int8\"\n[[rule]]\nmatch = \"*.input_layernorm.weight\"\nformat = \"f16\"\nmethod = \"svd\"\n";
    let norm = refused(rule);
    assert!(matches!(norm, Error::Unsuitable { method: "svd", .. }), "{norm}");
    let mut options = place.options(recipe(form("pair")), 4, 64);
    options.layout = leanbits::StorageLayout::CompressedTensors;
    let layout = compress(&place.model, place.path("out"), &options, &mut Silent);
    assert!(matches!(layout, Err(Error::Layout { .. })), "{layout:?}");
}

#[test]
fn an_interrupted_run_and_any_number_of_threads_give_the_same_bytes() {
    let place = Place::new(3);
    for name in ["pair-int4", "fisher-rows", "corrected", "gptvq", "e8p"] {
        let toml = form(name);
        place.compress(name, toml);
        let whole = contents(&place.path(name));
        for after in [1, 20] {
            let out = place.path(&format!("{name}-{after}"));
            let options = place.options(recipe(toml), 8, 64);
            let run = || compress(&place.model, &out, &options, &mut Stop(after));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "{name}: interrupted after {after}");
            compress(&place.model, &out, &options, &mut Silent).expect(name);
            assert_eq!(contents(&out), whole, "{name}: resumed after {after}");
        }
        let file = place.path(&format!("{name}.toml"));
        std::fs::write(&file, format!("{toml}[calibration]\nwindows = 8\ntokens = 64\n")).expect("written");
        for threads in ["1", "2"] {
            let out = place.path(&format!("{name}-threads-{threads}"));
            let mut command = program();
            command.args(["compress".as_ref(), place.model.as_os_str(), "--recipe".as_ref(), file.as_os_str()]);
            command.args(["--calib".as_ref(), place.text.as_os_str(), "-o".as_ref(), out.as_os_str()]);
            let output = command.env("RAYON_NUM_THREADS", threads).output().expect("the program starts");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(contents(&out), whole, "{name}: {threads} threads");
        }
    }
}

#[test]
fn damaged_parts_are_errors_that_name_the_tensor() {
    let place = Place::new(1);
    let error_of = |metadata: &str, part: (&str, DType, &[usize], usize)| {
        let (name, dtype, shape, bytes) = part;
        let spec = TensorSpec::new(format!("w.{name}"), dtype, shape);
        let metadata = [("leanbits.version", "2"), ("leanbits.composed.w", metadata)];
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let file = place.path("damaged.safetensors");
        std::fs::write(&file, serialize(&[(spec, &vec![0; bytes][..])], metadata).expect("a file")).expect("written");
        let error = Weights::open(&file).and_then(|weights| weights.read_f32("w")).expect_err("it was read");
        assert!(matches!(&error, Error::Composed { tensor, .. } if tensor == "w"), "{error:?}");
        let seen = inspect(&file, &InspectOptions::default(), &mut Silent);
        assert!(matches!(seen, Err(Error::Composed { .. })), "inspect: {seen:?}");
        error.to_string()
    };
    let json = |kind: &str, part: &str, settings: &str| {
        format!("{{\"kind\":\"{kind}\",\"version\":1,\"shape\":[8,8],\"parts\":[\"{part}\"],\"settings\":{settings}}}")
    };
    let f32s = ("a", DType::F32, &[8, 8][..], 256);
    assert!(error_of(&json("origami", "a", "null"), f32s).contains("origami"), "an unknown kind");
    assert!(error_of(&json("low-rank", "a", "null"), f32s).contains("\"b\" is missing"), "no right factor");
    let codes = ("codes", DType::U8, &[16][..], 16);
    let e8p = "{\"books\":{\"kind\":\"e8p\"},\"row_scales\":false}";
    assert!(error_of(&json("vectors", "codes", "{}"), codes).contains("settings"), "no settings");
    assert!(error_of(&json("vectors", "codes", e8p), ("codes", DType::U8, &[15], 15)).contains("codes"), "too short");
    assert!(error_of(&json("vectors", "codes", e8p), ("codes", DType::F32, &[4], 16)).contains("codes"), "floats");
    let scaled = e8p.replace("false", "true");
    assert!(error_of(&json("vectors", "codes", &scaled), codes).contains("scales"), "no scales");
    let turned = e8p.replace("\"row_scales\"", "\"rotation\":{\"block\":3,\"seed\":0},\"row_scales\"");
    assert!(error_of(&json("vectors", "codes", &turned), codes).contains('3'), "blocks that do not divide");
    let polar = "{\"books\":{\"kind\":\"polar\",\"config\":{\"direction_bits\":99}},\"row_scales\":false}";
    assert!(error_of(&json("vectors", "codes", polar), codes).contains("99"), "absurd bits");
    let learned = "{\"books\":{\"kind\":\"learned\",\"dim\":2,\"bits\":4,\"values\":\"f16\",\"rows\":0,\"columns\":8},\
                   \"row_scales\":false}";
    assert!(error_of(&json("vectors", "codes", learned), codes).contains("group"), "groups of nothing");
}

/// The embedded models, on a little text.
fn embedded(model: &str, toml: &str, windows: usize, text: &Path, out: &Path) -> (CompressReport, f64) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(model);
    let mut options = CompressOptions::new(recipe(toml));
    if options.recipe.looks_at_activations().is_some() {
        (options.recipe.calibration.windows, options.recipe.calibration.tokens) = (windows, 256);
        options.calibration = Some(text.to_owned());
    }
    let report = compress(&model, out, &options, &mut Silent).expect("compressed");
    let found = EvalOptions { tokens: Some(1022), against: Some(model), ..EvalOptions::default() };
    let kl = evaluate(out, heldout(), &found, &mut Silent).expect("evaluated").against.expect("compared").kl;
    (report, kl)
}

#[test]
fn whitening_loses_less_than_plain_factors_and_a_correction_gains() {
    let place = Place::new(1);
    let text = std::fs::read(heldout()).expect("the held-out text");
    std::fs::write(&place.text, &text[40_000..]).expect("written");
    let of = |name: &str, toml: &str| embedded("tiny-llama", toml, 6, &place.text, &place.path(name));
    let (_, plain) = of("svd", "format = \"f16\"\nmethod = { name = \"svd\", ranks = { kept = 0.8 } }\n");
    let (_, whitened) = of("llm", "format = \"f16\"\nmethod = { name = \"svd-llm\", ranks = { kept = 0.8 } }\n");
    assert!(whitened < 0.6 * plain, "SVD-LLM {whitened}, SVD {plain}");
    let (_, rounded) = of("int3", "format = \"int3-g64\"\n");
    let (_, corrected) = of("corrected", "format = \"int3-g64\"\nmethod = { name = \"corrected\", rank = 16 }\n");
    assert!(corrected < 0.7 * rounded, "corrected {corrected}, rounded {rounded}");
    let (lattice, e8p) = of("e8p", "format = \"vectors\"\nmethod = { name = \"e8p\", feedback = false }\n");
    assert!(lattice.bits_per_weight < 2.1 && e8p < 2.5, "{} bits, KL {e8p}", lattice.bits_per_weight);
}

#[test]
fn rwkvquant_decides_by_matrix_and_codes_multipliers() {
    let place = Place::new(1);
    let text = std::fs::read(heldout()).expect("the held-out text");
    std::fs::write(&place.text, &text[40_000..]).expect("written");
    let toml = "format = \"int3-g64-asym\"\nmethod = { name = \"rwkvquant\", vector = { bits = 6, iterations = 8 } }\n";
    let (report, kl) = embedded("tiny-rwkv7", toml, 4, &place.text, &place.path("out"));
    assert!(kl < 0.6, "KL {kl}");
    let decided: Vec<_> = report.tensors.iter().filter(|tensor| tensor.uniformity.is_some()).collect();
    let vector = decided.iter().filter(|tensor| tensor.method == "gptvq").count();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    let expected = decided.len() - (0.9 * decided.len() as f64).round() as usize;
    assert_eq!(vector, expected, "one of ten in vector codes, of {}", decided.len());
    let least = |method: &str| {
        let of = decided.iter().filter(|tensor| tensor.method == method).filter_map(|tensor| tensor.uniformity);
        of.map(|proxies| proxies.coarse).fold((f64::INFINITY, 0.0_f64), |(a, b), x| (a.min(x), b.max(x)))
    };
    assert!(least("gptq").0 < least("gptvq").1, "scalar codes for the evenest");
    let multipliers = report.tensors.iter().filter(|tensor| tensor.reason == "element-wise multiplier");
    let coded: Vec<_> = multipliers.filter(|tensor| tensor.codes.is_some()).collect();
    assert_eq!(coded.len(), 4 * 5, "x_rwkvag, k_k, k_a, r_k and the channel mix of four layers");
    assert!(coded.iter().all(|tensor| (tensor.bits_per_weight - 4.25).abs() < 1e-9), "three bits and the books");
    assert!(contents(&place.path("out")).contains_key("report-proxies.svg"), "the scatter of proxies");
}
