//! The corpus of hostile files: each has its outcome, stays small in memory and returns at once.
//!
//! `cargo run -p quant-io --example make_hostile` rewrites the files.

mod cases;
mod counting;
mod large;
mod output;

use quant_io::gguf::GgufFile;
use quant_io::safetensors::SafetensorsFile;
use quant_io::{FileBytes, fuzz_bodies};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus")
}

/// Opens a file as its name says and reads everything in it.
fn outcome(name: &str, bytes: &[u8]) -> String {
    let result = match name.split('-').next() {
        Some("container" | "packed") => fuzz_bodies::safetensors(bytes),
        Some("gguf") => fuzz_bodies::gguf(bytes),
        Some("index") => fuzz_bodies::index(bytes),
        Some("config") => fuzz_bodies::config(bytes),
        Some("compressed") => fuzz_bodies::compressed_tensors(bytes),
        other => panic!("no reader for files named {other:?}"),
    };
    result.map_or_else(|error| error.variant(), |()| "ok".to_owned())
}

#[test]
fn the_committed_files_are_those_that_the_generator_makes() {
    let cases = cases::all();
    let mut on_disk = BTreeMap::new();
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let path = entry.unwrap().path();
        on_disk.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap());
    }
    let expected = on_disk.remove("expected.json").expect("the table of outcomes is committed");
    assert!(expected == cases::expected_json(&cases).into_bytes(), "run the example make_hostile");
    let made: BTreeMap<String, Vec<u8>> = cases.into_iter().map(|c| (c.name, c.bytes)).collect();
    let names = |map: &BTreeMap<String, Vec<u8>>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(&on_disk), "run the example make_hostile");
    assert!(made == on_disk, "contents differ: run the example make_hostile");
}

#[test]
fn every_file_of_the_corpus_has_its_outcome_within_its_bounds() {
    let expected = std::fs::read_to_string(corpus().join("expected.json")).unwrap();
    let expected: BTreeMap<String, String> = serde_json::from_str(&expected).unwrap();
    assert!(expected.len() >= 150, "the corpus has shrunk to {} files", expected.len());
    let mut wrong = Vec::new();
    for (name, expected) in &expected {
        let bytes = std::fs::read(corpus().join(name)).unwrap();
        assert!(bytes.len() <= 4096, "{name} has {} bytes", bytes.len());
        let start = Instant::now();
        let run = || std::panic::catch_unwind(|| outcome(name, &bytes)).unwrap_or_else(|_| "a panic".to_owned());
        let (found, peak) = counting::peak_of(run);
        if found != *expected {
            wrong.push(format!("{name}: {found} instead of {expected}"));
        }
        if peak > 16 * bytes.len() + (1 << 20) {
            wrong.push(format!("{name}: {peak} bytes of memory for {} of file", bytes.len()));
        }
        // The bound of an idle machine is ten milliseconds; a busy one may take a while longer.
        assert!(start.elapsed() < Duration::from_secs(1), "{name} took {:?}", start.elapsed());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_truncation_of_a_good_gguf_file_is_an_error() {
    let good = cases::all().into_iter().find(|c| c.name == "gguf-good.gguf").unwrap().bytes;
    for length in 0..good.len() {
        let (result, peak) = counting::peak_of(|| fuzz_bodies::gguf(&good[..length]));
        // Counts that the rest of the file cannot hold are refused at once.
        let variant = result.unwrap_err().variant();
        assert!(variant == "Truncated" || (length >= 24 && variant == "TooLarge"), "{length} bytes: {variant}");
        assert!(peak <= 16 * length + (1 << 20), "{length} bytes allocated {peak}");
    }
}

#[test]
fn every_truncation_of_a_good_safetensors_file_is_an_error() {
    for case in cases::all().into_iter().filter(|c| c.name.starts_with("packed-good")) {
        for length in 0..case.bytes.len() {
            let found = fuzz_bodies::safetensors(&case.bytes[..length]).unwrap_err().variant();
            assert_eq!(found, "Truncated", "{} cut to {length} bytes", case.name);
        }
    }
}

#[test]
fn a_hundred_thousand_empty_tensors_take_memory_in_proportion_to_the_file() {
    let entry = |i: usize| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let header = format!("{{{}}}", (0..100_000).map(entry).collect::<Vec<_>>().join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let size = bytes.len();
    let bytes = FileBytes::owned("many.safetensors", bytes);
    let (file, peak) = counting::peak_of(|| SafetensorsFile::from_bytes(bytes).unwrap());
    assert_eq!(file.tensors().len(), 100_000);
    assert!(peak <= 16 * size + (1 << 20), "{peak} bytes for a file of {size}");
}

#[test]
fn a_name_of_a_megabyte_does_not_fill_the_message() {
    let header = format!("{{\"{}\":{{\"dtype\":\"F31\",\"shape\":[],\"data_offsets\":[0,0]}}}}", "n".repeat(1 << 20));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let size = bytes.len();
    let (error, peak) = counting::peak_of(|| fuzz_bodies::safetensors(&bytes).unwrap_err());
    assert_eq!(error.variant(), "UnknownDtype");
    assert!(error.to_string().len() < 1000, "{} characters", error.to_string().len());
    assert!(peak <= 16 * size + (1 << 20), "{peak} bytes for a file of {size}");
}

#[test]
fn json_of_ten_megabytes_of_brackets_is_refused_without_overflowing_the_stack() {
    for open in ["[", "{\"a\":"] {
        let text = open.repeat(10_000_000 / open.len());
        for body in [fuzz_bodies::config, fuzz_bodies::index] {
            let result = body(text.as_bytes());
            assert!(matches!(result.unwrap_err().variant().as_str(), "BadJson" | "BadField"), "{open}");
        }
    }
}

#[test]
fn a_gguf_array_of_many_strings_is_walked_once_and_not_stored() {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend_from_slice(&3_u32.to_le_bytes());
    bytes.extend_from_slice(&0_u64.to_le_bytes());
    bytes.extend_from_slice(&1_u64.to_le_bytes());
    bytes.extend_from_slice(&1_u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend_from_slice(&9_u32.to_le_bytes());
    bytes.extend_from_slice(&8_u32.to_le_bytes());
    bytes.extend_from_slice(&1_000_000_u64.to_le_bytes());
    bytes.resize(bytes.len() + 8_000_000, 0);
    let bytes = FileBytes::owned("strings.gguf", bytes);
    let (file, peak) = counting::peak_of(|| GgufFile::from_bytes(bytes).unwrap());
    assert_eq!(file.keys().count(), 1);
    assert!(peak < 1 << 16, "{peak} bytes");
}
