//! The steps of encoding and decoding.

use super::isas::{ISAS, Isa, list};
use super::{Signature, doc, fill, mentions};
use Own::{Body, Call};

struct Step {
    doc: &'static str,
    signature: Signature,
    /// What every instruction set can do, and compiles for itself where it has nothing of its own.
    plain: &'static str,
    own: &'static [(&'static str, Own)],
}

/// What an instruction set does instead.
#[derive(Clone, Copy)]
enum Own {
    /// A function of the same arguments, called where the features are enabled.
    Call(&'static str),
    /// A body that uses none of them, or only through other steps.
    Body(&'static str),
}

const FENCE: &str = "// SAFETY: SSE, which every x86-64 has.
    unsafe { std::arch::x86_64::_mm_sfence() }";

#[rustfmt::skip]
const STEPS: &[Step] = &[
    step("stream_bytes(from: &[u8], to: &mut [u8])", "to.copy_from_slice(from)",
        &[("Avx2", Call("avx2::stream")), ("Avx512", Call("avx512::stream"))],
        "Copies `from` to `to`, of equal length, past the caches where it can."),
    step("fence()", "", &[("Avx2", Body(FENCE)), ("Avx512", Body(FENCE))],
        "Makes streamed copies visible to other threads in program order."),
    step("amax_blocks(x: &[f32], group: usize, ahead: usize, out: &mut [f32])", "ops::amax_blocks(x, group, out)",
        &[("Avx2", Call("avx2::amax_blocks")), ("Avx512", Call("avx512::amax_blocks"))],
        "The largest magnitude of each block of `group` values, the last may be shorter; infinite or NaN when\n\
         a value of the block is. Meanwhile asks for some of what lies `ahead` bytes further."),
    step("range_blocks(x: &[f32], group: usize, ahead: usize, least: &mut [f32], most: &mut [f32]) -> bool",
        "ops::range_blocks(x, group, least, most)",
        &[("Avx2", Call("avx2::range_blocks")), ("Avx512", Call("avx512::range_blocks"))],
        "Least and largest value of each block of `group` values, the last may be shorter. Returns whether\n\
         all values are finite; which of −0 and 0 counts as less is open."),
    step("error_sums(x: &[[f32; 8]], y: &[[f32; 8]], sums: &mut [[f64; 8]; 4], most: &mut [f64; 8])",
        "ops::error_sums(x, y, sums, most)", &[],
        "Adds up the errors of pairs of values, see [`ops::error_sums`]."),
    step("fit(plan: &RowEncoder, fitted: &mut Fitted, count: usize, out: &mut [u8]) -> bool",
        "encode::fit(plan, fitted, count, out)",
        &[("Avx512", Call("avx512::encode::fit"))],
        "Fits the first `count` blocks to the extremes in `fitted` and writes their stored scales. False when\n\
         the reference must decide."),
    step("encode_tiles(plan: &RowEncoder, fitted: &mut Fitted, x: &[f32], codes: &mut [u8], scales: &mut [u8], zeros: &mut [u8]) -> Option<usize>",
        "Some(0)",
        &[("Avx512", Call("avx512::encode::encode_tiles"))],
        "Encodes what it can of a row from its start on, and in one pass: returns how many values, a number\n\
         of whole blocks. `None` when the reference must decide."),
    step("encode_blocks(strip: &ops::Strip<'_>, codes: &mut [u8]) -> bool", "ops::encode_blocks(strip, codes)",
        &[("Avx2", Call("avx2::encode_blocks")), ("Avx512", Call("avx512::encode::encode_blocks"))],
        "Encodes blocks, a byte a code; meanwhile asks for the rest of what lies further. False when a value\n\
         without a scale is not finite."),
    step("encode_float16(x: &[f32], kind: ops::SmallFloat, ahead: usize, codes: &mut [u8]) -> bool",
        "ops::encode_float16(x, kind, codes)",
        &[("Avx2", Call("avx2::encode_float16"))],
        "Casts to a 16-bit float, little-endian; meanwhile asks for what lies `ahead` bytes further. False\n\
         when a value is not finite."),
    step("pack(codes: &[u8], bits: u32, out: &mut [u8])", "ops::pack(codes, bits, out)",
        &[("Avx512", Call("avx512::encode::pack"))],
        "Packs codes of fewer than 8 bits, see [`ops::pack`]."),
    step("unpack(bytes: &[u8], bits: u32, codes: &mut [u8])", "ops::unpack(bytes, bits, codes)",
        &[("Avx512", Call("avx512::decode::unpack"))],
        "Unpacks codes of fewer than 8 bits, see [`ops::unpack`]."),
    step("decodes_bits() -> bool", "false", &[("Avx512", Body("true"))],
        "Whether the strips to decode may hold codes of any number of bits, as they are stored."),
    step("decode(codes: &decode::Strip<'_>, out: &mut [f32])", "decode::decode_strip(codes, out, ops::lookup16)",
        &[("Avx2", Call("avx2::decode")), ("Avx512", Call("avx512::decode::decode"))],
        "Values of the codes of a strip."),
    step("strip_past_caches() -> usize", "ops::STRIP",
        &[("Avx2", Body("// So many stores may wait for memory while the next strip is decoded.\n512"))],
        "How long a strip [`Backend::decode_past_caches`] likes best."),
    step("decode_past_caches(codes: &decode::Strip<'_>, buffer: &mut [f32], out: &mut [f32])",
        "self.decode(codes, out)",
        &[
            ("Avx2", Body("self.decode(codes, buffer); self.stream_bytes(bytes_of(buffer), bytes_of_mut(out));")),
            ("Avx512", Body("// SAFETY: `self` proves the features.
                if !unsafe { avx512::decode::decode_past_caches(codes, out) } {
                    self.decode(codes, buffer);
                    self.stream_bytes(bytes_of(buffer), bytes_of_mut(out));
                }")),
        ],
        "The same past the caches where it can; `buffer` is as long as `out`."),
    step("decode_float16(kind: ops::SmallFloat, codes: &[u8], out: &mut [f32])",
        "ops::decode_float16(kind, codes, out)",
        &[("Avx512", Call("avx512::decode::decode_float16"))],
        "Values of 16-bit floats, little-endian."),
    step("round_column(rule: column::IntColumn, params: &column::Params, x: &[f32], codes: &mut [u32], rounded: &mut [f32]) -> bool",
        "column::round_strip(rule, params, x, codes, rounded)",
        &[], "See [`column::round_strip`]."),
    step("dots(inputs: &[f32], weights: &[f32], out: &mut [f32])", "product::dots(inputs, weights, out)",
        &[], "See [`product::dots`]."),
    step("dot_float16(kind: ops::SmallFloat, x: &[f32], weights: &[u8]) -> f32", "product::dot_float16(kind, x, weights)",
        &[("Avx512", Call("avx512::decode::dot_float16"))], "See [`product::dot_float16`]."),
];

const fn step(
    signature: &'static str,
    plain: &'static str,
    own: &'static [(&'static str, Own)],
    doc: &'static str,
) -> Step {
    Step { doc, signature: Signature(signature), plain, own }
}

impl Step {
    /// Arguments that a body does without, said to be so.
    fn unused(&self, body: &str) -> String {
        let given = self.signature.arguments();
        let unused: Vec<_> = given.iter().map(|(name, _)| *name).filter(|name| !mentions(body, name)).collect();
        match unused.as_slice() {
            [] => String::new(),
            [one] => format!("let _ = {one};"),
            some => format!("let _ = ({});", some.join(", ")),
        }
    }

    /// Whether the plain body is worth compiling again: it is a call of loops.
    fn has_loops(&self) -> bool {
        self.plain.contains("::") && self.plain.ends_with(')')
    }
}

/// The trait of steps and what implements it.
pub(super) fn write() -> String {
    let mut declared = String::new();
    for step in STEPS {
        let end = if step.signature.out().is_empty() && !step.plain.is_empty() { ";" } else { "" };
        let unused = step.unused(step.plain);
        declared +=
            &format!("{}{} {{ {unused} {}{end} }}\n\n", doc(step.doc), step.signature.after("&self"), step.plain);
    }
    let sets: String = ISAS.iter().map(implementation).collect();
    fill(MODULE, &[("declared", declared), ("sets", sets)])
}

fn implementation(isa: &Isa) -> String {
    let method = |step: &Step| {
        let signature = step.signature;
        let call = match step.own.iter().find(|(name, _)| *name == isa.name) {
            Some((_, Body(body))) => return format!("{} {{ {body} }}\n\n", signature.after("&self")),
            Some((_, Call(function))) => format!("{function}({})", signature.names()),
            None if step.has_loops() && !isa.features.is_empty() => step.plain.to_owned(),
            None => return String::new(),
        };
        let (mut used, mut given) = (Vec::new(), Vec::new());
        for (name, kind) in signature.arguments().into_iter().filter(|(name, _)| mentions(&call, name)) {
            used.push(format!("{name}: {kind}"));
            given.push(name);
        }
        let values = [
            ("signature", signature.after("&self")),
            ("features", list(isa.features)),
            ("unused", step.unused(&call)),
            ("arguments", used.join(", ")),
            ("out", signature.out().to_owned()),
            ("end", if signature.out().is_empty() { ";" } else { "" }.to_owned()),
            ("given", given.join(", ")),
            ("call", call),
        ];
        fill(COMPILED, &values)
    };
    let methods: String = STEPS.iter().map(method).collect();
    format!("{}impl Backend for {} {{\n{methods}\n}}\n\n", isa.cfg(), isa.name)
}

const COMPILED: &str = "$signature {
    #[target_feature(enable = \"$features\")]
    fn compiled($arguments)$out {
        $call$end
    }
    $unused
    // SAFETY: a value of `Self` proves the features.
    unsafe { compiled($given) }
}

";

const MODULE: &str = "//! The steps of encoding and decoding, for each instruction set.

#[cfg(any(target_arch = \"x86_64\", target_arch = \"aarch64\"))]
use super::isa::*;
#[cfg(target_arch = \"x86_64\")]
use crate::kernels::avx2::{self, bytes_of, bytes_of_mut};
#[cfg(target_arch = \"x86_64\")]
use crate::kernels::avx512;
use crate::kernels::encode::{self, Fitted};
use crate::kernels::{RowEncoder, column, decode, ops, product};

/// The steps of the kernels in the instructions of some set. Bodies here are plain loops, which a set compiles for itself
/// or replaces by its own.
pub(crate) trait Backend: Sync {
    $declared
}

/// Needs no proof: the instructions that every CPU of the target has.
pub(crate) struct Portable;

impl Backend for Portable {}

$sets";
