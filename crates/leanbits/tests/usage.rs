//! What the program says to people who call it: help, wrong usage, the list of formats.

mod common;

use common::run;

#[test]
fn every_verb_explains_itself_with_examples() {
    for verb in ["demo", "quantize", "dequantize", "compress", "eval", "kv", "bench", "inspect"] {
        let help = run([verb, "--help"]);
        assert_eq!(help.code, 0, "{verb}");
        for word in ["Usage: leanbits", "Examples:", "--json"] {
            assert!(help.stdout.contains(word), "{verb} --help lacks {word:?}");
        }
    }
    assert!(run(["--help"]).stdout.contains("leanbits demo"), "the first help names the first step");
}

#[test]
fn wrong_usage_is_one_line_and_a_hint_and_exit_code_two() {
    run(["compres", "x"]).fails_with_hint(2, &["compres"], "compress");
    run(["quantize", "in.safetensors", "-o", "out.safetensors"]).fails(2, &["--format"]);
    run(["quantize", "a", "--format", "int4-g0", "-o", "b"]).fails_with_hint(
        2,
        &["int4-g0", "group"],
        "leanbits formats",
    );
    run(["quantize", "a", "--format", "float12", "-o", "b"]).fails_with_hint(2, &["float12"], "leanbits formats");
    run(["compress", "a", "-o", "b"]).fails(2, &["--format", "--recipe"]);
    run(["compress", "a", "-o", "b", "--format", "int8", "--recipe", "safe"]).fails(2, &["cannot be used with"]);
    run(["eval", "a", "--text", "b", "--context", "1"]).fails(2, &["--context"]);
    run(["demo", "--threads", "0"]).fails(2, &["--threads"]);
    assert_eq!(run([] as [&str; 0]).code, 2, "no verb at all");
}

#[test]
fn a_calibration_text_that_nothing_would_use_is_refused() {
    let run = run(["compress", "a", "-o", "b", "--format", "int8", "--calib", "text.txt"]);
    run.fails_with_hint(2, &["rtn", "no calibration text"], "leave --calib out");
}

#[test]
fn with_json_a_failure_is_an_object_too() {
    for (arguments, code) in [(vec!["inspect", "no-such-file", "--json"], 1), (vec!["eval", "--json"], 2)] {
        let run = run(&arguments);
        assert_eq!(run.code, code, "{arguments:?}");
        let object: serde_json::Value = serde_json::from_str(&run.stdout).expect("one JSON object");
        assert!(object["error"].as_str().is_some_and(|text| !text.is_empty()), "{arguments:?}: {object}");
    }
}

#[test]
fn the_formats_are_listed_narrowest_first_with_their_true_bits() {
    let list = run(["formats", "--json"]).json();
    let formats = list["formats"].as_array().expect("a list");
    assert!(formats.len() >= 15, "{} formats", formats.len());
    for format in formats {
        for key in ["name", "element", "block", "scale", "code_bits", "bits_per_weight"] {
            assert!(!format[key].is_null(), "{key} of {format}");
        }
        let (code, bits) =
            (format["code_bits"].as_f64().unwrap_or(99.0), format["bits_per_weight"].as_f64().unwrap_or(0.0));
        // Only three-level codes are packed below their bits.
        assert!(bits >= code || format["name"].as_str().is_some_and(|name| name.starts_with("ternary")), "{format}");
    }
    let bits: Vec<f64> = formats.iter().filter_map(|format| format["bits_per_weight"].as_f64()).collect();
    assert!(bits.is_sorted(), "{bits:?}");
    let named = |name: &str| formats.iter().find(|format| format["name"] == name).expect("a named format").clone();
    assert_eq!(named("int4-g128")["bits_per_weight"], 4.125, "4 bits and 16 for 128");
    assert_eq!(named("mxfp4")["scale"], "e8m0 (power of two)", "a scale in words");
    assert!(run(["formats"]).stdout.contains("int4-g128-asym"), "the table for people");
}

#[test]
fn the_family_is_reached_through_this_crate() {
    let format: leanbits::core::Format = "nvfp4".parse().expect("a format");
    let bytes = leanbits::footprint(format, &[64, 32]).expect("a footprint").total_bytes();
    assert_eq!(bytes, 64 * 16 + 64 * 2 + 4, "codes, two scales a row, one scale for the tensor");
}
