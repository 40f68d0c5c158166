//! Code books of 16 entries in [−1, 1].

/// A table of 16 values that codes index, scaled by the largest magnitude of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// NormalFloat 4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of a normal distribution.
    Nf4,
    /// AbnormalFloat 4 (arXiv 2306.06965) for blocks of 64.
    Af4,
    /// The FP4 table of bitsandbytes, which is not E2M1.
    BnbFp4,
}

impl Codebook {
    /// The 16 values by code.
    #[must_use]
    pub const fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Af4 => &AF4,
            Self::BnbFp4 => &BNB_FP4,
        }
    }

    /// The codes in ascending order of their values.
    pub(crate) const fn ascending(self) -> [u8; 16] {
        match self {
            Self::Nf4 | Self::Af4 => [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            Self::BnbFp4 => BNB_FP4_ORDER,
        }
    }

    /// The code of the entry nearest to `v`: with the table in ascending order, as many entries are
    /// passed as midpoints `(a + b)/2` (in f32) of neighbours lie strictly below `v`, so that a tie
    /// goes to the lower value.
    ///
    /// The two zeros of bitsandbytes' FP4 are neighbours as well: code 0 (+0) takes the values just
    /// below zero and zero itself, code 8 (−0) those just above it, as in that library.
    #[must_use]
    pub fn nearest(self, v: f32) -> u16 {
        match self {
            Self::Nf4 => midpoints_below(&NF4, v),
            Self::Af4 => midpoints_below(&AF4, v),
            Self::BnbFp4 => u16::from(BNB_FP4_ORDER[usize::from(midpoints_below(&BNB_FP4_ASCENDING, v))]),
        }
    }
}

/// How many midpoints of neighbours in an ascending table lie strictly below `v`.
fn midpoints_below(values: &[f32; 16], v: f32) -> u16 {
    values.windows(2).map(|pair| u16::from((pair[0] + pair[1]) / 2.0 < v)).sum()
}

/// The codes of `BnbFp4` in ascending order of their values.
const BNB_FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

const BNB_FP4_ASCENDING: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = BNB_FP4[BNB_FP4_ORDER[i] as usize];
        i += 1;
    }
    values
};

#[rustfmt::skip]
const NF4: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];
#[rustfmt::skip]
const AF4: [f32; 16] = [
    -1.0, -0.694_410_1, -0.512_437_4, -0.373_695_1, -0.256_075_52, -0.149_824_78, -0.049_348_12, 0.0,
    0.042_731_64, 0.129_344_83, 0.219_612_74, 0.316_756_66, 0.425_638_82, 0.554_962_34, 0.724_248_63, 1.0,
];
#[rustfmt::skip]
const BNB_FP4: [f32; 16] = [
    0.0, 0.005_208_333_3, 0.666_666_7, 1.0, 0.333_333_34, 0.5, 0.166_666_67, 0.25,
    -0.0, -0.005_208_333_3, -0.666_666_7, -1.0, -0.333_333_34, -0.5, -0.166_666_67, -0.25,
];
