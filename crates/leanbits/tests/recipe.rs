//! Recipes: what is read, what is refused, what is decided.

use leanbits::{Choice, NamePattern, PatternError, Reason, Recipe, RecipeError, presets};

fn format(name: &str) -> Choice {
    Choice::Quantize(name.parse().expect("a format"))
}

#[test]
fn patterns_match_whole_names_and_stars_cross_dots() {
    let matches = |pattern: &str, name: &str| pattern.parse::<NamePattern>().expect("a pattern").matches(name);
    assert!(matches("*", "anything.at/all"), "a star alone");
    assert!(matches("model.*.weight", "model.layers.0.mlp.weight"), "a star crosses dots");
    assert!(!matches("model.*.weight", "model.layers.0.mlp.weight_scale"), "the end counts");
    assert!(matches("layer.?.w", "layer.7.w") && !matches("layer.?.w", "layer.17.w"), "one character");
    assert!(matches("?", "ü") && matches("*é*", "caféteria"), "characters, not bytes");
    assert!(matches("a*b*c", "a-b-b-c") && !matches("a*b*c", "a-c-b"), "stars give back what they took");
    assert_eq!("".parse::<NamePattern>(), Err(PatternError::Empty), "nothing");
    assert_eq!("x".repeat(513).parse::<NamePattern>(), Err(PatternError::TooLong { len: 513 }), "too much");
    let many = format!("{}b", "*a".repeat(255));
    assert!(!matches(&many, &"a".repeat(10_000)), "a hostile pattern ends in reasonable time");
}

#[test]
fn the_first_rule_that_matches_decides_then_the_exclusions_then_the_default() {
    let recipe = Recipe::from_toml(
        "format = \"int4-g128\"\n[[rule]]\nmatch = \"*.down_proj.*\"\nformat = \"int8\"\n\
         [[rule]]\nmatch = [\"*.0.*\", \"lm_head.weight\"]\nformat = \"mxfp8\"\n[[rule]]\nmatch = \"*.q_proj.*\"\nformat = \"keep\"\n",
    )
    .expect("a recipe");
    let decide = |name: &str, shape: &[usize]| {
        let decision = recipe.decide(name, shape);
        (decision.choice, decision.reason)
    };
    let matrix = [256, 256];
    assert_eq!(decide("model.layers.0.mlp.down_proj.weight", &matrix), (format("int8"), Reason::Rule(1)), "first");
    assert_eq!(decide("model.layers.0.mlp.up_proj.weight", &matrix), (format("mxfp8"), Reason::Rule(2)), "second");
    assert_eq!(decide("lm_head.weight", &matrix), (format("mxfp8"), Reason::Rule(2)), "rules beat exclusions");
    assert_eq!(decide("model.layers.1.self_attn.q_proj.weight", &matrix), (Choice::Keep, Reason::Rule(3)), "kept");
    assert_eq!(decide("model.layers.1.mlp.up_proj.weight", &matrix), (format("int4-g128"), Reason::Default), "default");
    assert_eq!(decide("model.layers.1.mlp.up_proj.bias", &[256]), (Choice::Keep, Reason::FewAxes), "a bias");
}

#[test]
fn embeddings_heads_norms_and_routers_stay_unless_the_recipe_says_otherwise() {
    let mut recipe = Recipe::uniform("int8".parse().expect("a format"));
    let names = [
        ("model.embed_tokens.weight", Reason::Embedding),
        ("transformer.wte.weight", Reason::Embedding),
        ("lm_head.weight", Reason::Head),
        ("model.layers.0.input_layernorm.weight", Reason::Norm),
        ("transformer.h.0.ln_1.weight", Reason::Norm),
        ("model.layers.0.mlp.gate.weight", Reason::Router),
        ("model.layers.0.block_sparse_moe.gate.weight", Reason::Router),
        ("model.layers.0.block_sparse_moe.router.layer.weight", Reason::Router),
    ];
    for (name, reason) in names {
        let decision = recipe.decide(name, &[64, 64]);
        assert_eq!((decision.choice, decision.reason), (Choice::Keep, reason), "{name}");
    }
    // The gate of a feed-forward network, and that of RWKV's time mixing.
    for gate in ["model.layers.0.mlp.gate_proj.weight", "blocks.0.att.gate.weight"] {
        assert_eq!(recipe.decide(gate, &[64, 64]).reason, Reason::Default, "{gate} is no router");
    }
    recipe.default_exclusions = false;
    assert_eq!(recipe.decide("lm_head.weight", &[64, 64]).choice, format("int8"), "exclusions switched off");
}

#[test]
fn mistakes_are_refused_with_their_line() {
    let refused = |text: &str| Recipe::from_toml(text).expect_err("a mistake");
    let line = |text: &str| match refused(text) {
        RecipeError::Syntax { line, reason } => (line, reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(line("format = \"int8\"\nformt = \"int4\"\n").0, 2, "an unknown key");
    let (at, reason) = line("# comment\nformat = \"int99\"\n");
    assert!(at == 2 && reason.contains("int99"), "an unknown format: {at} {reason}");
    assert!(
        line("format = \"int8\"\n[[rule]]\nmatch = \"\"\nformat = \"int4\"\n").1.contains("empty"),
        "an empty pattern"
    );
    assert!(line("format = \"int8\"\nmethod = \"magic\"\n").1.contains("magic"), "an unknown method");
    assert!(line("[[rule]]\nmatch = \"*\"\nformat = \"int4\"\n").1.contains("format"), "no default format");
    assert!(
        matches!(refused(&format!("format = {}", "[".repeat(100_000))), RecipeError::Syntax { .. }),
        "deep nesting"
    );
    let long = format!("format = \"int8\" #{}", "x".repeat(leanbits::MAX_RECIPE_BYTES));
    assert!(matches!(refused(&long), RecipeError::TooLong { .. }), "too long");
    let rules = "[[rule]]\nmatch = []\nformat = \"int4\"\n";
    assert_eq!(
        refused(&format!("format = \"int8\"\n{rules}")),
        RecipeError::NoPattern { rule: 1 },
        "a rule for nothing"
    );
}

#[test]
fn recipes_and_presets_read_back_what_they_print() {
    for preset in presets() {
        let recipe = Recipe::preset(preset.name).expect(preset.name);
        assert_eq!(Recipe::from_toml(&recipe.to_toml()).as_ref(), Ok(&recipe), "{}", preset.name);
    }
    assert!(matches!(Recipe::preset("huge"), Err(RecipeError::UnknownPreset { .. })), "no such preset");
}
