//! `inspect`.

mod common;

use common::{f32_tensor, run, tiny_llama, values, write_safetensors};

#[test]
fn an_original_model_is_described_with_the_formats_that_suit_it() {
    let report = run(args!["inspect", tiny_llama(), "--only", "*layers.0.*", "--json"]).json();
    let tensors = report["tensors"].as_array().expect("tensors");
    assert_eq!(tensors.len(), 9, "seven linears and two norms");
    for tensor in tensors {
        for key in ["name", "shape", "stored", "bits", "bytes", "min", "max", "crest_factor", "kurtosis", "outliers"] {
            assert!(!tensor[key].is_null(), "{key} of {tensor}");
        }
        let suitable = tensor["suitable"].as_array();
        assert_eq!(suitable.is_some(), tensor["shape"].as_array().map(Vec::len) == Some(2), "{tensor}");
        for class in suitable.into_iter().flatten() {
            let best = &class["best"];
            let distance = best["bits"].as_f64().expect("bits") - class["about_bits"].as_f64().expect("bits");
            assert!((0.0..1.0).contains(&distance), "{class}");
            assert!(best["sqnr_db"].as_f64().expect("dB") > 10.0, "{class}");
        }
    }
    let text = run(args!["inspect", tiny_llama()]).stdout;
    assert!(text.contains("best at 4 bits") && text.contains("model.embed_tokens.weight"), "the table for people");
}

#[test]
fn figures_are_those_of_the_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("in.safetensors");
    let mut spiky = vec![1.0; 64 * 64];
    for (i, x) in spiky.iter_mut().enumerate().filter(|(i, _)| i % 2 == 0) {
        *x = if i == 0 { -40.0 } else { -1.0 };
    }
    write_safetensors(&file, &[f32_tensor("spiky", &[64, 64], &spiky)]);
    let tensor = run(args!["inspect", file, "--json"]).json()["tensors"][0].clone();
    assert_eq!((tensor["min"].as_f64(), tensor["max"].as_f64()), (Some(-40.0), Some(1.0)), "{tensor}");
    assert_eq!(tensor["outliers"], 1, "{tensor}");
    let rms = ((4095.0 + 1600.0) / 4096.0_f64).sqrt();
    let crest = tensor["crest_factor"].as_f64().expect("a number");
    assert!((crest - 40.0 / rms).abs() < 1e-9, "{crest}");
}

#[test]
fn values_that_are_not_finite_are_shown_not_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("in.safetensors");
    let mut weight = values(4 * 32, 1);
    weight[9] = f32::NEG_INFINITY;
    write_safetensors(&file, &[f32_tensor("w", &[4, 32], &weight)]);
    let tensor = run(args!["inspect", file, "--json"]).json()["tensors"][0].clone();
    assert_eq!(tensor["non_finite"], 9, "{tensor}");
    assert!(run(args!["inspect", file]).stdout.contains("not finite at 9"), "the table says so");
}

#[test]
fn headers_alone_are_read_when_asked() {
    let report = run(args!["inspect", tiny_llama(), "--headers", "--json"]).json();
    assert_eq!(report["parameters"], 3_508_992, "all of them");
    assert!(report["tensors"].as_array().expect("tensors").iter().all(|t| t["min"].is_null()), "no values");
    run(args!["inspect", tiny_llama(), "--only", "nothing*"]).fails_with_hint(1, &["nothing*"], "inspect");
}
