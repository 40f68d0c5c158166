//! Hugging Face tokenizers.

mod common;

use common::config;
use quant_models::{Config, Error, Text};
use serde_json::{Value, json};
use std::path::Path;

fn parsed() -> Config {
    Config::from_json(&config(json!({})), Path::new("config.json")).unwrap()
}

/// Bytes as GPT-2 spells them, for the ones used here.
fn tokenizer(add_prefix_space: bool) -> Value {
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["a", "b", "Ġ", "Ã", "©", "ab", "Ġab", "<s>"].into_iter().enumerate() {
        vocab.insert(token.into(), json!(id));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["Ġ", "ab"]]},
    })
}

fn opened(tokenizer: &Value) -> Result<Text, Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Text::open(folder.path(), &parsed())
}

#[test]
fn text_becomes_tokens_that_end_at_their_bytes() {
    let text = opened(&tokenizer(false)).unwrap();
    let tokens = text.encode("ab ab aéb".as_bytes()).unwrap();
    assert_eq!(tokens.ids, [5, 6, 2, 0, 3, 4, 1], "no begin token is added");
    // é is two bytes and two tokens: the first is given both.
    assert_eq!(tokens.ends, [2, 5, 6, 7, 9, 9, 10]);
    assert_eq!(text.decode(&tokens.ids).unwrap(), "ab ab aéb");
    assert_eq!(text.decode(&[7, 5]).unwrap(), "ab", "special tokens are left out");
    assert!(text.encode(b"").unwrap().is_empty());
}

#[test]
fn text_that_is_not_utf8_is_refused_where_it_begins() {
    let text = opened(&tokenizer(false)).unwrap();
    let error = text.encode(b"ab\xff").unwrap_err();
    assert!(matches!(error, Error::NotUtf8 { offset: 2 }), "{error}");
}

#[test]
fn a_missing_or_damaged_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Text::open(folder.path(), &parsed()).unwrap_err();
    assert!(matches!(&error, Error::Tokenizer { path, .. } if path.ends_with("tokenizer.json")), "{error}");
    let error = opened(&json!({"model": 3})).unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
}

#[test]
fn a_folder_without_a_tokenizer_is_byte_level_when_its_vocabulary_is_the_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = parsed();
    config.vocab_size = 256;
    assert!(matches!(Text::open(folder.path(), &config), Ok(Text::Bytes)));
}
