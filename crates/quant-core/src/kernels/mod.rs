//! Fast encoding and decoding of the common formats, bit-identical to [`FormatGrid`](crate::FormatGrid).
//!
//! Rows are cut into strips that fit the first-level cache; each step of the work on a strip is a
//! method of `Backend`. The methods' own bodies, in `ops`, are loops that compilers turn into vector
//! code; an instruction set compiles them for itself or puts a body of its own instructions in their
//! place. Steps are called through a table, so that each is compiled once an instruction set. What no
//! kernel covers takes the plain path of `packed.rs`, which is also the oracle of the tests.
//!
//! What repeats for every instruction set and every kind of codes is in `generated`, written by `cargo xtask codegen` from
//! the tables of `xtask/src/codegen`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod column;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AVX-512 alone reads it"))]
mod decode;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AVX-512 alone reads it"))]
mod encode;
mod generated {
    pub(super) mod codes;
    pub(super) mod isa;
    pub(super) mod lanes;
    pub(super) mod products;
    pub(super) mod steps;
}
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AVX-512 alone reads it"))]
mod ops;
mod product;
pub(crate) mod tiles;

pub(crate) use decode::{RowBytes, RowDecoder};
pub(crate) use encode::RowEncoder;
use generated::steps::{Backend, Portable};

pub use generated::isa::Isa;

/// Bytes between what is worked on and what is asked for.
const AHEAD: usize = 8192;
/// Codes of this many bytes and more are written past the caches.
const STREAM_BYTES: usize = 512 << 10;
/// Decoded values of this many bytes and more are written past the caches.
pub(crate) const STREAM_FLOATS: usize = 2 << 20;

use std::cell::Cell;
use std::sync::LazyLock;

impl Isa {
    /// Whether this CPU has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        self.steps().is_some()
    }

    /// The steps in the instructions of this way, or the portable ones when this CPU lacks it.
    pub(crate) fn backend(self) -> &'static dyn Backend {
        self.steps().unwrap_or(&Portable)
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

/// The largest magnitude; infinite or NaN when a value is.
pub(crate) fn amax(isa: Isa, x: &[f32]) -> f32 {
    let mut amax = [0.0];
    isa.backend().amax_blocks(x, x.len().max(1), AHEAD, &mut amax);
    amax[0]
}
