//! Mixtures of experts: formats under a budget, text that the model writes itself, times that are measured, experts skipped.

mod common;

use common::{heldout, tiny_llama};
use leanbits::moe_quant::{self, EbssConfig, Scheme};
use leanbits::{
    CompressOptions, CompressReport, Error, EvalOptions, ProfileOptions, Recipe, RecipeError, Silent, SkipBy,
    SkipOptions, compress, evaluate, measure_profile, sample_calibration,
};
use std::path::{Path, PathBuf};

fn tiny_moe() -> PathBuf {
    tiny_llama().with_file_name("tiny-moe")
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = std::fs::read(heldout()).expect("the held-out text");
        std::fs::write(folder.path().join("calibration.txt"), &text[..20_000]).expect("written");
        std::fs::write(folder.path().join("text.txt"), &text[40_000..]).expect("written");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self, mut recipe: Recipe) -> CompressOptions {
        (recipe.calibration.windows, recipe.calibration.tokens) = (4, 256);
        if let Some(experts) = &mut recipe.experts {
            experts.tokens = 256;
        }
        let mut options = CompressOptions::new(recipe);
        options.calibration = Some(self.path("calibration.txt"));
        options
    }

    fn compress(&self, name: &str, recipe: Recipe) -> CompressReport {
        compress(tiny_moe(), self.path(name), &self.options(recipe), &mut Silent).expect(name)
    }

    fn kl(&self, name: &str) -> f64 {
        let options = EvalOptions { tokens: Some(1022), against: Some(tiny_moe()), ..EvalOptions::default() };
        let report = evaluate(self.path(name), self.path("text.txt"), &options, &mut Silent).expect(name);
        report.against.expect("a comparison").kl
    }
}

/// Bytes and bits a weight of routed experts.
fn experts(report: &CompressReport) -> (u64, f64) {
    let experts = || report.tensors.iter().filter(|tensor| tensor.name.contains(".experts."));
    let (bytes, elements): (u64, u64) =
        (experts().map(|t| t.bytes).sum(), experts().map(|t| t.shape.iter().product::<usize>() as u64).sum());
    (bytes, 8.0 * bytes as f64 / elements as f64)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

#[test]
fn presets_for_mixtures_keep_their_budget_and_evaluate() {
    let place = Place::new();
    for (name, most) in
        [("moe-gptq-2", 2.3), ("moe-gptq-3", 3.3), ("moequant-4", 4.2), ("mxmoe-2.25", 2.25), ("mxmoe-3.25", 3.25)]
    {
        let recipe = Recipe::load(name).expect(name);
        let allocated = recipe.experts.is_some();
        let report = place.compress(name, recipe);
        let (bytes, bits) = experts(&report);
        assert!(bits <= most && bits > most - 0.25, "{name}: {bits}");
        let kept = report.tensors.iter().filter(|tensor| !tensor.name.contains(".experts."));
        assert!(
            kept.clone().count() > 0 && kept.clone().all(|tensor| tensor.bytes == tensor.source_bytes),
            "{name}: all else stays"
        );
        let kl = place.kl(name);
        assert!(kl > 0.0 && kl < 2.0, "{name}: {kl}");
        assert_eq!(place.path(name).join("experts.svg").exists(), allocated, "{name}");
        if allocated {
            let told = json(&place.path(name).join("experts.json"));
            assert_eq!(told["bytes"], bytes, "{name}");
            assert_eq!(told["layers"].as_array().map(Vec::len), Some(5), "{name}");
            let tokens: Vec<u64> =
                told["layers"][0]["tokens"].as_array().expect("counts").iter().flat_map(|n| n.as_u64()).collect();
            assert_eq!(tokens.iter().sum::<u64>(), 2 * 4 * 256, "{name}: two experts a token");
            assert!(
                report.recipe.experts.is_none() && report.recipe.rules.len() > 1,
                "{name}: rules say what was chosen"
            );
        }
    }
    assert!(place.kl("mxmoe-3.25") < place.kl("mxmoe-2.25"));
}

#[test]
fn a_recipe_of_what_was_chosen_gives_the_same_bytes() {
    let place = Place::new();
    let report = place.compress("chosen", Recipe::load("mxmoe-3.25").expect("a preset"));
    let again = Recipe::from_toml(&report.recipe.to_toml()).expect("a recipe");
    place.compress("again", again);
    let read = |name: &str| std::fs::read(place.path(name).join("model.safetensors")).expect("weights");
    assert!(read("chosen") == read("again"));
}

#[test]
fn text_that_the_model_writes_calibrates_it() {
    let place = Place::new();
    // At the paper's 1.2 the few experts of this model weigh next to nothing beside likelihood.
    let config = EbssConfig { tau: 0.05, sequences: 4, length: 96, ..EbssConfig::default() };
    let sampled = sample_calibration(tiny_moe(), &config, &mut Silent).expect("text");
    assert!(sampled.report.perplexity > 1.0 && sampled.report.perplexity < 3.0, "{:?}", sampled.report);
    let plain = EbssConfig { tau: f64::INFINITY, ..config };
    let plain = sample_calibration(tiny_moe(), &plain, &mut Silent).expect("text");
    assert!(sampled.report.imbalance < plain.report.imbalance, "{:?} and {:?}", sampled.report, plain.report);
    let file = place.path("calib.json");
    std::fs::write(&file, serde_json::to_vec(&sampled).expect("JSON")).expect("written");

    let mut options = place.options(Recipe::load("moequant-4").expect("a preset"));
    options.calibration = Some(file.clone());
    let report = compress(tiny_moe(), place.path("out"), &options, &mut Silent).expect("a run");
    let told = report.calibration.expect("a calibration");
    assert_eq!((told.windows, told.tokens), (4, 4 * 96));
    assert!(place.kl("out") < 1.0);

    std::fs::write(&file, "{}").expect("written");
    let refused = compress(tiny_moe(), place.path("none"), &options, &mut Silent);
    assert!(matches!(refused, Err(Error::Json { .. })), "{refused:?}");
    let refused = sample_calibration(tiny_llama(), &plain.config, &mut Silent);
    assert!(matches!(refused, Err(Error::Sampling { .. })), "a model without experts");
}

#[test]
fn gates_weigh_the_tokens_of_experts() {
    let place = Place::new();
    let with = |name: &str, power: &str| {
        let text = format!(
            "format = \"keep\"\nmethod = \"gptq\"\n[calibration]\ngate_power = \"{power}\"\n\
             [[rule]]\nmatch = \"*.layers.0.*\"\nformat = \"int4-row\"\n"
        );
        place.compress(name, Recipe::from_toml(&text).expect("a recipe"));
        let folder = leanbits::io::Checkpoint::open(place.path(name)).expect("a checkpoint");
        ["model.layers.0.mlp.experts.3.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"]
            .map(|tensor| folder.read_f32(tensor).expect(tensor))
    };
    let (plain, linear) = (with("plain", "ignored"), with("linear", "linear"));
    assert!(plain[0] != linear[0], "experts are weighted");
    assert!(plain[1] == linear[1], "attention is not");
}

#[test]
fn importance_that_was_measured_before_gives_the_same_rule() {
    let place = Place::new();
    let with = |importance: Option<PathBuf>| {
        let calibration = place.path("calibration.txt");
        let skip = SkipOptions { share: 0.5, calibration, tokens: 510, by: SkipBy::Importance, importance };
        let options = EvalOptions { tokens: Some(255), skip: Some(skip), ..EvalOptions::default() };
        evaluate(tiny_moe(), place.path("text.txt"), &options, &mut Silent)
    };
    let measured = with(None).expect("a report");
    let skipped = measured.skipped.clone().expect("skipped");
    let (report, list) = (place.path("report.json"), place.path("list.json"));
    std::fs::write(&report, serde_json::to_vec(&measured).expect("JSON")).expect("written");
    std::fs::write(&list, serde_json::to_vec(&skipped.importance).expect("JSON")).expect("written");
    for file in [report, list.clone()] {
        let again = with(Some(file)).expect("a report").skipped.expect("skipped");
        assert!((again.threshold / skipped.threshold - 1.0).abs() < 1e-9, "{again:?} and {skipped:?}");
        assert_eq!(again.share, skipped.share);
    }
    std::fs::write(&list, "[0, 0, 1, 0, 0]").expect("written");
    let late = with(Some(list.clone())).expect("a report").skipped.expect("skipped");
    assert_eq!(late.importance, [0.0, 0.0, 1.0, 0.0, 0.0], "the file decides");
    for (bad, json) in [("[1, 2]", false), ("[0, 0, 0, 0, 0]", false), ("{}", true), ("[1, 2, 3, 4, \"a\"]", true)] {
        std::fs::write(&list, bad).expect("written");
        let refused = with(Some(list.clone()));
        match refused {
            Err(Error::Json { .. }) if json => {}
            Err(Error::Experts { .. }) if !json => {}
            other => panic!("{bad}: {other:?}"),
        }
    }
}

#[test]
fn experts_without_tokens_are_treated_as_the_recipe_says() {
    let place = Place::new();
    // 24 tokens choose 48 times among 16 experts: in five layers some are left out.
    let with = |name: &str, policy: &str| {
        let text = format!(
            "format = \"keep\"\nmethod = \"gptq\"\n[calibration]\nunseen_experts = \"{policy}\"\n\
             [[rule]]\nmatch = \"*.experts.*\"\nformat = \"int3-g64-asym\"\n"
        );
        let mut options = place.options(Recipe::from_toml(&text).expect("a recipe"));
        (options.recipe.calibration.windows, options.recipe.calibration.tokens) = (1, 24);
        compress(tiny_moe(), place.path(name), &options, &mut Silent)
    };
    let (rounded, shared) = (with("rtn", "rtn").expect("a run"), with("shared", "shared-hessian").expect("a run"));
    let unseen = |report: &CompressReport| -> Vec<(String, String, Option<String>)> {
        let tensors = report.tensors.iter().filter(|tensor| tensor.calibration_tokens == Some(0));
        tensors.map(|tensor| (tensor.name.clone(), tensor.method.clone(), tensor.note.clone())).collect()
    };
    assert!(unseen(&rounded).len() > 3, "{:?}", unseen(&rounded));
    let names = |report: &CompressReport| unseen(report).into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    assert_eq!(names(&rounded)[0], names(&shared)[0], "the first layer sees the same");
    assert!(unseen(&rounded).iter().all(|(_, method, _)| method == "rtn"));
    for (name, method, note) in unseen(&shared) {
        assert_eq!(method, "gptq", "{name}");
        assert!(note.is_some_and(|note| note.contains("inputs of all experts")), "{name}");
    }
    let read = |folder: &str, name: &str| {
        let folder = leanbits::io::Checkpoint::open(place.path(folder)).expect("a checkpoint");
        folder.read_f32(name).expect(name)
    };
    let first = &names(&rounded)[0];
    assert!(read("rtn", first) != read("shared", first), "{first} was swept under another Hessian");
    assert!(read("rtn", first).iter().any(|weight| *weight != 0.0), "and is never zeroed");
    let refused = with("error", "error");
    let Err(Error::Experts { file, source }) = refused else { panic!("{refused:?}") };
    assert!(matches!(*source, moe_quant::Error::Uncalibrated { .. }), "{source}");
    assert!(file.display().to_string().contains(".experts."), "{}", file.display());
    let attention = "format = \"int4-g64\"\nmethod = \"gptq\"\n[calibration]\nunseen_experts = \"zero\"\n";
    assert!(Recipe::from_toml(attention).is_err(), "no such policy");
}

#[test]
fn measured_times_decide_where_r_says_so() {
    let place = Place::new();
    let schemes: Vec<Scheme> =
        ["int2-g128-asym", "int4-g128-asym", "int8"].map(|name| name.parse().expect(name)).to_vec();
    let options = ProfileOptions {
        rows: vec![1, 8],
        seconds: 0.0005,
        ..ProfileOptions::new(schemes, vec![[64, 192], [192, 64]])
    };
    let profile = measure_profile(&options, &mut Silent).expect("a profile");
    let file = place.path("profile.json");
    std::fs::write(&file, serde_json::to_vec(&profile).expect("JSON")).expect("written");
    let text = format!(
        "format = \"keep\"\n[experts]\nbits = 5.0\nr = 0.5\nprofile = {:?}\n\
         schemes = [\"int2-g128-asym\", \"int4-g128-asym\", \"int8\"]\n",
        file.display().to_string()
    );
    let recipe = Recipe::from_toml(&text).expect("a recipe");
    place.compress("timed", recipe.clone());
    assert!(json(&place.path("timed").join("experts.json"))["seconds"].as_f64().expect("a time") > 0.0);

    let other = String::from_utf8(std::fs::read(&file).expect("a file")).expect("text").replace("\"cpu\"", "\"gpu\"");
    std::fs::write(&file, other).expect("written");
    let refused = compress(tiny_moe(), place.path("none"), &place.options(recipe), &mut Silent);
    let Err(Error::Experts { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(matches!(*source, moe_quant::Error::OtherMachine { .. }), "{source}");
}

#[test]
fn impossible_budgets_recipes_and_models_are_refused() {
    let place = Place::new();
    let mut small = Recipe::load("mxmoe-2.25").expect("a preset");
    if let Some(experts) = &mut small.experts {
        experts.bits = Some(0.5);
    }
    let refused = compress(tiny_moe(), place.path("none"), &place.options(small), &mut Silent);
    let Err(Error::Experts { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("smallest reachable"), "{source}");
    let options = place.options(Recipe::load("mxmoe-2.25").expect("a preset"));
    let refused = compress(tiny_llama(), place.path("none"), &options, &mut Silent);
    assert!(matches!(refused, Err(Error::Experts { .. })), "a model without experts: {refused:?}");
    for bad in [
        "bits = 3.0\nbytes = 10",
        "",
        "bits = -1.0",
        "bits = 3.0\nschemes = []",
        "bits = 3.0\nschemes = [\"int8/int8\"]",
        "bits = 3.0\nr = 0.5",
        "bits = 3.0\nr = 2.0",
        "bits = 3.0\nunknown = 1",
    ] {
        let refused = Recipe::from_toml(&format!("format = \"keep\"\n[experts]\n{bad}\n"));
        assert!(
            matches!(refused, Err(RecipeError::BadSetting { .. } | RecipeError::Syntax { .. })),
            "{bad}: {refused:?}"
        );
    }
}

#[test]
fn skipping_experts_leaves_out_the_share_that_was_asked_for() {
    let place = Place::new();
    let with = |model: &Path, share: f64, by: SkipBy| {
        let calibration = place.path("calibration.txt");
        let skip = SkipOptions { share, calibration, tokens: 510, by, importance: None };
        let against = Some(tiny_moe());
        let options = EvalOptions { tokens: Some(1022), against, skip: Some(skip), ..EvalOptions::default() };
        evaluate(model, place.path("text.txt"), &options, &mut Silent)
    };
    let mut last = 0.0;
    for share in [0.2, 0.6] {
        let report = with(&tiny_moe(), share, SkipBy::Importance).expect("a report");
        let (skipped, kl) = (report.skipped.expect("skipped"), report.against.expect("compared").kl);
        assert!((skipped.share - share).abs() < 0.05, "{} of {share}", skipped.share);
        assert!((skipped.importance.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{:?}", skipped.importance);
        assert!(kl > last, "{kl} after {last}");
        last = kl;
    }
    let gate = with(&tiny_moe(), 0.6, SkipBy::Gate).expect("a report").skipped.expect("skipped");
    assert!(gate.importance.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", gate.importance);
    let all = with(&tiny_moe(), 1.0, SkipBy::Importance).expect("a report").skipped.expect("skipped");
    assert!(all.share > 0.98 && all.empty > 0.98, "{all:?}");

    for share in [0.0, -0.5, 1.5, f64::NAN] {
        let refused = with(&tiny_moe(), share, SkipBy::Importance);
        assert!(matches!(&refused, Err(Error::Experts { .. })), "{share}: {refused:?}");
    }
    let refused = with(&tiny_moe().with_file_name("tiny-llama"), 0.5, SkipBy::Importance);
    assert!(matches!(&refused, Err(Error::Experts { .. })), "{refused:?}");
}
