//! Decoding of ggml blocks, in f32 and in the order of operations the layouts define: no fused
//! multiply-add, so results are bit-equal on every machine.
//!
//! Notation: "halves" means that byte `j` of `qs` holds element `j` in its low and element `j + n/2` in
//! its high nibble.

use super::GgmlType;
use half::f16;
use quant_core::FloatKind;

/// Points of IQ4_NL and IQ4_XS.
const IQ4: [f32; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// Twice the E2M1 values, by code; the library keeps them as integers, so code 8 is +0.
const E2M1_DOUBLED: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// Decodes blocks of a type; returns false where [`GgmlType::is_decodable`] does or the lengths disagree.
///
/// `bytes` holds whole blocks and `out` as many elements as they have.
///
/// ```
/// use quant_io::gguf::{GgmlType, dequantize};
/// let mut block = vec![0_u8; 34];
/// block[..2].copy_from_slice(&0x3800_u16.to_le_bytes()); // f16 0.5
/// block[2] = 3;
/// let mut out = [0.0; 32];
/// assert!(dequantize(GgmlType::Q8_0, &block, &mut out));
/// assert_eq!(out[..2], [1.5, 0.0]);
/// ```
#[must_use]
pub fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) -> bool {
    let (elements, size) = kind.block();
    if !bytes.len().is_multiple_of(size) || out.len() != bytes.len() / size * elements {
        return false;
    }
    if let Some(dtype) = kind.plain() {
        return dtype.decode_f32(bytes, out);
    }
    let block: fn(&[u8], &mut [f32]) = match kind {
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q2_K => q2_k,
        GgmlType::Q3_K => q3_k,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q5_K => q5_k,
        GgmlType::Q6_K => q6_k,
        GgmlType::IQ4_NL => iq4_nl,
        GgmlType::IQ4_XS => iq4_xs,
        GgmlType::TQ1_0 => tq1_0,
        GgmlType::TQ2_0 => tq2_0,
        GgmlType::MXFP4 => mxfp4,
        GgmlType::NVFP4 => nvfp4,
        GgmlType::Q1_0 => q1_0,
        _ => return false,
    };
    for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(elements)) {
        block(bytes, out);
    }
    true
}

// The functions below get exactly one block each, so their constant indices are in range.

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn low(byte: u8) -> f32 {
    f32::from(byte & 15)
}

fn high(byte: u8) -> f32 {
    f32::from(byte >> 4)
}

fn signed(byte: u8) -> f32 {
    f32::from(byte.cast_signed())
}

/// `d f16, qs[16]`: `d·(q − 8)`.
fn q4_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, &q) in b[2..18].iter().enumerate() {
        out[j] = d * (low(q) - 8.0);
        out[j + 16] = d * (high(q) - 8.0);
    }
}

/// `d, m f16, qs[16]`: `d·q + m`.
fn q4_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, &q) in b[4..20].iter().enumerate() {
        out[j] = d * low(q) + m;
        out[j + 16] = d * high(q) + m;
    }
}

/// The five-bit codes of Q5_0 and Q5_1: bit `j` of `qh` is bit 4 of element `j`.
fn five_bits(qh: &[u8], qs: &[u8], mut put: impl FnMut(usize, f32)) {
    let qh = u32::from_le_bytes([qh[0], qh[1], qh[2], qh[3]]);
    let top = |j: usize| if qh >> j & 1 == 1 { 16.0 } else { 0.0 };
    for (j, &q) in qs.iter().enumerate() {
        put(j, low(q) + top(j));
        put(j + 16, high(q) + top(j + 16));
    }
}

/// `d f16, qh u32, qs[16]`: `d·(q − 16)`.
fn q5_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    five_bits(&b[2..6], &b[6..22], |j, q| out[j] = d * (q - 16.0));
}

/// `d, m f16, qh u32, qs[16]`: `d·q + m`.
fn q5_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    five_bits(&b[4..8], &b[8..24], |j, q| out[j] = d * q + m);
}

/// `d f16, i8[32]`: `d·q`.
fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (&q, out) in b[2..34].iter().zip(out) {
        *out = d * signed(q);
    }
}

/// Two-bit codes of Q2_K, Q3_K and TQ2_0: element `128h + 32i + l` is bits `2i` of byte `32h + l`.
fn two_bits(qs: &[u8], mut put: impl FnMut(usize, u8)) {
    for (h, half) in qs.chunks_exact(32).enumerate() {
        for i in 0..4 {
            for (l, &q) in half.iter().enumerate() {
                put(128 * h + 32 * i + l, q >> (2 * i) & 3);
            }
        }
    }
}

/// `sc[16], qs[64], d, dmin f16`: `d·(sc & 15)·q − dmin·(sc >> 4)`, one `sc` for 16 elements.
fn q2_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    two_bits(&b[16..80], |at, q| {
        let sc = b[at / 16];
        out[at] = d * low(sc) * f32::from(q) - dmin * high(sc);
    });
}

/// `hmask[32], qs[64], sc[12], d f16`: `d·(S − 32)·(q − (bit ? 0 : 4))`; bit `i` of `hmask[l]` belongs to
/// element `32i + l`.
fn q3_k(b: &[u8], out: &mut [f32]) {
    let (mask, sc, d) = (&b[..32], &b[96..108], half_at(b, 108));
    let scale = |j: usize| {
        let low = if j < 8 { sc[j] & 15 } else { sc[j - 8] >> 4 };
        d * (f32::from(low | (sc[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32.0)
    };
    let scales: [f32; 16] = std::array::from_fn(scale);
    two_bits(&b[32..96], |at, q| {
        let lower = if mask[at % 32] >> (at / 32) & 1 == 1 { 0.0 } else { 4.0 };
        out[at] = scales[at / 16] * (f32::from(q) - lower);
    });
}

/// The 6-bit scale and minimum of 32-group `j` in Q4_K and Q5_K.
fn scale_min(sc: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (sc[j] & 63, sc[j + 4] & 63)
    } else {
        ((sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4, (sc[j + 4] >> 4) | (sc[j] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// `d, dmin f16, sc[12], qs[128]`: `(d·S)·q − dmin·M`; byte `32g + l` holds elements `64g + l` and
/// `64g + 32 + l`.
fn q4_k(b: &[u8], out: &mut [f32]) {
    k_4_5(b, &b[16..144], |_, _| 0.0, out);
}

/// As Q4_K with `qh[32]` before `qs`: bit `j` of byte `l` is bit 4 of element `32j + l`.
fn q5_k(b: &[u8], out: &mut [f32]) {
    let qh = &b[16..48];
    k_4_5(b, &b[48..176], |j, l| if qh[l] >> j & 1 == 1 { 16.0 } else { 0.0 }, out);
}

fn k_4_5(b: &[u8], qs: &[u8], top: impl Fn(usize, usize) -> f32, out: &mut [f32]) {
    let (d, dmin, sc) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(sc, j);
        let (scale, min) = (d * scale, dmin * min);
        let group = &qs[32 * (j / 2)..][..32];
        for (l, (&q, out)) in group.iter().zip(out).enumerate() {
            let nibble = if j % 2 == 0 { low(q) } else { high(q) };
            *out = scale * (nibble + top(j, l)) - min;
        }
    }
}

/// `ql[128], qh[64], i8 sc[16], d f16`: `d·sc·(q − 32)`, one `sc` for 16 elements.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 208);
    for (h, out) in out.chunks_exact_mut(128).enumerate() {
        let (ql, qh, sc) = (&b[64 * h..][..64], &b[128 + 32 * h..][..32], &b[192 + 8 * h..][..8]);
        for (at, out) in out.iter_mut().enumerate() {
            let (quarter, l) = (at / 32, at % 32);
            let byte = ql[32 * (quarter % 2) + l];
            let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
            let q = nibble | (qh[l] >> (2 * quarter) & 3) << 4;
            *out = d * signed(sc[at / 16]) * (f32::from(q) - 32.0);
        }
    }
}

/// `d f16, qs[16]` halves: `d·T[q]`.
fn iq4_nl(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, &q) in b[2..18].iter().enumerate() {
        out[j] = d * IQ4[usize::from(q & 15)];
        out[j + 16] = d * IQ4[usize::from(q >> 4)];
    }
}

/// `d f16, scales_h u16, scales_l[4], qs[128]`: 32-groups in halves, `(d·l)·T[q]` with a 6-bit `l − 32`.
fn iq4_xs(b: &[u8], out: &mut [f32]) {
    let (d, top) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let nibble = b[4 + j / 2] >> (4 * (j % 2)) & 15;
        let code = u16::from(nibble) | (top >> (2 * j) & 3) << 4;
        let scale = d * (f32::from(code) - 32.0);
        for (l, &q) in b[8 + 16 * j..][..16].iter().enumerate() {
            out[l] = scale * IQ4[usize::from(q & 15)];
            out[l + 16] = scale * IQ4[usize::from(q >> 4)];
        }
    }
}

/// `qs[48], qh[4], d f16`: five trits a byte, the first most significant, four in `qh`.
fn tq1_0(b: &[u8], out: &mut [f32]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half_at(b, 52);
    let trit = |byte: u8, n: usize| f32::from((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) - 1.0;
    for n in 0..5 {
        for l in 0..32 {
            out[32 * n + l] = d * trit(b[l], n);
        }
        for l in 0..16 {
            out[160 + 16 * n + l] = d * trit(b[32 + l], n);
        }
    }
    for n in 0..4 {
        for l in 0..4 {
            out[240 + 4 * n + l] = d * trit(b[48 + l], n);
        }
    }
}

/// `qs[64], d f16`: `d·(q − 1)`.
fn tq2_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 64);
    two_bits(&b[..64], |at, q| out[at] = d * (f32::from(q) - 1.0));
}

/// `e u8, qs[16]` halves: doubled E2M1 times `2^(e − 128)`.
fn mxfp4(b: &[u8], out: &mut [f32]) {
    // 2^-128 and 2^-127 are subnormal f32.
    let scale = match b[0] {
        0 => f32::from_bits(0x20_0000),
        1 => f32::from_bits(0x40_0000),
        e => f32::from_bits(u32::from(e - 1) << 23),
    };
    for (j, &q) in b[1..17].iter().enumerate() {
        out[j] = E2M1_DOUBLED[usize::from(q & 15)] * scale;
        out[j + 16] = E2M1_DOUBLED[usize::from(q >> 4)] * scale;
    }
}

/// `d[4] UE4M3, qs[32]`: 16 elements a scale in halves of 8 bytes; scale byte 7F counts as 0.
fn nvfp4(b: &[u8], out: &mut [f32]) {
    for (j, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = 0.5 * unsigned_e4m3(b[j]);
        for (l, &q) in b[4 + 8 * j..][..8].iter().enumerate() {
            out[l] = E2M1_DOUBLED[usize::from(q & 15)] * scale;
            out[l + 8] = E2M1_DOUBLED[usize::from(q >> 4)] * scale;
        }
    }
}

/// E4M3 whose bit 7 is ignored; 7F reads as 0, FF (which no encoder writes) as the 480 its bits say.
fn unsigned_e4m3(byte: u8) -> f32 {
    match byte {
        0x7f => 0.0,
        0xff => 480.0,
        _ => FloatKind::E4m3Fn.decode(u16::from(byte & 0x7f)),
    }
}

/// `d f16, bits[16]`: bit set `d`, else `−d`.
fn q1_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = if b[2 + j / 8] >> (j % 8) & 1 == 1 { d } else { -d };
    }
}
