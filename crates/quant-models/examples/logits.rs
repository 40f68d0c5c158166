//! Writes the logits of a model folder, original or compressed, for the first tokens of a text as JSON:
//! `{"ids": […], "logits": [[…], …]}`. This is what `xtask/python/check_compressed_tensors.py` compares.
//!
//! ```sh
//! cargo run --release -p quant-models --example logits -- MODEL_DIR TEXT 256 > logits.json
//! ```
#![forbid(unsafe_code)]

use quant_models::{Decoder, Text};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, count] = args.as_slice() else {
        return Err("usage: logits MODEL_DIR TEXT TOKENS".into());
    };
    let decoder = Decoder::open(Path::new(model))?;
    let tokens = Text::open(Path::new(model), decoder.config())?.encode(&std::fs::read(text)?)?;
    let count = tokens.len().min(count.parse()?);
    let ids = &tokens.ids[..count];
    let hidden = decoder.hidden(&[ids], None)?;
    let logits = decoder.logits(&hidden, 0..hidden.rows())?;
    let rows: Vec<&[f32]> = logits.chunks_exact(logits.len() / hidden.rows()).collect();
    println!("{}", serde_json::json!({ "ids": ids, "logits": rows }));
    Ok(())
}
