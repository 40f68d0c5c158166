//! GGUF: decoding against the C library, reading a file of the Python package, names.

use quant_io::gguf::{GgmlType, GgufFile, GgufValue, Permuted, dequantize, hf_name, unpermute_rows};
use quant_io::safetensors::SafetensorsFile;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[test]
fn every_block_type_decodes_bit_for_bit_as_its_own_library() {
    let file = SafetensorsFile::open(golden("gguf_blocks.safetensors")).unwrap();
    let (mut values, mut types) = (0, std::collections::BTreeSet::new());
    for tensor in file.tensors() {
        let mut parts = tensor.name.split('/');
        let (Some(name), Some(set), Some("bytes")) = (parts.next(), parts.next(), parts.next()) else { continue };
        let kind = GgmlType::all().find(|k| k.name() == name).unwrap();
        let mut out = vec![0.0; tensor.bytes.len() / kind.block().1 * kind.block().0];
        assert!(dequantize(kind, tensor.bytes, &mut out), "{name}");
        for reference in [format!("{name}/{set}/deq"), format!("{name}/{set}/deq_py"), format!("{name}/{set}/deq_c")] {
            let Some(expected) = file.get(&reference) else { continue };
            let expected = expected.to_f32().unwrap();
            assert_eq!(out.len(), expected.len());
            for (i, (&ours, &theirs)) in out.iter().zip(&expected).enumerate() {
                assert!(same(ours, theirs), "{reference} element {i}: {ours:e} but {theirs:e}");
            }
            values += out.len();
            types.insert(name.to_owned());
        }
    }
    assert_eq!(types.len(), 17, "{types:?}");
    assert!(values > 150_000, "only {values} values were compared");
}

#[test]
fn types_that_cannot_be_decoded_are_exactly_the_lattice_and_activation_types() {
    for kind in GgmlType::all() {
        let (elements, size) = kind.block();
        let mut out = vec![0.0; elements];
        let lattice = kind.name().starts_with("IQ") && !kind.name().starts_with("IQ4");
        let activation = matches!(kind, GgmlType::Q8_1 | GgmlType::Q8_K);
        assert_eq!(dequantize(kind, &vec![0; size], &mut out), kind.is_decodable(), "{kind}");
        assert_eq!(kind.is_decodable(), !lattice && !activation, "{kind}");
        assert!(!dequantize(kind, &vec![0; size + 1], &mut out) || size == 0, "a cut block must be refused");
        assert_eq!(GgmlType::from_id(kind.id()), Some(kind));
    }
}

#[test]
fn a_file_of_the_python_package_is_read() {
    let file = GgufFile::open(golden("files/tiny.gguf")).unwrap();
    assert_eq!(file.version(), 3);
    assert!(file.metadata("general.architecture").and_then(|v| v.as_text()).is_some());
    assert!(!file.tensors().is_empty());
    for key in file.keys() {
        let value = file.metadata(key).unwrap();
        if let GgufValue::Array(array) = value {
            assert_eq!(array.iter().count() as u64, array.len());
            assert!(array.iter().all(|item| item.is_ok()), "{key}");
        }
    }
    for tensor in file.tensors() {
        let bytes = file.tensor_bytes(tensor);
        let mut out = vec![0.0; tensor.shape.iter().product()];
        assert!(dequantize(tensor.kind, bytes, &mut out), "{} {}", tensor.name, tensor.kind);
        assert!(out.iter().all(|v| v.is_finite()), "{}", tensor.name);
    }
}

#[test]
fn llama_names_become_hugging_face_names() {
    let name = |arch: &str, name: &str| hf_name(arch, name).map(|n| (n.name, n.permuted));
    let expect = |text: &str, permuted| Some((text.to_owned(), permuted));
    assert_eq!(name("llama", "token_embd.weight"), expect("model.embed_tokens.weight", Permuted::No));
    assert_eq!(
        name("llama", "blk.0.attn_q.weight"),
        expect("model.layers.0.self_attn.q_proj.weight", Permuted::Queries)
    );
    assert_eq!(
        name("llama", "blk.11.attn_k.weight"),
        expect("model.layers.11.self_attn.k_proj.weight", Permuted::Keys)
    );
    assert_eq!(name("qwen2", "blk.1.attn_k.bias"), expect("model.layers.1.self_attn.k_proj.bias", Permuted::No));
    assert_eq!(
        name("qwen3", "blk.1.attn_q_norm.weight"),
        expect("model.layers.1.self_attn.q_norm.weight", Permuted::No)
    );
    for unknown in ["blk.x.attn_q.weight", "blk.0.attn_q", "blk.0.ssm_in.weight", "rope_freqs.weight", ""] {
        assert_eq!(name("llama", unknown), None, "{unknown}");
    }
    assert_eq!(name("mamba", "token_embd.weight"), None);
}

#[test]
fn unpermuting_rows_is_the_inverse_of_the_converters_permutation() {
    let (heads, half, columns) = (3, 4, 2);
    let rows = heads * 2 * half;
    // The converter views rows as [heads, 2, half] and swaps the last two axes.
    let original: Vec<u8> = (0..rows * columns).map(|i| u8::try_from(i).unwrap()).collect();
    let mut permuted = Vec::new();
    for head in 0..heads {
        for j in 0..half {
            for p in 0..2 {
                let row = head * 2 * half + p * half + j;
                permuted.extend_from_slice(&original[row * columns..][..columns]);
            }
        }
    }
    assert_ne!(permuted, original);
    assert_eq!(*unpermute_rows(&permuted, rows, heads), original);
    assert_eq!(*unpermute_rows(&permuted, rows, 5), permuted, "heads that do not divide leave rows alone");
}
