//! The instruction sets.

use super::fill;

/// Instructions that kernels are compiled for, found at run time.
pub(super) struct Isa {
    pub(super) name: &'static str,
    doc: &'static str,
    arch: &'static str,
    /// What the steps of encoding and decoding need; nothing where every CPU of the target has it, and the portable steps are
    /// compiled for it as they are.
    pub(super) features: &'static [&'static str],
    /// Sixteen lanes of 32 bits, which products are written over.
    pub(super) lanes: Lanes,
}

/// How an instruction set holds sixteen lanes.
pub(super) struct Lanes {
    /// The type that proves that the CPU has what products need.
    pub(super) name: &'static str,
    /// What the products need.
    pub(super) features: &'static [&'static str],
    /// Registers that sixteen lanes take.
    pub(super) registers: usize,
    /// Types of a register.
    pub(super) floats: &'static str,
    pub(super) ints: &'static str,
    /// Rows of inputs whose sums fit the registers, the most first.
    pub(super) batches: &'static [usize],
    /// What expressions of operations may name: see [`super::lanes`].
    pub(super) words: &'static [(&'static str, &'static str)],
}

impl Isa {
    /// What templates name.
    fn values(&self) -> [(&'static str, &'static str); 4] {
        [("name", self.name), ("doc", self.doc), ("arch", self.arch), ("lanes", self.lanes.name)]
    }

    /// One of two texts, by the architecture.
    pub(super) fn pick<'a>(&self, x86: &'a str, neon: &'a str) -> &'a str {
        if self.arch == "x86_64" { x86 } else { neon }
    }

    /// Leaves out an item where there is no such processor.
    pub(super) fn cfg(&self) -> String {
        format!("#[cfg(target_arch = \"{}\")]\n", self.arch)
    }
}

/// From the plainest on, of an architecture.
#[rustfmt::skip]
pub(super) const ISAS: &[Isa] = &[
    Isa {
        name: "Avx2", doc: "x86-64 with AVX2.", arch: "x86_64",
        features: &["avx2"],
        lanes: Lanes {
            name: "Avx2Lanes", features: &["avx2", "fma", "f16c"], registers: 2, floats: "__m256", ints: "__m256i", batches: &[2, 1],
            words: &[("mm", "_mm256"), ("si", "si256"), ("hm", "_mm"),
                ("load16", "_mm_loadu_si128"), ("load8", "_mm_loadl_epi64")],
        },
    },
    Isa {
        name: "Avx512", doc: "x86-64 with AVX-512 F, BW, DQ and VL, and BMI2; products need VNNI as well.", arch: "x86_64",
        features: &["avx512f", "avx512bw", "avx512dq", "avx512vl", "bmi2"],
        lanes: Lanes {
            name: "Avx512Lanes", features: &["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"],
            registers: 1, floats: "__m512", ints: "__m512i", batches: &[12, 8, 4, 2, 1],
            words: &[("mm", "_mm512"), ("si", "si512"), ("hm", "_mm256"),
                ("load16", "_mm256_loadu_si256"), ("load8", "_mm_loadu_si128")],
        },
    },
    Isa {
        name: "Neon", doc: "aarch64 with NEON, which all of them have; products need its dot products of bytes as well.", arch: "aarch64",
        features: &[],
        lanes: Lanes {
            name: "NeonLanes", features: &["neon", "dotprod"],
            registers: 4, floats: "float32x4_t", ints: "uint32x4_t", batches: &[2, 1], words: &[],
        },
    },
];

/// Features as `#[target_feature]` takes them.
pub(super) fn list(features: &[&str]) -> String {
    features.join(",")
}

/// The enum of instruction sets, and a type for each whose values prove that the CPU has it.
pub(super) fn write() -> String {
    let each = |template: &str| ISAS.iter().map(|isa| fill(template, &isa.values())).collect::<String>();
    let products = ISAS.iter().enumerate().rev().map(|(index, isa)| {
        // One that lacks what products need takes the next plainer one's.
        let better = ISAS[index..].iter().filter(|other| other.arch == isa.arch);
        let pattern = better.map(|other| format!("Self::{}", other.name)).collect::<Vec<_>>().join(" | ");
        fill(PRODUCTS, &[&isa.values()[..], &[("pattern", pattern.as_str())]].concat())
    });
    let tokens = ISAS.iter().map(|isa| {
        let of = |suffix: &str, what: &str, features: &[&str]| {
            let detector = if isa.arch == "x86_64" { "is_x86_feature_detected" } else { "is_aarch64_feature_detected" };
            let found = features.iter().map(|name| format!("std::arch::{detector}!(\"{name}\")"));
            let found: Vec<String> = std::iter::once("!cfg!(miri)".to_owned()).chain(found).collect();
            let values = [("suffix", suffix), ("what", what), ("found", &found.join(" && "))];
            fill(TOKEN, &[&isa.values()[..], &values].concat())
        };
        of("", "the steps of encoding and decoding", isa.features) + &of("Lanes", "the products", isa.lanes.features)
    });
    let values = [
        ("variants", each("/// $doc\n $name,\n")),
        ("names", each(", Self::$name")),
        ("count", (ISAS.len() + 2).to_string()),
        ("found", each(FOUND)),
        ("products", products.collect()),
        ("tokens", tokens.collect()),
    ];
    fill(ENUM, &values)
}

const FOUND: &str = "#[cfg(target_arch = \"$arch\")] Self::$name => Some($name::detect()?),
    #[cfg(not(target_arch = \"$arch\"))] Self::$name => None,
";

const PRODUCTS: &str = "#[cfg(target_arch = \"$arch\")]
    if matches!(self, $pattern) && let Some(lanes) = $lanes::detect() { return lanes; }
";

const TOKEN: &str = "/// Proof that the running CPU has what $what are compiled for.
#[cfg(target_arch = \"$arch\")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct $name$suffix(());

#[cfg(target_arch = \"$arch\")]
impl $name$suffix {
    /// A value, when the running CPU has all features.
    pub(crate) fn detect() -> Option<&'static Self> {
        static TOKEN: $name$suffix = $name$suffix(());
        ($found).then_some(&TOKEN)
    }
}

";

const ENUM: &str = "//! The instruction sets.

use super::lanes::Plain;
use super::products::Products;
use super::steps::{Backend, Portable};

/// A way to run the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// No kernels: one value at a time, through [`FormatGrid`](crate::FormatGrid).
    Reference,
    /// The kernels in the instructions every CPU of the target has.
    Portable,
    $variants
}

impl Isa {
    /// Every way, the plainest first.
    pub const ALL: [Self; $count] = [Self::Reference, Self::Portable$names];

    /// The steps in the instructions of this way, if this CPU has them.
    pub(crate) fn steps(self) -> Option<&'static dyn Backend> {
        match self {
            Self::Reference | Self::Portable => Some(&Portable),
            $found
        }
    }

    /// The products of this way, or the next plainer ones that the CPU has.
    pub(crate) fn products(self) -> &'static dyn Products {
        $products &Plain
    }
}

$tokens";

/// A macro that compiles a function for every instruction set, for loops that are plain Rust.
pub(super) fn write_macro() -> String {
    let each = |template: &str| -> String {
        let filled = ISAS.iter().filter(|isa| !isa.features.is_empty()).map(|isa| {
            let (function, features) = (isa.name.to_lowercase(), list(isa.features));
            fill(template, &[&isa.values()[..], &[("function", function.as_str()), ("features", &features)]].concat())
        });
        filled.collect()
    };
    fill(MACRO, &[("compiled", each(COMPILED).as_str()), ("chosen", &each(CHOSEN))])
}

const COMPILED: &str = "#[cfg(target_arch = \"$arch\")]
    #[target_feature(enable = \"$features\")]
    fn $function($$($$arg: $$type),*) { portable($$($$arg),*); }
";

const CHOSEN: &str = "#[cfg(target_arch = \"$arch\")]
    // SAFETY: `Isa::current` names only what the processor has.
    quant_core::kernels::Isa::$name => return unsafe { $function($$($$arg),*) },
";

const MACRO: &str = "//! Functions compiled for every instruction set.

/// Defines a function whose body is compiled for the baseline and for each instruction set that is found at run time.
macro_rules! for_each_isa {
    ($$(#[$$doc:meta])* fn $$name:ident($$($$arg:ident: $$type:ty),* $$(,)?) $$body:block) => {
        $$(#[$$doc])*
        pub(crate) fn $$name($$($$arg: $$type),*) {
            #[inline(always)]
            fn portable($$($$arg: $$type),*) $$body

            $compiled
            match quant_core::kernels::Isa::current() {
                $chosen
                _ => {}
            }
            portable($$($$arg),*);
        }
    };
}

pub(crate) use for_each_isa;
";
