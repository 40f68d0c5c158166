//! Operations on sixteen lanes of 32 bits: what the products need of an instruction set.
//!
//! Arguments of type `F` are sixteen f32, of `I` sixteen integers or four bytes a lane, of `T` a table of sixteen f32.
//! An expression says what is done to one register, `$a` being the part of argument `a` that it has; what stands before
//! `=>` is done once for all registers. Expressions for x86 name what differs by width: `$mm` and `$si` are the prefix and
//! suffix of intrinsics on a register, `$hm` the prefix for half a register; `$load16` and `$load8` load as
//! many 16-bit and 8-bit numbers as a register has lanes. Expressions for NEON may use the functions of `kernels/neon.rs`. An expression that starts with `=` is the whole body.

use super::isas::{ISAS, Isa};
use super::{Signature, doc, fill, mentions};

struct Operation {
    doc: &'static str,
    signature: Signature,
    /// The plain form: what is done to lane `i`.
    plain: &'static str,
    x86: &'static str,
    neon: &'static str,
    /// Where an instruction set has something better.
    own: Option<(&'static str, &'static str)>,
}

const fn operation(
    doc: &'static str,
    signature: &'static str,
    plain: &'static str,
    x86: &'static str,
    neon: &'static str,
) -> Operation {
    Operation { doc, signature: Signature(signature), plain, x86, neon, own: None }
}

impl Operation {
    const fn but(self, isa: &'static str, expression: &'static str) -> Self {
        Self { own: Some((isa, expression)), ..self }
    }
}

#[rustfmt::skip]
const OPERATIONS: &[Operation] = &[
    operation("", "splat(x: f32) -> F", "x", "$mm_set1_ps(x)",
        "vdupq_n_f32(x)"),
    operation("", "load(x: &[f32; 16]) -> F", "x[i]", "$mm_loadu_ps($x.as_ptr())",
        "vld1q_f32($x.as_ptr())"),
    operation("", "store(x: F, out: &mut [f32; 16])", "=*out = x;", "$mm_storeu_ps($out.as_mut_ptr(), $x)",
        "vst1q_f32($out.as_mut_ptr(), $x)"),
    operation("", "add(a: F, b: F) -> F", "a[i] + b[i]", "$mm_add_ps($a, $b)",
        "vaddq_f32($a, $b)"),
    operation("", "mul(a: F, b: F) -> F", "a[i] * b[i]", "$mm_mul_ps($a, $b)",
        "vmulq_f32($a, $b)"),
    operation("`a·b + c`.", "mul_add(a: F, b: F, c: F) -> F", "a[i] * b[i] + c[i]", "$mm_fmadd_ps($a, $b, $c)",
        "vfmaq_f32($c, $a, $b)"),
    operation("", "line(line: &Line) -> I",
        "=let words = line.0.as_chunks::<4>().0; std::array::from_fn(|i| u32::from_le_bytes(words[i]))",
        "$mm_load_$si($line.as_ptr().cast())",
            "vreinterpretq_u32_u8(vld1q_u8($line.as_ptr()))"),
    operation("", "store_line(x: I, out: &mut Line)",
        "=for (bytes, x) in out.0.as_chunks_mut::<4>().0.iter_mut().zip(x) { *bytes = x.to_le_bytes(); }",
        "$mm_store_$si($out.as_mut_ptr().cast(), $x)",
            "vst1q_u8($out.as_mut_ptr(), vreinterpretq_u8_u32($x))"),
    operation("", "int(x: i32) -> I", "x.cast_unsigned()", "$mm_set1_epi32(x)",
        "vdupq_n_u32(x.cast_unsigned())"),
    operation("", "plus(a: I, b: I) -> I", "a[i].wrapping_add(b[i])", "$mm_add_epi32($a, $b)",
        "vaddq_u32($a, $b)"),
    operation("", "and(a: I, b: I) -> I", "a[i] & b[i]", "$mm_and_$si($a, $b)",
        "vandq_u32($a, $b)"),
    operation("Bits of `a` where the mask has ones, else of `b`.", "select(mask: I, a: I, b: I) -> I",
            "(a[i] & mask[i]) | (b[i] & !mask[i])",
            "$mm_or_$si($mm_and_$si($mask, $a), $mm_andnot_$si($mask, $b))",
            "vbslq_u32($mask, $a, $b)")
        .but("Avx512", "_mm512_ternarylogic_epi32::<0xca>($mask, $a, $b)"),
    operation("Each lane shifted right, zeros entering.", "right(x: I, bits: u32) -> I", "x[i] >> bits",
        "let count = $mm_set1_epi32(bits.cast_signed()); => $mm_srlv_epi32($x, count)",
            "let by = vdupq_n_s32(-bits.cast_signed()); => vshlq_u32($x, by)"),
    operation("Each lane rotated right.", "rotate(x: I, bits: u32) -> I", "x[i].rotate_right(bits)",
            "let (right, left) = ($mm_set1_epi32(bits.cast_signed()), $mm_set1_epi32(32 - bits.cast_signed())); =>
             $mm_or_$si($mm_srlv_epi32($x, right), $mm_sllv_epi32($x, left))",
            "let (right, left) = (vdupq_n_s32(-bits.cast_signed()), vdupq_n_s32(32 - bits.cast_signed())); =>
             vorrq_u32(vshlq_u32($x, right), vshlq_u32($x, left))")
        .but("Avx512", "_mm512_rorv_epi32($x, _mm512_set1_epi32(bits.cast_signed()))"),
    operation("", "to_floats(x: I) -> F", "x[i].cast_signed() as f32", "$mm_cvtepi32_ps($x)",
        "vcvtq_f32_s32(vreinterpretq_s32_u32($x))"),
    operation("Byte `index` of each lane as a signed number.", "signed_byte(x: I, index: u32) -> F",
        "f32::from(x[i].to_le_bytes()[index as usize & 3].cast_signed())",
        "let count = $mm_set1_epi32(24 - 8 * index.cast_signed()); =>
         $mm_cvtepi32_ps($mm_srai_epi32::<24>($mm_sllv_epi32($x, count)))",
            "let by = vdupq_n_s32(24 - 8 * index.cast_signed()); =>
         vcvtq_f32_s32(vshrq_n_s32::<24>(vreinterpretq_s32_u32(vshlq_u32($x, by))))"),
    operation("", "table(values: &[f32; 16]) -> T", "=*values", "$mm_loadu_ps($values.as_ptr())",
        "vld1q_f32($values.as_ptr())"),
    // The lookups heed the low three bits of an index only; the fourth is moved to the sign.
    operation("The entry that the low four bits of each lane name; higher bits are ignored.",
            "lookup(table: T, index: I) -> F", "table[(index[i] & 15) as usize]",
            "_mm512_permutexvar_ps($index, $table)",
            "let all = uint8x16x4_t(vreinterpretq_u8_f32(table[0]), vreinterpretq_u8_f32(table[1]),
                 vreinterpretq_u8_f32(table[2]), vreinterpretq_u8_f32(table[3]));
             // Where the four bytes of an entry are.
             let (entry, bytes) = (vdupq_n_u32(15), vdupq_n_u32(0x0302_0100)); =>
             vreinterpretq_f32_u8(vqtbl4q_u8(all,
                 vreinterpretq_u8_u32(vmlaq_n_u32(bytes, vandq_u32($index, entry), 0x0404_0404))))")
        .but("Avx2", "_mm256_blendv_ps(_mm256_permutevar8x32_ps(table[0], $index),
            _mm256_permutevar8x32_ps(table[1], $index), _mm256_castsi256_ps(_mm256_slli_epi32::<28>($index)))"),
    operation("A table of bytes for [`Lanes::lookup_bytes`].", "byte_table(values: &[u8; 16]) -> I",
            "u32::from(values[i])", "_mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast()))",
            "vreinterpretq_u32_u8(vld1q_u8(values.as_ptr()))")
        .but("Avx512", "_mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast()))"),
    operation("The entries that bytes below 16 name.", "lookup_bytes(table: I, index: I) -> I",
        "=let entry = |byte: u32| table[(byte & 15) as usize];
         index.map(|i| entry(i) | entry(i >> 8) << 8 | entry(i >> 16) << 16 | entry(i >> 24) << 24)",
        "$mm_shuffle_epi8($table, $index)",
            "vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32($table), vreinterpretq_u8_u32($index)))"),
    operation("Sums of bytes, modulo 256.", "plus_bytes(a: I, b: I) -> I",
        "=// The top bit of each byte is added apart, so that no carry leaves it.
         const LOW: u32 = 0x7f7f_7f7f;
         std::array::from_fn(|i| ((a[i] & LOW) + (b[i] & LOW)) ^ ((a[i] ^ b[i]) & !LOW))",
        "$mm_add_epi8($a, $b)",
            "vreinterpretq_u32_u8(vaddq_u8(vreinterpretq_u8_u32($a), vreinterpretq_u8_u32($b)))"),
    operation("Lane `r` is four copies of byte `r`.", "repeat_bytes(bytes: &[u8; 16]) -> I",
            "u32::from(bytes[i]) * 0x0101_0101",
            "let factor = $mm_set1_epi32(0x0101_0101); =>
             $mm_mullo_epi32($mm_cvtepu8_epi32($load8($bytes.as_ptr().cast())), factor)",
            "vmulq_n_u32(neon::widen($bytes.as_ptr()), 0x0101_0101)")
        .but("Avx512", "let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast())); =>
            _mm512_shuffle_epi8(wide, _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0))"),
    operation(
            "Adds to each lane the sum of four products: unsigned bytes of the lane times the signed bytes of `x`.",
            "dot(sum: I, bytes: I, x: i32) -> I",
            "=let x = x.to_le_bytes().map(|x| i32::from(x.cast_signed()));
             std::array::from_fn(|i| {
                 let w = bytes[i].to_le_bytes().map(i32::from);
                 let products = w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
                 sum[i].wrapping_add(products.cast_unsigned())
             })",
            "// Bytes are widened to words, so that nothing saturates.
             let x = $mm_set1_epi32(x);
             let (even, odd) = ($mm_srai_epi16::<8>($mm_slli_epi16::<8>(x)), $mm_srai_epi16::<8>(x));
             let low = $mm_set1_epi16(0xff); =>
             $mm_add_epi32($mm_add_epi32($sum, $mm_madd_epi16($mm_and_$si($bytes, low), even)),
                 $mm_madd_epi16($mm_srli_epi16::<8>($bytes), odd))",
            "// Bytes less 128 are signed; 128 times the sum of the inputs is added apart.
             let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
             let (less, top) = (neon::dot(vdupq_n_s32(0), vdupq_n_s8(i8::MIN), x), vdupq_n_u8(0x80)); =>
             vreinterpretq_u32_s32(neon::dot(vsubq_s32(vreinterpretq_s32_u32($sum), less),
                 vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32($bytes), top)), x))")
        .but("Avx512", "_mm512_dpbusd_epi32($sum, $bytes, _mm512_set1_epi32(x))"),
    operation(
            "Four columns of 8-bit floats whose upper byte as f16 is the code (`wide`: five exponent bits), or the code\n\
             with a zero bit put after its sign (four exponent bits).",
            "small_floats(line: &Line, wide: bool) -> [F; 4]",
            "=std::array::from_fn(|column| std::array::from_fn(|row| {
                 let code = u16::from(line.0[32 * (column / 2) + 2 * row + column % 2]);
                 f16::from_bits(if wide { code << 8 } else { (code & 0x80) << 8 | (code & 0x7f) << 7 }).to_f32()
             }))",
            "=$words
             let floats =
                 |x| [_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x))];
             let first = _mm256_load_si256(line.0.as_ptr().cast());
             let second = _mm256_load_si256(line.0[32..].as_ptr().cast());
             [
                 floats(half(_mm256_slli_epi16::<8>(first))),
                 floats(half(first)),
                 floats(half(_mm256_slli_epi16::<8>(second))),
                 floats(half(second)),
             ]",
            "=let half = |x| {
                 if wide {
                     vandq_u16(x, vdupq_n_u16(0xff00))
                 } else {
                     vorrq_u16(vandq_u16(vshrq_n_u16::<1>(x), vdupq_n_u16(0x3f80)), vandq_u16(x, vdupq_n_u16(0x8000)))
                 }
             };
             let codes = |part: usize| vreinterpretq_u16_u8(vld1q_u8(line.0[16 * part..].as_ptr()));
             let floats = |x: [uint16x8_t; 2]| [neon::halves(vget_low_u16(x[0])), neon::halves(vget_high_u16(x[0])), neon::halves(vget_low_u16(x[1])), neon::halves(vget_high_u16(x[1]))];
             let [first, second] = [[codes(0), codes(1)], [codes(2), codes(3)]];
             let even = |x: [uint16x8_t; 2]| floats(x.map(|x| half(vshlq_n_u16::<8>(x))));
             let odd = |x: [uint16x8_t; 2]| floats(x.map(half));
             [even(first), odd(first), even(second), odd(second)]")
        .but("Avx512", "=$words
            let codes = _mm512_load_si512(line.0.as_ptr().cast());
            let (even, odd) = (half(_mm512_slli_epi16::<8>(codes)), half(codes));
            [
                _mm512_cvtph_ps(_mm512_castsi512_si256(even)),
                _mm512_cvtph_ps(_mm512_castsi512_si256(odd)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(even)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(odd)),
            ]"),
];

/// Codes in the upper bytes of words as f16.
const WORDS: &str = "let half = |x| {
    if wide {
        $mm_and_$si(x, $mm_set1_epi16(0xff00_u16.cast_signed()))
    } else {
        let magnitude = $mm_and_$si($mm_srli_epi16::<1>(x), $mm_set1_epi16(0x3f80));
        $mm_or_$si(magnitude, $mm_and_$si(x, $mm_set1_epi16(i16::MIN)))
    }
};";

/// How scales and zero points are stored.
struct Codec {
    doc: &'static str,
    name: &'static str,
    /// Bytes of one.
    bytes: usize,
    /// The value of number `i`.
    plain: &'static str,
    /// As many as a register has lanes, from the pointer `$p` on.
    x86: &'static str,
    neon: &'static str,
}

#[rustfmt::skip]
const CODECS: &[Codec] = &[
    Codec { doc: "f32.", name: "F32", bytes: 4, plain: "f32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * i + byte]))",
        x86: "$mm_loadu_ps($p)",
        neon: "vld1q_f32($p)" },
    Codec { doc: "f16.", name: "F16", bytes: 2, plain: "f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()",
        x86: "$mm_cvtph_ps($load16($p))",
        neon: "neon::halves(vld1_u16($p))" },
    Codec { doc: "bf16.", name: "Bf16", bytes: 2, plain: "bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()",
        x86: "$mm_cast$si_ps($mm_slli_epi32::<16>($mm_cvtepu16_epi32($load16($p))))",
        neon: "vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16($p)))" },
    Codec { doc: "A power of two.", name: "E8m0", bytes: 1, plain: "f32::from_bits((u32::from(bytes[i]) << 23).max(1 << 22))",
        x86: "$mm_cast$si_ps($mm_max_epu32(
            $mm_slli_epi32::<23>($mm_cvtepu8_epi32($load8($p))), $mm_set1_epi32(1 << 22)))",
        neon: "vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32::<23>(neon::widen($p)), vdupq_n_u32(1 << 22)))" },
    Codec { doc: "E4M3 without its sign, read as 2⁻⁸ of its value.", name: "E4m3", bytes: 1, plain: "f16::from_bits(u16::from(bytes[i]) << 7).to_f32()",
        x86: "$mm_cvtph_ps($hm_slli_epi16::<7>($hm_cvtepu8_epi16($load8($p))))",
        neon: "neon::halves(vmovn_u32(vshlq_n_u32::<7>(neon::widen($p))))" },
    Codec { doc: "An unsigned integer, for zero points.", name: "Byte", bytes: 1, plain: "f32::from(bytes[i])",
        x86: "$mm_cvtepi32_ps($mm_cvtepu8_epi32($load8($p)))",
        neon: "vcvtq_f32_u32(neon::widen($p))" },
];

/// The trait of lanes and what implements it.
pub(super) fn write() -> String {
    let signature = |operation: &Operation| {
        let arguments = operation.signature.arguments();
        let arguments: String = arguments.iter().map(|(name, kind)| format!(", {name}: {}", typed(kind))).collect();
        let out = operation.signature.out().strip_prefix(" -> ").map(|out| format!(" -> {}", typed(out)));
        format!("fn {}(self{arguments}){}", operation.signature.name(), out.unwrap_or_default())
    };
    let mut declared = String::new();
    let mut plain = String::new();
    for operation in OPERATIONS {
        declared += &format!("{}{};\n", doc(operation.doc), signature(operation));
        let body = match operation.plain.strip_prefix('=') {
            Some(body) => body.to_owned(),
            None if mentions(operation.plain, "i") => format!("std::array::from_fn(|i| {})", operation.plain),
            None => format!("[{}; 16]", operation.plain),
        };
        let lint = if operation.signature.name() == "to_floats" { ROUNDED } else { "" };
        plain += &format!("#[inline(always)]\n{lint}{} {{ {body} }}\n\n", signature(operation));
    }
    let (mut codecs, mut bytes, mut arms) = (String::new(), String::new(), String::new());
    for codec in CODECS {
        codecs += &format!("{}{},\n", doc(codec.doc), codec.name);
        bytes += &format!("Self::{} => {},\n", codec.name, 16 * codec.bytes);
        arms += &format!("Codec::{} => std::array::from_fn(|i| {}),\n", codec.name, codec.plain);
    }
    let sets: String = ISAS.iter().map(|isa| implementation(isa, &signature)).collect();
    let values = [("declared", declared), ("plain", plain), ("codecs", codecs), ("bytes", bytes), ("arms", arms)];
    fill(&fill(MODULE, &values), &[("sets", sets)])
}

const ROUNDED: &str =
    "#[expect(clippy::cast_precision_loss, reason = \"rounded to nearest even, as the vector instructions do\")]\n";

/// A type of the description as the trait names it.
fn typed(kind: &str) -> String {
    match kind {
        "F" => "Self::Floats".to_owned(),
        "I" => "Self::Ints".to_owned(),
        "T" => "Self::Table".to_owned(),
        "[F; 4]" => "[Self::Floats; 4]".to_owned(),
        other => other.to_owned(),
    }
}

/// The lanes of an instruction set.
fn implementation(isa: &Isa, signature: &dyn Fn(&Operation) -> String) -> String {
    let lanes = &isa.lanes;
    let held = |register: &str| match lanes.registers {
        1 => register.to_owned(),
        count => format!("[{register}; {count}]"),
    };
    let words = fill(WORDS, lanes.words);
    let mut methods = String::new();
    for operation in OPERATIONS {
        let own = operation.own.filter(|(name, _)| *name == isa.name).map(|(_, own)| own);
        let expression =
            fill(&fill(own.unwrap_or(isa.pick(operation.x86, operation.neon)), &[("words", &words)]), lanes.words);
        let body = match expression.strip_prefix('=') {
            Some(body) => body.to_owned(),
            None => by_register(operation, &expression, lanes.registers),
        };
        methods += &format!(
            "#[inline(always)]
            {} {{
                // SAFETY: a value of `Self` proves the features, and references hold what is read or written.
                unsafe {{ {body} }}
            }}\n\n",
            signature(operation)
        );
    }
    let mut arms = String::new();
    for codec in CODECS {
        let parts: Vec<String> = (0..lanes.registers)
            .map(|register| {
                let from = pointer("bytes", 16 * codec.bytes / lanes.registers * register);
                fill(&fill(isa.pick(codec.x86, codec.neon), lanes.words), &[("p", format!("{from}.as_ptr().cast()"))])
            })
            .collect();
        arms += &format!("Codec::{} => {},\n", codec.name, together(&parts));
    }
    let values = [("cfg", isa.cfg()), ("floats", held(lanes.floats)), ("ints", held(lanes.ints)), ("methods", methods)];
    let prefetch = isa.pick(PREFETCH, "neon::prefetch(address);").to_owned();
    let wide = (lanes.batches.len() > 2).to_string();
    let others = [("name", lanes.name.to_owned()), ("wide", wide), ("arms", arms), ("prefetch", prefetch)];
    fill(&fill(SET, &values), &others)
}

/// An expression once a register.
fn by_register(operation: &Operation, expression: &str, registers: usize) -> String {
    let (before, each) = expression.split_once("=>").unwrap_or(("", expression));
    let of = |register: usize| {
        let part = |(name, kind): &(&'static str, &'static str)| {
            let place = |bytes: usize| bytes / registers * register;
            let text = match *kind {
                "F" | "I" | "T" if registers == 1 => (*name).to_owned(),
                "F" | "I" | "T" => format!("{name}[{register}]"),
                "&Line" | "&mut Line" => pointer(&format!("{name}.0"), place(64)),
                _ => pointer(name, place(16)),
            };
            (*name, text)
        };
        let parts: Vec<(&str, String)> = operation.signature.arguments().iter().map(part).collect();
        fill(each.trim(), &parts)
    };
    let parts: Vec<String> = (0..registers).map(of).collect();
    if operation.signature.out().is_empty() { parts.join(";\n") } else { format!("{before}{}", together(&parts)) }
}

/// What lies from some place of a slice on.
fn pointer(slice: &str, from: usize) -> String {
    if from == 0 { slice.to_owned() } else { format!("{slice}[{from}..]") }
}

/// Registers as the type that holds them.
fn together(parts: &[String]) -> String {
    if let [one] = parts { one.clone() } else { format!("[{}]", parts.join(", ")) }
}

const MODULE: &str = "//! Sixteen lanes of 32 bits: what the products need of an instruction set.

#[cfg(any(target_arch = \"x86_64\", target_arch = \"aarch64\"))]
use super::isa::*;
#[cfg(target_arch = \"aarch64\")]
use crate::kernels::neon;
use crate::kernels::tiles::Line;
use half::{bf16, f16};
#[cfg(target_arch = \"aarch64\")]
use std::arch::aarch64::*;
#[cfg(target_arch = \"x86_64\")]
use std::arch::x86_64::*;

/// How scales and zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    $codecs
}

impl Codec {
    /// Bytes of sixteen.
    #[inline(always)]
    pub(crate) fn bytes(self) -> usize {
        match self {
            $bytes
        }
    }
}

/// Operations on sixteen lanes. A value proves that the CPU has the instructions.
///
/// Integer operations give the same bits everywhere; `mul_add` may round once or twice.
pub(crate) trait Lanes: Copy {
    /// Sixteen f32.
    type Floats: Copy;
    /// Sixteen 32-bit integers, or four bytes in each lane.
    type Ints: Copy;
    /// A table of sixteen f32.
    type Table: Copy;
    /// Whether sums of more than two rows of inputs fit the registers.
    const WIDE: bool;

    $declared

    /// Sixteen stored scales.
    fn scales(self, codec: Codec, bytes: &[u8]) -> Self::Floats;

    /// Asks for what lies so many bytes ahead.
    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        let _ = (from, ahead);
    }
}

/// Arrays and loops, in the instructions that every CPU of the target has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain;

impl Lanes for Plain {
    type Floats = [f32; 16];
    type Ints = [u32; 16];
    type Table = [f32; 16];
    const WIDE: bool = false;

    $plain

    #[inline(always)]
    fn scales(self, codec: Codec, bytes: &[u8]) -> Self::Floats {
        match codec {
            $arms
        }
    }
}

$sets";

const PREFETCH: &str = "// SAFETY: a prefetch reads nothing and faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }";

const SET: &str = "$cfg impl Lanes for $name {
    type Floats = $floats;
    type Ints = $ints;
    type Table = $floats;
    const WIDE: bool = $wide;

    $methods

    #[inline(always)]
    fn scales(self, codec: Codec, bytes: &[u8]) -> Self::Floats {
        let bytes = &bytes[..codec.bytes()];
        // SAFETY: a value of `Self` proves the features; the slice holds sixteen scales of this codec.
        unsafe {
            match codec {
                $arms
            }
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        let address = from.as_ptr().cast::<i8>().wrapping_add(ahead);
        $prefetch
    }
}

";
