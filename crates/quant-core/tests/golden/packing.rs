//! Bit streams. What containers do around them belongs to quant-io.

use crate::vectors::open;
use quant_core::bits;

/// The bytes of little-endian words, cut to a row's own bytes.
fn bytes(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// One row as whole 32-bit words.
fn row_words(width: u32, codes: &[u16]) -> Vec<u8> {
    let mut row = bits::pack(width, codes).unwrap();
    row.resize(row.len().next_multiple_of(4), 0);
    row
}

/// Rows of codes as rows of words.
fn packed_rows(width: u32, codes: &[u16], columns: usize) -> Vec<u8> {
    codes.chunks_exact(columns).flat_map(|row| row_words(width, row)).collect()
}

fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns;
    (0..columns).flat_map(|c| (0..rows).map(move |r| r * columns + c)).map(|i| values[i]).collect()
}

#[test]
fn dense_streams_are_those_of_compressed_tensors() {
    for file in open("packing_ct") {
        for width in 1..=8_u32 {
            let key = |part: &str| format!("ct_dense/b{width}/{part}");
            let offset = 1_i16 << (width - 1);
            let codes: Vec<u16> =
                file.i8(&key("values")).iter().map(|&v| (i16::from(v) + offset).cast_unsigned()).collect();
            let columns = file.shape(&key("values"))[1];
            let rows = file.shape(&key("values"))[0];
            let along_rows = bytes(&file.i32(&key("dim1")));
            file.codes(&key("dim1"), &packed_rows(width, &codes, columns), &along_rows);
            let along_columns = packed_rows(width, &transposed(&codes, columns), rows);
            let words = file.i32(&key("dim0"));
            file.codes(&key("dim0"), &along_columns, &bytes(&transposed(&words, columns)));
            for (row, codes) in along_rows.chunks_exact(along_rows.len() / rows).zip(codes.chunks_exact(columns)) {
                file.codes("unpacked", &bits::unpack(width, row, columns).unwrap(), codes);
            }
            if 32 % width == 0 {
                let key = |part: &str| format!("ct_legacy/b{width}/{part}");
                file.codes(&key("dim1"), &packed_rows(width, &codes, columns), &bytes(&file.i32(&key("dim1"))));
                file.codes(&key("dim0"), &along_columns, &bytes(&transposed(&file.i32(&key("dim0")), columns)));
            }
        }
        file.leave("words with unused bits (width 3, 5, 6, 7 up to 0.16) are a container matter", |name| {
            name.starts_with("ct_legacy")
        });
        file.finish();
    }
}

#[test]
fn dense_streams_are_those_of_gptq_and_awq_gemv() {
    for file in open("packing_gptq_awq_bitnet") {
        for width in [2, 3, 4, 8] {
            let key = |part: &str| format!("gptq/b{width}/{part}");
            let codes: Vec<u16> = file.u8(&key("q")).into_iter().map(u16::from).collect();
            let (outputs, inputs) = (file.shape(&key("q"))[0], file.shape(&key("q"))[1]);
            // Packed along the inputs, then stored input-major.
            let words = transposed(&file.i32(&key("qweight")), outputs);
            file.codes(&key("qweight"), &packed_rows(width, &codes, inputs), &bytes(&words));
            // Stored minus one.
            let zeros: Vec<u16> = file.u8(&key("zp")).into_iter().map(|z| u16::from(z) - 1).collect();
            let groups = file.shape(&key("zp"))[1];
            let got = packed_rows(width, &transposed(&zeros, groups), outputs);
            file.codes(&key("qzeros"), &got, &bytes(&file.i32(&key("qzeros"))));
            let scales: Vec<f32> =
                file.f32(&key("scales_in")).iter().map(|&s| half::f16::from_f32(s).to_f32()).collect();
            file.floats(&key("scales"), &transposed(&scales, groups), &file.f16(&key("scales")));
        }
        let codes: Vec<u16> = file.u8("awq/q").into_iter().map(u16::from).collect();
        let got = packed_rows(4, &codes, file.shape("awq/q")[1]);
        file.codes("awq_gemv/qweight", &got, &bytes(&file.i32("awq_gemv/qweight")));
        file.leave("interleaved orders and index arrays are a container matter", |name| {
            name.starts_with("awq") || name.starts_with("bitnet") || name.contains("g_idx") || name.contains("deq_KxN")
        });
        file.finish();
    }
}
