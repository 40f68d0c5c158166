//! Hostile files that are too large to keep in the tree.

use crate::cases::file as container;
use crate::counting::peak_of;
use quant_io::Checkpoint;
use quant_io::safetensors::HEADER_LIMIT;
use std::fmt::Write as _;
use std::path::Path;

/// The name of the variant that refuses a file.
type Outcome = Result<(), String>;

/// Most memory that opening a file of so many bytes may hold at one time.
const fn memory_limit(bytes: usize) -> usize {
    16 * bytes + (1 << 20)
}

fn refused(variant: &str) -> Outcome {
    Err(variant.to_owned())
}

/// Opens a file of these bytes; checks the bound on memory.
fn open(name: &str, bytes: &[u8]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let target: &Path = if name.ends_with(".json") { folder.path() } else { &path };
    let (outcome, held) = peak_of(|| {
        Checkpoint::open(target).map(drop).map_err(|error| {
            assert!(error.to_string().len() < 6000, "a message of {} bytes", error.to_string().len());
            error.variant()
        })
    });
    let limit = memory_limit(bytes.len());
    assert!(held <= limit, "{name}: {held} bytes of memory for a file of {}, {outcome:?}", bytes.len());
    outcome
}

const EMPTY: &str = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;

/// A header of `count` entries.
fn header(count: usize, mut entry: impl FnMut(&mut String, usize)) -> String {
    let mut header = String::from("{");
    for i in 0..count {
        header.push_str(if i > 0 { "," } else { "" });
        entry(&mut header, i);
    }
    header + "}"
}

#[test]
fn a_header_at_its_limit_is_read_and_one_byte_more_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let limit = usize::try_from(HEADER_LIMIT).unwrap();
    let mut text = vec![b' '; limit];
    text[..2].copy_from_slice(b"{}");
    std::fs::write(&path, container(&text, &[])).unwrap();
    assert!(Checkpoint::open(&path).is_ok(), "{limit} bytes of header");
    text.push(b' ');
    std::fs::write(&path, container(&text, &[])).unwrap();
    let (outcome, held) = peak_of(|| Checkpoint::open(&path).map(drop));
    assert_eq!(outcome.unwrap_err().variant(), "TooLarge");
    assert!(held < 1 << 16, "{held} bytes of memory for a header that is refused by its length");
}

#[test]
fn a_hundred_thousand_tensors_are_read_in_memory_proportional_to_the_header() {
    let many = header(100_000, |text, i| write!(text, "\"{i}\":{EMPTY}").unwrap());
    assert_eq!(open("x.safetensors", &container(many.as_bytes(), &[])), Ok(()));
    let twice = many.replace("\"99999\":", "\"0\":");
    assert_eq!(open("x.safetensors", &container(twice.as_bytes(), &[])), refused("DuplicateKey"));
    let metadata = header(100_000, |text, i| write!(text, "\"{i}\":\"\"").unwrap());
    let metadata = format!("{{\"__metadata__\":{metadata}}}");
    assert_eq!(open("x.safetensors", &container(metadata.as_bytes(), &[])), Ok(()));
}

#[test]
fn long_names_and_long_shapes_are_read_and_messages_stay_short() {
    let name = "n".repeat(1 << 20);
    let long = format!("{{\"{name}\":{EMPTY}}}");
    assert_eq!(open("x.safetensors", &container(long.as_bytes(), &[])), Ok(()));
    let twice = format!("{{\"{name}\":{EMPTY},\"{name}\":{EMPTY}}}");
    assert_eq!(open("x.safetensors", &container(twice.as_bytes(), &[])), refused("DuplicateKey"));
    let dtype = format!("{{\"{name}\":{{\"dtype\":\"{name}\",\"shape\":[0],\"data_offsets\":[0,0]}}}}");
    assert_eq!(open("x.safetensors", &container(dtype.as_bytes(), &[])), refused("UnknownDtype"));
    let shape = |dimension: &str| {
        let ones = format!("{dimension},").repeat(1_000_000);
        format!(r#"{{"a":{{"dtype":"U8","shape":[{ones}1],"data_offsets":[0,1]}}}}"#)
    };
    assert_eq!(open("x.safetensors", &container(shape("1").as_bytes(), b"x")), Ok(()));
    assert_eq!(open("x.safetensors", &container(shape("2").as_bytes(), b"x")), refused("Overflow"));
}

#[test]
fn deep_nesting_is_refused_without_deep_recursion() {
    for depth in [10_000, 5 << 20] {
        let open_brackets = "[".repeat(depth);
        let nested = |before: &str| container((before.to_owned() + &open_brackets).as_bytes(), &[]);
        assert_eq!(open("x.safetensors", &nested("{\"a\":")), refused("BadField"));
        assert_eq!(open("x.safetensors", &nested("{\"__metadata__\":")), refused("BadField"));
        assert_eq!(open("x.safetensors", &nested("{\"a\":{\"x\":")), refused("BadJson"));
        let config = format!("{{\"a\":{open_brackets}");
        assert_eq!(open("config.json", config.as_bytes()), refused("BadJson"));
        assert_eq!(open("model.safetensors.index.json", config.as_bytes()), refused("BadJson"));
        let config = "{\"a\":".repeat(depth / 5);
        assert_eq!(open("config.json", config.as_bytes()), refused("BadJson"));
    }
}

fn gguf(entries: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(entries.iter().chain(tensors).flatten());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn a_gguf_file_of_many_keys_tensors_or_strings_is_read_in_proportional_memory() {
    let keys: Vec<_> = (0..100_000).map(|i| [text(&i.to_string()), vec![0, 0, 0, 0, 1]].concat()).collect();
    assert_eq!(open("x.gguf", &gguf(&keys, &[], 0)), Ok(()));
    let tensor = |i: u64| {
        let mut entry = text(&i.to_string());
        entry.extend([1, 0, 0, 0]);
        entry.extend(1_u64.to_le_bytes());
        entry.extend(24_u32.to_le_bytes());
        entry.extend((32 * i).to_le_bytes());
        entry
    };
    let tensors: Vec<_> = (0..100_000).map(tensor).collect();
    assert_eq!(open("x.gguf", &gguf(&[], &tensors, 3_200_000)), Ok(()));
    assert_eq!(open("x.gguf", &gguf(&[], &tensors, 1_600_000)), refused("Truncated"));
    let strings = [&text("tokens")[..], &[9, 0, 0, 0, 8, 0, 0, 0], &1_000_000_u64.to_le_bytes(), &[0; 8_000_000]];
    assert_eq!(open("x.gguf", &gguf(&[strings.concat()], &[], 0)), Ok(()));
    // The value that a message would show is the file itself.
    let heads = "llama.attention.head_count";
    let architecture = [&text("general.architecture")[..], &[8, 0, 0, 0], &text("llama")].concat();
    let array = [&text(heads)[..], &[9, 0, 0, 0, 0, 0, 0, 0], &3_000_000_u64.to_le_bytes(), &[255; 3_000_000]].concat();
    let mut query = tensor(0);
    query.splice(..9, text("blk.0.attn_q.weight"));
    assert_eq!(open("x.gguf", &gguf(&[architecture, array], &[query], 32)), refused("BadValue"));
}

#[test]
fn a_wide_config_takes_at_most_sixty_four_times_its_size() {
    // It is held as a tree, because its keys belong to others: a number of two characters takes a node.
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{{\"a\":[{}0]}}", "0,".repeat(2_000_000));
    std::fs::write(folder.path().join("config.json"), &text).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), container(b"{}", &[])).unwrap();
    let (opened, held) = peak_of(|| Checkpoint::open(folder.path()).map(drop));
    assert!(opened.is_ok(), "{opened:?}");
    assert!(held <= 64 * text.len(), "{held} bytes of memory for {} of text", text.len());
}
