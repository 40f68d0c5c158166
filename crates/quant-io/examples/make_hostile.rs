//! Rewrites the corpus of hostile files: `cargo run -p quant-io --example make_hostile`.

#[path = "../tests/hostile/cases/mod.rs"]
mod cases;

fn main() -> std::io::Result<()> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let cases = cases::all();
    for case in &cases {
        std::fs::write(folder.join(&case.name), &case.bytes)?;
    }
    std::fs::write(folder.join("expected.json"), cases::expected_json(&cases))?;
    println!("{} files", cases.len());
    Ok(())
}
