//! `leanbits bench` from the command line.

mod common;

use common::{run, tiny_llama};

#[test]
fn a_compressed_folder_is_timed_packed_and_decoded_and_says_what_a_token_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = folder.path().join("small");
    run(args!["compress", tiny_llama(), "--format", "int4-g32", "-o", small, "--json"]).json();
    let report = run(args!["bench", small, "--prompt", "8", "--tokens", "4", "--rounds", "1", "--json"]).json();
    assert_eq!((report["prompt"].as_u64(), report["tokens"].as_u64()), (Some(8), Some(4)));
    assert!(report["read_gb_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    let ways = report["ways"].as_array().expect("a list");
    let names: Vec<_> = ways.iter().map(|way| way["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["packed", "f32"]);
    for way in ways {
        for key in ["prefill_tokens_per_second", "decode_tokens_per_second", "share_of_bandwidth"] {
            assert!(way[key].as_f64().is_some_and(|rate| rate > 0.0), "{key}: {way}");
        }
    }
    let bytes = |way: usize| ways[way]["bytes_per_token"].as_u64().expect("a number");
    assert!(bytes(0) * 4 < bytes(1), "packed weights are less to read: {} for {}", bytes(0), bytes(1));
}

#[test]
fn an_original_folder_has_one_way() {
    let text = run(args!["bench", tiny_llama(), "--prompt", "4", "--tokens", "2", "--rounds", "1"]).stdout;
    assert!(text.contains("f32") && !text.contains("packed"), "{text}");
    run(args!["bench", "no-such-folder"]).fails(1, &["no-such-folder"]);
}
