//! Safetensors files put together by hand, without the crate's own writer.

use super::safetensors::file;

/// A tensor: name, dtype, shape, bytes.
pub(crate) type Part = (&'static str, &'static str, Vec<usize>, Vec<u8>);

/// A file with these metadata pairs and tensors.
pub(crate) fn weights(metadata: &[(&str, &str)], parts: &[Part]) -> Vec<u8> {
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        let pairs: Vec<_> = metadata.iter().map(|(key, value)| format!("{}:{}", quote(key), quote(value))).collect();
        entries.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in parts {
        let (name, begin) = (quote(name), data.len());
        data.extend(bytes);
        let dims: Vec<_> = shape.iter().map(usize::to_string).collect();
        entries.push(format!(
            "{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{}],\"data_offsets\":[{begin},{}]}}",
            dims.join(","),
            data.len()
        ));
    }
    file(format!("{{{}}}", entries.join(",")), &data)
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Little-endian 16-bit words.
pub(crate) fn halves(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
