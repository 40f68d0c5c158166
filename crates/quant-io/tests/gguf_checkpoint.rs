//! A GGUF file through the loader: names, shapes and the order of rows of a Hugging Face checkpoint.

use quant_io::gguf::GgmlType;
use quant_io::safetensors::DType;
use quant_io::{Checkpoint, CheckpointLayout, Stored};

const HEADS: usize = 2;
const HEAD_ROWS: usize = 4;
const COLUMNS: usize = 32;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Row `row` of the projection, all values equal to the row's number.
fn row_of(row: usize) -> f32 {
    f32::from(u16::try_from(row).unwrap())
}

/// The rows in the order in which converters write them: pairs instead of halves.
fn converted_rows() -> Vec<usize> {
    (0..HEADS)
        .flat_map(|head| {
            (0..HEAD_ROWS / 2).flat_map(move |j| (0..2).map(move |p| head * HEAD_ROWS + p * HEAD_ROWS / 2 + j))
        })
        .collect()
}

fn write(path: &std::path::Path, architecture: &str) {
    let rows = HEADS * HEAD_ROWS;
    let order = converted_rows();
    // A query weight in f32, a key weight in Q8_0 (scale 1), a norm.
    let query: Vec<u8> = order.iter().flat_map(|&r| [row_of(r).to_le_bytes(); COLUMNS].concat()).collect();
    let key: Vec<u8> =
        order.iter().flat_map(|&r| [&[0x00, 0x3c][..], &[u8::try_from(r).unwrap(); COLUMNS]].concat()).collect();
    let norm: Vec<u8> = [1.5_f32.to_le_bytes(); COLUMNS].concat();
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &3_u64.to_le_bytes(), &2_u64.to_le_bytes()].concat();
    file.extend([text("general.architecture"), 8_u32.to_le_bytes().to_vec(), text(architecture)].concat());
    let key_name = format!("{architecture}.attention.head_count");
    file.extend([text(&key_name), 4_u32.to_le_bytes().to_vec(), 2_u32.to_le_bytes().to_vec()].concat());
    let mut data = Vec::new();
    for (name, dims, kind, bytes) in [
        ("blk.0.attn_q.weight", vec![COLUMNS, rows], 0_u32, query),
        ("blk.0.attn_k.weight", vec![COLUMNS, rows], 8, key),
        ("blk.0.attn_norm.weight", vec![COLUMNS], 0, norm),
    ] {
        file.extend([text(name), u32::try_from(dims.len()).unwrap().to_le_bytes().to_vec()].concat());
        file.extend(dims.iter().flat_map(|&d| (d as u64).to_le_bytes()));
        file.extend([&kind.to_le_bytes()[..], &(data.len() as u64).to_le_bytes()].concat());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_llama_file_reads_as_if_it_were_a_hugging_face_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, "llama");
    let straight: Vec<f32> = (0..HEADS * HEAD_ROWS).flat_map(|r| [row_of(r); COLUMNS]).collect();
    for source in [path.as_path(), folder.path()] {
        let model = Checkpoint::open(source).unwrap();
        assert_eq!(model.layout(), CheckpointLayout::Gguf);
        let query = model.entry("model.layers.0.self_attn.q_proj.weight").unwrap();
        assert_eq!((query.shape.as_slice(), query.stored), (&[8, 32][..], Stored::Plain(DType::F32)));
        assert_eq!(model.read_f32(&query.name).unwrap(), straight);
        let plain = model.plain(&query.name).unwrap().unwrap();
        let bytes: Vec<u8> = straight.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(*plain.bytes, bytes, "raw bytes are in the right order as well");
        let key = model.entry("model.layers.0.self_attn.k_proj.weight").unwrap();
        assert_eq!(key.stored, Stored::Gguf(GgmlType::Q8_0));
        assert_eq!(model.read_f32(&key.name).unwrap(), straight);
        assert!(model.plain(&key.name).unwrap().is_none(), "blocks are not plain");
        assert_eq!(model.read_f32("model.layers.0.input_layernorm.weight").unwrap(), [1.5; 32]);
    }
}

#[test]
fn families_that_rotate_halves_keep_the_order_of_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, "qwen2");
    let model = Checkpoint::open(&path).unwrap();
    let as_stored: Vec<f32> = converted_rows().into_iter().flat_map(|r| [row_of(r); COLUMNS]).collect();
    assert_eq!(model.read_f32("model.layers.0.self_attn.q_proj.weight").unwrap(), as_stored);
}

#[test]
fn an_unknown_architecture_keeps_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, "made-up");
    let model = Checkpoint::open(&path).unwrap();
    assert!(model.entry("blk.0.attn_q.weight").is_some(), "{:?}", model.entries());
}
