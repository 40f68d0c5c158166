//! Fast encoding and decoding of the common formats, bit-identical to [`FormatGrid`](crate::FormatGrid).
//!
//! The loops are written once, in `ops`, in a form that compilers turn into vector code; a
//! `Backend` compiles them for an instruction set and adds the few operations that need
//! instructions by name (stores past the caches, prefetch, table lookups). The instruction set is
//! chosen when an operation starts; what no kernel covers takes the plain path of `packed.rs`,
//! which is also the oracle of the tests.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod decode;
mod encode;
mod ops;
mod portable;
mod product;

pub(crate) use decode::{RowBytes, RowDecoder};
pub(crate) use encode::RowEncoder;
pub(crate) use product::dots;

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
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VBMI.
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

/// Proof that the CPU has an instruction set, and the operations that name its instructions.
pub(crate) trait Backend: Copy {
    /// Copies `from` to `to`, of equal length, past the caches where it can.
    fn stream_bytes(self, from: &[u8], to: &mut [u8]);

    /// Copies `from` to `to`, of equal length, past the caches where it can.
    fn stream_floats(self, from: &[f32], to: &mut [f32]);

    /// Makes streamed copies visible to other threads in program order.
    fn fence(self) {}

    /// Asks for the cache line `bytes` after the start of `near`, which may lie beyond its end.
    fn prefetch(self, near: &[f32], bytes: usize) {
        let _ = (near, bytes);
    }

    /// The largest magnitude of each block of `group` values, which divides `x`; infinite or NaN when
    /// a value of the block is.
    fn amax_blocks(self, x: &[f32], group: usize, out: &mut [f32]);

    /// Least and largest value of each block of `group` values, the last may be shorter. Returns
    /// whether all values are finite; which of −0 and 0 counts as less is open.
    fn range_blocks(self, x: &[f32], group: usize, least: &mut [f32], most: &mut [f32]) -> bool;

    /// Prepares the fields `high` and `low` of an [`ops::Strip`], where [`Backend::encode_blocks`] reads them.
    fn reciprocate(self, scales: &[f32], high: &mut [f32], low: &mut [f32]) {
        let _ = (scales, high, low);
    }

    /// Encodes blocks, a byte a code; meanwhile asks for what lies `ahead` bytes further.
    fn encode_blocks(self, strip: &ops::Strip<'_>, ahead: usize, codes: &mut [u8]);

    /// Casts to a 16-bit float, little-endian.
    fn encode_float16(self, x: &[f32], kind: ops::SmallFloat, codes: &mut [u8]) {
        ops::encode_float16(x, kind, codes);
    }

    /// `out[i] = table[code i]` for 4-bit codes, two a byte, low nibble first; `out` may be odd.
    fn lookup16(self, codes: &[u8], table: &[f32; 16], out: &mut [f32]);

    /// Code of each `x·reciprocal`, clamped to ±1, in a code book: see [`ops::Bins`].
    fn encode_book(self, x: &[f32], reciprocal: f32, bins: &ops::Bins, codes: &mut [u8]);
}

/// A piece of work that can be compiled for any instruction set.
///
/// Implementations mark `run` `#[inline(always)]`, and so does all it calls in loops, so that the
/// bodies end up inside the one function that has the instruction set enabled.
pub(crate) trait Job {
    /// What the work gives.
    type Output;

    /// Does the work.
    fn run<B: Backend>(self, backend: B) -> Self::Output;
}

/// Runs a job on an instruction set.
pub(crate) fn dispatch<J: Job>(isa: Isa, job: J) -> J::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => match avx512::Avx512::detect() {
            Some(backend) => backend.dispatch(job),
            None => job.run(portable::Portable),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => match avx2::Avx2::detect() {
            Some(backend) => backend.dispatch(job),
            None => job.run(portable::Portable),
        },
        _ => job.run(portable::Portable),
    }
}

/// The largest magnitude; infinite or NaN when a value is.
pub(crate) fn amax(isa: Isa, x: &[f32]) -> f32 {
    struct Amax<'a>(&'a [f32]);
    impl Job for Amax<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<B: Backend>(self, _: B) -> f32 {
            f32::from_bits(ops::amax_bits(self.0))
        }
    }
    dispatch(isa, Amax(x))
}
