//! `demo`.

mod common;

use common::program;
use serde_json::Value;

#[test]
fn the_demo_measures_each_format_and_draws_the_picture() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = program()
        .current_dir(folder.path())
        .args(["demo", "--formats", "int8,mxfp4,int4-g128", "--tokens", "1022", "--json"])
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["reference"]["bytes"], 2 * 3_508_992, "two bytes a parameter");
    let original = report["reference"]["perplexity"].as_f64().expect("a number");
    assert!((1.5..4.0).contains(&original), "{original}");
    let rows = report["rows"].as_array().expect("rows");
    let formats: Vec<&str> = rows.iter().filter_map(|row| row["format"].as_str()).collect();
    assert_eq!(formats, ["int4-g128", "mxfp4", "int8"], "sorted by bytes");
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
        assert!(number("perplexity") > original && number("kl") > 0.0, "{row}");
        assert!((0.8..1.0).contains(&number("top1")) && number("sqnr_db") > 15.0, "{row}");
        // 3,440,640 weights are quantized, the other 68,352 parameters stay in two bytes each.
        let bytes = number("bits_per_weight") * 3_440_640.0 / 8.0 + 2.0 * 68_352.0;
        assert!((number("bytes") - bytes).abs() < 0.5, "{row}: {bytes} bytes");
    }
    let svg = std::fs::read_to_string(folder.path().join("leanbits-demo.svg")).expect("the picture");
    assert!(svg.starts_with("<svg") && formats.iter().all(|format| svg.contains(format)), "labels are drawn");
    assert_eq!(common::names(folder.path()), ["leanbits-demo.svg"], "nothing else is written");
}
