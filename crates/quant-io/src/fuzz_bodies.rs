//! What the fuzz targets do with arbitrary bytes, also run over the corpus by the tests.
//!
//! Each body reads everything that a file offers: nothing may panic, and what is accepted must keep the
//! promises its type makes. Errors are returned so that the corpus can check which one it is.

use crate::gguf::{GgufFile, GgufValue};
use crate::hf::{self, Index};
use crate::safetensors::{Header, SafetensorsFile, TensorSpec, serialize};
use crate::{Checkpoint, Error, FileBytes};
use quant_core::{Format, Layout, PackedTensor, TensorView};
use std::path::Path;

/// Reads all tensors of a checkpoint.
fn read_all(model: &Checkpoint) -> Result<(), Error> {
    for entry in model.entries() {
        let values = match model.read_f32(&entry.name) {
            // Complex numbers are legal, they only have no reading as f32.
            Err(error) if matches!(error.root(), Error::NotNumeric { .. }) => continue,
            Err(error) if matches!(error.root(), Error::Composed { .. }) => {
                let composed = model.composed(&entry.name)?.expect("it is composed, as the error says");
                for part in &composed.description().parts {
                    assert!(composed.part(part)?.is_some(), "a part that was found is lent");
                }
                continue;
            }
            other => other?,
        };
        assert_eq!(values.len(), entry.elements(), "as many values as the shape says");
        let packed = model.packed(&entry.name)?;
        let plain = model.plain(&entry.name)?;
        assert!(packed.is_none() || plain.is_none(), "a tensor is stored in one way");
        if let Some(packed) = packed {
            assert_eq!(packed.shape(), entry.shape, "the packed tensor has the shape of its entry");
        }
    }
    Ok(())
}

/// A safetensors file, packed tensors included.
///
/// # Errors
///
/// What the reader finds.
pub fn safetensors(data: &[u8]) -> Result<(), Error> {
    let header = Header::parse(data)?;
    assert_eq!(header.data_start() + header.data_bytes(), data.len() as u64, "a file is header and data, no more");
    // What was read can be written, and reads the same.
    let file = SafetensorsFile::from_bytes(FileBytes::owned("x.safetensors", data.to_vec()))?;
    let tensors: Vec<_> = file.tensors().map(|t| (TensorSpec::new(t.name, t.dtype, t.shape), t.bytes)).collect();
    let again = serialize(&tensors, header.metadata().clone())?;
    let again = SafetensorsFile::from_bytes(FileBytes::owned("y.safetensors", again))?;
    for tensor in file.tensors() {
        assert_eq!(again.get(tensor.name), Some(tensor), "a rewritten file holds the same tensors");
    }
    read_all(&Checkpoint::from_bytes(FileBytes::owned("x.safetensors", data.to_vec()))?)
}

/// A GGUF file.
///
/// # Errors
///
/// What the reader finds.
pub fn gguf(data: &[u8]) -> Result<(), Error> {
    let file = GgufFile::from_bytes(FileBytes::owned("x.gguf", data.to_vec()))?;
    for key in file.keys() {
        match file.metadata(key) {
            Some(GgufValue::Array(array)) => {
                for item in array.iter() {
                    // Texts inside arrays are only now checked to be UTF-8.
                    let _ = item;
                }
            }
            Some(_) => {}
            None => panic!("a value that was checked at opening is gone"),
        }
    }
    read_all(&Checkpoint::from_bytes(FileBytes::owned("x.gguf", data.to_vec()))?)
}

/// The index of shards.
///
/// # Errors
///
/// What the reader finds.
pub fn index(data: &[u8]) -> Result<(), Error> {
    let text = utf8(data)?;
    let index = Index::parse(text)?;
    assert_eq!(Index::parse(&index.to_json())?, index, "an index that was written reads the same");
    Ok(())
}

/// config.json with its `quantization_config`.
///
/// # Errors
///
/// What the readers find.
pub fn config(data: &[u8]) -> Result<(), Error> {
    let config = hf::parse_config(utf8(data)?)?;
    if let Some(compressed) = crate::checkpoint::quantization(&config)? {
        for module in ["model.layers.0.mlp.up_proj", "lm_head", "model.embed_tokens", ""] {
            compressed.group(module)?;
        }
    }
    Ok(())
}

/// A config.json and a safetensors file of compressed-tensors: the length of the former as a
/// little-endian u32, then both.
///
/// # Errors
///
/// What the readers find.
pub fn compressed_tensors(data: &[u8]) -> Result<(), Error> {
    let short = |needed, available| Error::Truncated { what: "the two files".to_owned(), needed, available };
    let Some((length, rest)) = data.split_first_chunk::<4>() else { return Err(short(4, data.len() as u64)) };
    let length = u32::from_le_bytes(*length);
    let parts = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n));
    let Some((config, file)) = parts else { return Err(short(u64::from(length), rest.len() as u64)) };
    let config = hf::parse_config(utf8(config)?)?;
    let file = SafetensorsFile::from_bytes(FileBytes::owned("x.safetensors", file.to_vec()))?;
    read_all(&Checkpoint::from_safetensors(Path::new("x.safetensors"), Some(config), vec![file])?)
}

/// The name of a format.
///
/// # Errors
///
/// What the parser finds.
pub fn format_name(data: &[u8]) -> Result<(), Error> {
    let format: Format = utf8(data)?.parse().map_err(Error::packed("format"))?;
    assert_eq!(format.to_string().parse(), Ok(format), "a format's own name parses to it");
    Ok(())
}

/// Sections of a packed tensor: a byte of rows, a byte of columns, a line with the format's name, then
/// bytes of which each section takes what its layout asks for.
///
/// # Errors
///
/// What the name, the layout or the sections are refused for.
pub fn sections(data: &[u8]) -> Result<(), Error> {
    let Some((&[rows, columns], rest)) = data.split_first_chunk::<2>() else { return utf8(data).map(drop) };
    let line = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
    let mut sections = rest.get(line + 1..).unwrap_or_default();
    let format: Format = utf8(&rest[..line])?.parse().map_err(Error::packed("name"))?;
    let shape = [usize::from(rows % 9), usize::from(columns)];
    let layout = Layout::new(format, &shape).map_err(Error::packed("layout"))?;
    let mut take = |len: usize| {
        let (taken, left) = sections.split_at(len.min(sections.len()));
        sections = left;
        taken
    };
    let (codes, scales, zeros) = (take(layout.code_bytes()), take(layout.scale_bytes()), take(layout.zero_bytes()));
    let second = take(4 * layout.second_len).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let tensor = PackedTensor::from_sections(format, &shape, codes, scales, zeros, second);
    let tensor = tensor.map_err(Error::packed("sections"))?;
    let values = tensor.decode();
    let mut row = vec![0.0; layout.columns];
    for (i, expected) in values.chunks(layout.columns).enumerate() {
        tensor.decode_row(i, &mut row).map_err(Error::packed("row"))?;
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(row.iter().zip(expected).all(same), "row {i} of {format} differs from the whole");
    }
    if values.iter().all(|v| v.is_finite()) {
        // What was read can be encoded again; only a scale may then exceed its type.
        let view = TensorView::contiguous(&values, &shape).map_err(Error::packed("view"))?;
        match PackedTensor::encode(format, &view) {
            Ok(_) | Err(quant_core::Error::ScaleOverflow { .. }) => {}
            Err(error) => panic!("{format} cannot encode its own values: {error}"),
        }
    }
    Ok(())
}

fn utf8(data: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(data).map_err(|e| Error::BadUtf8 { what: "the text".to_owned(), offset: e.valid_up_to() })
}
