//! Elements that are values by code: floats of at most 16 bits, and code books.

use super::fill;

/// Name, bits of exponent and of mantissa, bias, codes that are no finite numbers, name of a format, name of a format of
/// OCP Microscaling (if it is one), and what it is.
type Float = (&'static str, u32, u32, i32, &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const FLOATS: &[Float] = &[
    ("E4m3Fn", 4, 3, 7, "AllOnes", "fp8-e4m3", "mxfp8-e4m3", "FP8 E4M3 of OCP: no infinity, NaN only at all ones; largest 448."),
    ("E5m2", 5, 2, 15, "Ieee", "fp8-e5m2", "mxfp8-e5m2", "FP8 E5M2 of OCP: IEEE-like; largest 57344."),
    ("E4m3Fnuz", 4, 3, 8, "NegativeZero", "fp8-e4m3fnuz", "", "E4M3 with bias 8, one NaN (0x80), no infinity, no −0; largest 240."),
    ("E5m2Fnuz", 5, 2, 16, "NegativeZero", "fp8-e5m2fnuz", "", "E5M2 with bias 16, one NaN (0x80), no infinity, no −0; largest 57344."),
    ("E4m3B11Fnuz", 4, 3, 11, "NegativeZero", "fp8-e4m3b11fnuz", "", "E4M3 with bias 11, one NaN (0x80), no infinity, no −0; largest 30."),
    ("E4m3", 4, 3, 7, "Ieee", "fp8-e4m3ieee", "", "IEEE-like E4M3 with infinities; largest 240."),
    ("E3m4", 3, 4, 3, "Ieee", "fp8-e3m4", "", "IEEE-like E3M4 with infinities; largest 15.5."),
    ("E2m3", 2, 3, 1, "None", "fp6-e2m3", "mxfp6-e2m3", "FP6 E2M3; largest 7.5."),
    ("E3m2", 3, 2, 3, "None", "fp6-e3m2", "mxfp6-e3m2", "FP6 E3M2; largest 28."),
    ("E2m1", 2, 1, 1, "None", "fp4-e2m1", "mxfp4", "FP4 E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6."),
    ("F16", 5, 10, 15, "Ieee", "f16", "", "IEEE binary16."),
    ("Bf16", 8, 7, 127, "Ieee", "bf16", "", "bfloat16."),
];

/// Name, name of a format, the values by code as they are written, and what it is.
type Book = (&'static str, &'static str, [&'static str; 16], &'static str);

#[rustfmt::skip]
const BOOKS: &[Book] = &[
    ("Nf4", "nf4", [
        "-1.0", "-0.696_192_8", "-0.525_073_05", "-0.394_917_5", "-0.284_441_38", "-0.184_773_43", "-0.091_050_036", "0.0",
        "0.079_580_3", "0.160_930_2", "0.246_112_3", "0.337_915_24", "0.440_709_83", "0.562_617", "0.722_956_84", "1.0",
    ], "NormalFloat 4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of a normal distribution."),
    ("Af4", "af4", [
        "-1.0", "-0.694_410_1", "-0.512_437_4", "-0.373_695_1", "-0.256_075_52", "-0.149_824_78", "-0.049_348_12", "0.0",
        "0.042_731_64", "0.129_344_83", "0.219_612_74", "0.316_756_66", "0.425_638_82", "0.554_962_34", "0.724_248_63", "1.0",
    ], "AbnormalFloat 4 (arXiv 2306.06965) for blocks of 64."),
    ("BnbFp4", "bnbfp4", [
        "0.0", "0.005_208_333_3", "0.666_666_7", "1.0", "0.333_333_34", "0.5", "0.166_666_67", "0.25",
        "-0.0", "-0.005_208_333_3", "-0.666_666_7", "-1.0", "-0.333_333_34", "-0.5", "-0.166_666_67", "-0.25",
    ], "The FP4 table of bitsandbytes, which is not E2M1."),
];

/// The enum of code books, their values, and the names.
pub(super) fn write_books() -> String {
    let each = |row: &dyn Fn(&Book) -> String| BOOKS.iter().map(row).collect::<String>();
    let values = [
        ("count", BOOKS.len().to_string()),
        ("variants", each(&|(name, .., doc)| format!("/// {doc}\n{name},\n"))),
        ("values", each(&|(name, _, values, _)| format!("Self::{name} => &[{}],\n", values.join(", ")))),
        ("orders", each(&|(name, _, values, _)| format!("Self::{name} => {:?},\n", ascending(values)))),
        ("names", each(&|(name, format, ..)| format!("(\"{format}\", Codebook::{name}),\n"))),
    ];
    fill(BOOK_MODULE, &values)
}

/// The codes in ascending order of their values; of equal ones the lower code comes first.
fn ascending(values: &[&str; 16]) -> Vec<usize> {
    let value = |code: &usize| values[*code].replace('_', "").parse::<f32>().unwrap_or(f32::NAN);
    let mut codes: Vec<usize> = (0..16).collect();
    // −0 and 0 are equal here, which a total order would not have.
    codes.sort_by(|a, b| value(a).partial_cmp(&value(b)).unwrap_or(std::cmp::Ordering::Equal));
    codes
}

const BOOK_MODULE: &str = "//! Code books of 16 entries in [−1, 1].

/// A table of 16 values that codes index, scaled by the largest magnitude of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    $variants
}

impl Codebook {
    /// The 16 values by code.
    #[must_use]
    pub const fn values(self) -> &'static [f32; 16] {
        match self { $values }
    }

    /// The codes in ascending order of their values.
    pub(crate) const fn ascending(self) -> [u8; 16] {
        match self { $orders }
    }
}

/// What formats of such elements are called.
pub(crate) const BOOK_NAMES: [(&str, Codebook); $count] = [$names];
";

/// The enum of floats, what they are made of, and the names.
pub(super) fn write() -> String {
    let each = |row: &dyn Fn(&Float) -> String| FLOATS.iter().map(row).collect::<String>();
    let mx: Vec<&Float> = FLOATS.iter().filter(|float| !float.6.is_empty()).collect();
    let values = [
        ("count", FLOATS.len().to_string()),
        ("variants", each(&|(name, .., doc)| format!("/// {doc}\n{name},\n"))),
        ("all", each(&|(name, ..)| format!("Self::{name},"))),
        (
            "parameters",
            each(&|(name, exponent, mantissa, bias, special, ..)| {
                format!("Self::{name} => ({exponent}, {mantissa}, {bias}, Special::{special}),\n")
            }),
        ),
        ("mx", mx.iter().map(|float| format!("Self::{}", float.0)).collect::<Vec<_>>().join(" | ")),
        ("names", each(&|(name, .., format, _, _)| format!("(\"{format}\", FloatKind::{name}),\n"))),
        ("mxcount", mx.len().to_string()),
        ("mxnames", mx.iter().map(|float| format!("(\"{}\", FloatKind::{}),\n", float.6, float.0)).collect()),
    ];
    fill(MODULE, &values)
}

const MODULE: &str = "//! Floats of at most 16 bits.

/// A float format of at most 16 bits; layout is sign, exponent, mantissa from the most significant bit.
///
/// Sources: OCP \"8-bit Floating Point\" v1.0 (E4M3FN, E5M2), OCP \"Microscaling Formats\" v1.0 (FP6,
/// FP4), arXiv 2206.02915 (FNUZ), IEEE 754.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatKind {
    $variants
}

/// Which codes are not finite numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    /// All exponent bits set: infinity, or NaN with a mantissa (IEEE).
    Ieee,
    /// All bits but the sign set: NaN.
    AllOnes,
    /// Only the code of −0: NaN.
    NegativeZero,
    /// None.
    None,
}

impl FloatKind {
    /// Every kind.
    pub const ALL: [Self; $count] = [$all];

    /// Exponent bits, mantissa bits, bias, special codes.
    pub(crate) const fn parameters(self) -> (u32, u32, i32, Special) {
        match self { $parameters }
    }

    /// Whether OCP Microscaling defines it as an element.
    #[must_use]
    pub const fn is_mx(self) -> bool {
        matches!(self, $mx)
    }
}

/// What formats of such elements are called.
pub(crate) const NAMES: [(&str, FloatKind); $count] = [$names];

/// The same for formats of OCP Microscaling.
pub(crate) const MX_NAMES: [(&str, FloatKind); $mxcount] = [$mxnames];
";

#[cfg(test)]
mod tests {
    use super::{BOOKS, ascending};

    #[test]
    fn entries_of_a_book_are_sorted_by_value_and_zeros_by_code() {
        let order = |name: &str| BOOKS.iter().find(|book| book.0 == name).map(|book| ascending(&book.2));
        assert_eq!(order("Nf4"), Some((0..16).collect()));
        assert_eq!(order("BnbFp4"), Some(vec![11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]));
    }
}
