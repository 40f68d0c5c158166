//! `eval`.

mod common;

use common::{heldout, run, tiny_llama, write_llama};

#[test]
fn the_embedded_model_scores_what_its_makers_measured() {
    let report =
        run(args!["eval", tiny_llama(), "--text", heldout(), "--context", "512", "--tokens", "5110", "--json"]).json();
    for key in ["perplexity", "tokens", "bits_per_byte"] {
        assert!(report[key].is_number(), "{key} of {report}");
    }
    assert!(report["kl"].is_null() && report["top1"].is_null(), "nothing to compare with");
    let (perplexity, bits) =
        (report["perplexity"].as_f64().expect("one"), report["bits_per_byte"].as_f64().expect("two"));
    assert!((perplexity.log2() - bits).abs() < 1e-12, "a byte is a token of this model");
    assert!((1.0..1.5).contains(&bits), "{bits} bits a byte; the whole text gives 1.328");
    let text = run(args!["eval", tiny_llama(), "--text", heldout(), "--tokens", "511"]).stdout;
    assert!(text.contains("perplexity") && text.contains("bits per byte"), "{text}");
}

#[test]
fn documents_have_windows_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    std::fs::write(&one, "The first document.<|end|>\nThe second, longer one.\n<|end|>").expect("a file");
    std::fs::write(&two, "The second, longer one.").expect("a file");
    let eval = |text, more: &[&str]| {
        run(args!["eval", tiny_llama(), "--text", text, "--json"].into_iter().chain(more.iter().map(Into::into))).json()
    };
    let split = eval(&one, &["--split", "<|end|>"]);
    assert_eq!(split["tokens"], 19 - 1 + 23 - 1, "all but the first byte of each");
    assert_eq!(eval(&two, &[])["tokens"], 22, "a text shorter than a window is one window");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, empty) = (folder.path().join("m"), folder.path().join("empty"));
    write_llama(&model, 1);
    std::fs::write(&empty, "").expect("a file");
    run(args!["eval", model, "--text", empty]).fails(1, &["0 tokens"]);
    run(args!["eval", model, "--text", folder.path().join("none")]).fails_with_hint(
        1,
        &["none", "cannot read"],
        "path",
    );
    run(args!["eval", model, "--text", heldout(), "--bos"]).fails_with_hint(1, &["bos_token_id"], "--bos");
    run(args!["eval", folder.path().join("none"), "--text", heldout()]).fails(1, &["none"]);
    std::fs::write(model.join("config.json"), "{\"model_type\": \"llama\"}").expect("a file");
    run(args!["eval", model, "--text", heldout()]).fails(1, &["config.json"]);
}
