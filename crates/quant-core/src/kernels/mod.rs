//! Fast encoding and decoding of the common formats, bit-identical to [`FormatGrid`](crate::FormatGrid).
//!
//! Rows are cut into strips that fit the first-level cache; each step of the work on a strip is a
//! method of `Backend`. The methods' own bodies, in `ops`, are loops that compilers turn into vector
//! code; an instruction set compiles them for itself or puts a body of its own instructions in their
//! place. Steps are called through a table, so that each is compiled once an instruction set. What no
//! kernel covers takes the plain path of `packed.rs`, which is also the oracle of the tests.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod column;
mod decode;
mod encode;
mod ops;
mod product;
pub(crate) mod tiles;

pub(crate) use decode::{RowBytes, RowDecoder};
use encode::Fitted;
pub(crate) use encode::RowEncoder;

/// Bytes between what is worked on and what is asked for.
const AHEAD: usize = 8192;
/// Codes of this many bytes and more are written past the caches.
const STREAM_BYTES: usize = 512 << 10;
/// Decoded values of this many bytes and more are written past the caches.
pub(crate) const STREAM_FLOATS: usize = 2 << 20;

use std::cell::Cell;
use std::sync::LazyLock;

/// A way to run the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// No kernels: one value at a time, through [`FormatGrid`](crate::FormatGrid).
    Reference,
    /// The kernels in the instructions every CPU of the target has.
    Portable,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL, and BMI2.
    Avx512,
}

impl Isa {
    /// Every way, the plainest first.
    pub const ALL: [Self; 4] = [Self::Reference, Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this CPU has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Reference | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// The way that operations started on this thread take: that of [`with_isa`], else the one named
    /// by the environment variable `LEANBITS_ISA`, else the best this CPU has.
    #[must_use]
    pub fn current() -> Self {
        FORCED.get().unwrap_or(*DEFAULT)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| format!("{isa:?}").eq_ignore_ascii_case(name))
    }
}

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

static DEFAULT: LazyLock<Isa> = LazyLock::new(|| {
    let named = std::env::var("LEANBITS_ISA").ok().and_then(|name| Isa::from_name(&name));
    let best = Isa::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Isa::Portable);
    named.filter(|isa| isa.is_available()).unwrap_or(best)
});

/// Runs `f` with the operations it starts on this thread taking `isa`, or the portable kernels when
/// this CPU lacks it. For tests and benchmarks; every way gives the same bytes.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let usable = if isa.is_available() { isa } else { Isa::Portable };
    let _restore = Restore(FORCED.replace(Some(usable)));
    f()
}

/// Implements methods of [`Backend`] by the loops they stand for, compiled for some features.
#[cfg(target_arch = "x86_64")]
macro_rules! compile {
    ($features:literal: $($name:ident = $path:path, ($($arg:ident: $type:ty),*) $(-> $out:ty)?;)*) => {$(
        fn $name(&self, $($arg: $type),*) $(-> $out)? {
            #[target_feature(enable = $features)]
            fn compiled($($arg: $type),*) $(-> $out)? {
                $path($($arg),*)
            }
            // SAFETY: a value of `Self` proves the features.
            unsafe { compiled($($arg),*) }
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
use compile;

/// Proof that the CPU has an instruction set, and the steps of the kernels in its instructions.
pub(crate) trait Backend: Sync {
    /// Copies `from` to `to`, of equal length, past the caches where it can.
    fn stream_bytes(&self, from: &[u8], to: &mut [u8]) {
        to.copy_from_slice(from);
    }

    /// Makes streamed copies visible to other threads in program order.
    fn fence(&self) {}

    /// The largest magnitude of each block of `group` values, the last may be shorter; infinite or NaN
    /// when a value of the block is. Meanwhile asks for some of what lies `ahead` bytes further.
    fn amax_blocks(&self, x: &[f32], group: usize, ahead: usize, out: &mut [f32]) {
        let _ = ahead;
        ops::amax_blocks(x, group, out);
    }

    /// Least and largest value of each block of `group` values, the last may be shorter. Returns
    /// whether all values are finite; which of −0 and 0 counts as less is open.
    fn range_blocks(&self, x: &[f32], group: usize, ahead: usize, least: &mut [f32], most: &mut [f32]) -> bool {
        let _ = ahead;
        ops::range_blocks(x, group, least, most)
    }

    /// Fits the first `count` blocks to the extremes in `fitted` and writes their stored scales. False
    /// when the reference must decide.
    fn fit(&self, plan: &RowEncoder, fitted: &mut Fitted, count: usize, out: &mut [u8]) -> bool {
        encode::fit(plan, fitted, count, out)
    }

    /// Encodes what it can of a row from its start on, and in one pass: returns how many values, a number of whole blocks.
    /// `None` when the reference must decide.
    fn encode_tiles(
        &self,
        plan: &RowEncoder,
        fitted: &mut Fitted,
        x: &[f32],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Option<usize> {
        let _ = (plan, fitted, x, codes, scales);
        Some(0)
    }

    /// Encodes blocks, a byte a code; meanwhile asks for the rest of what lies further. False when a
    /// value without a scale is not finite.
    fn encode_blocks(&self, strip: &ops::Strip<'_>, codes: &mut [u8]) -> bool {
        ops::encode_blocks(strip, codes)
    }

    /// Casts to a 16-bit float, little-endian; meanwhile asks for what lies `ahead` bytes further.
    /// False when a value is not finite.
    fn encode_float16(&self, x: &[f32], kind: ops::SmallFloat, ahead: usize, codes: &mut [u8]) -> bool {
        let _ = ahead;
        ops::encode_float16(x, kind, codes)
    }

    /// Packs codes of fewer than 8 bits, see [`ops::pack`].
    fn pack(&self, codes: &[u8], bits: u32, out: &mut [u8]) {
        ops::pack(codes, bits, out);
    }

    /// Unpacks codes of fewer than 8 bits, see [`ops::unpack`].
    fn unpack(&self, bytes: &[u8], bits: u32, codes: &mut [u8]) {
        ops::unpack(bytes, bits, codes);
    }

    /// Values of the codes of a strip.
    fn decode(&self, codes: &decode::Strip<'_>, out: &mut [f32]) {
        decode::decode_strip(codes, out, ops::lookup16);
    }

    /// How long a strip [`Backend::decode_past_caches`] likes best.
    fn strip_past_caches(&self) -> usize {
        ops::STRIP
    }

    /// The same past the caches where it can; `buffer` is as long as `out`.
    fn decode_past_caches(&self, codes: &decode::Strip<'_>, buffer: &mut [f32], out: &mut [f32]) {
        let _ = buffer;
        self.decode(codes, out);
    }

    /// Values of 16-bit floats, little-endian.
    fn decode_float16(&self, kind: ops::SmallFloat, codes: &[u8], out: &mut [f32]) {
        ops::decode_float16(kind, codes, out);
    }

    /// See [`column::round_strip`].
    fn round_column(
        &self,
        rule: column::IntColumn,
        params: &column::Params,
        x: &[f32],
        codes: &mut [u32],
        rounded: &mut [f32],
    ) -> bool {
        column::round_strip(rule, params, x, codes, rounded)
    }

    /// See [`product::dots`].
    fn dots(&self, inputs: &[f32], weights: &[f32], out: &mut [f32]) {
        product::dots(inputs, weights, out);
    }
}

/// Needs no proof: the instructions that every CPU of the target has (on aarch64 that includes NEON).
struct Portable;

impl Backend for Portable {}

impl Isa {
    /// The steps in the instructions of this way, or the portable ones when this CPU lacks it.
    pub(crate) fn backend(self) -> &'static dyn Backend {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Avx512 => return avx512::Avx512::detect().unwrap_or(&Portable),
            Self::Avx2 => return avx2::Avx2::detect().unwrap_or(&Portable),
            Self::Reference | Self::Portable => {}
        }
        &Portable
    }
}

/// The largest magnitude; infinite or NaN when a value is.
pub(crate) fn amax(isa: Isa, x: &[f32]) -> f32 {
    let mut amax = [0.0];
    isa.backend().amax_blocks(x, x.len().max(1), AHEAD, &mut amax);
    amax[0]
}
