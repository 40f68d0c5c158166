//! Products with weights whose rows lie side by side, sixteen to a vector.
//!
//! [`Tiles`] (in `pack`) holds the codes of a packed tensor rearranged so that a vector of 32-bit lanes has one
//! output row a lane: no sum is ever folded across lanes, an input is broadcast once for sixteen rows, and four
//! 8-bit codes of a row stand together as integer dot products want them. One arrangement serves every instruction
//! set: AVX2 takes a line as two halves of eight rows.
//!
//! `products` holds the loops, written once over [`Lanes`](lanes::Lanes), the few operations on sixteen lanes that an
//! instruction set must supply; `inputs` arranges the other operand. Each (instruction set × code width) is compiled
//! once, behind [`Products`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod inputs;
mod lanes;
mod pack;
mod products;

pub(crate) use inputs::{FloatInputs, IntInputs};
pub(crate) use pack::Tiles;
pub(crate) use products::decode_all as decode;

use super::Isa;
use pack::Chunk;
use std::ops::Range;

/// Output rows of a panel: the lanes of a line.
pub(crate) const ROWS: usize = 16;
/// Rows of two panels, which the products of many inputs take together.
pub(crate) const PAIR: usize = 2 * ROWS;

/// One vector of codes: four bytes for each of sixteen rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Memory that the products of many inputs decode a pair of panels into; kept by each thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Values, a column after the other, of both panels.
    floats: Vec<[f32; ROWS]>,
    /// Bytes, four columns after the other, of both panels.
    bytes: Vec<Line>,
    /// For both panels of each chunk the scales, then what each adds to a product a unit of the inputs' sum.
    params: Vec<[f32; ROWS]>,
    /// 32 sums for each row of inputs.
    sums: Vec<f32>,
}

/// The products in the instructions of one instruction set, as a table of functions.
pub(crate) trait Products: Sync {
    /// One row of inputs: 16 sums for each panel.
    fn float_vector(&self, tiles: &Tiles, x: &FloatInputs, panels: Range<usize>, out: &mut [f32]);

    /// Many rows of inputs and a pair of panels; for each row its outputs of the pair are written.
    fn float_matrix(
        &self,
        tiles: &Tiles,
        x: &FloatInputs,
        pair: usize,
        scratch: &mut Scratch,
        outputs: &mut [&mut [f32]],
    );

    /// One row of 8-bit inputs.
    fn int_vector(&self, tiles: &Tiles, x: &IntInputs, panels: Range<usize>, out: &mut [f32]);

    /// Many rows of 8-bit inputs.
    fn int_matrix(&self, tiles: &Tiles, x: &IntInputs, pair: usize, scratch: &mut Scratch, outputs: &mut [&mut [f32]]);

    /// How many rows of inputs go together, the most first.
    fn batch_sizes(&self) -> &'static [usize];

    /// Rounds a row to integers, see [`products::quantize`].
    fn quantize(
        &self,
        chunks: &[Chunk],
        x: &[f32],
        per_row: bool,
        q: &mut [i8],
        steps: &mut [f32],
        sums: &mut [i32],
    ) -> f32;
}

/// Implements [`Products`] for lanes, compiled for the features that a value of them proves.
macro_rules! products_for {
    ($lanes:ty $(, $features:literal)?) => {
        impl Products for $lanes {
            fn batch_sizes(&self) -> &'static [usize] {
                if <$lanes as lanes::Lanes>::WIDE { &[12, 8, 4, 2, 1] } else { &[2, 1] }
            }

            products_for! { @each $lanes; ($($features)?);
                float_vector(tiles: &Tiles, x: &FloatInputs, panels: Range<usize>, out: &mut [f32]);
                float_matrix(tiles: &Tiles, x: &FloatInputs, pair: usize, scratch: &mut Scratch, outputs: &mut [&mut [f32]]);
                int_vector(tiles: &Tiles, x: &IntInputs, panels: Range<usize>, out: &mut [f32]);
                int_matrix(tiles: &Tiles, x: &IntInputs, pair: usize, scratch: &mut Scratch, outputs: &mut [&mut [f32]]);
                quantize(chunks: &[Chunk], x: &[f32], per_row: bool, q: &mut [i8], steps: &mut [f32], sums: &mut [i32]) -> f32;
            }
        }
    };
    (@each $lanes:ty; $features:tt; $($name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)*) => {$(
        fn $name(&self, $($arg: $type),*) $(-> $out)? {
            products_for!(@body $lanes; $features; *self, $name($($arg: $type),*) $(-> $out)?)
        }
    )*};
    (@body $lanes:ty; (); $self:expr, $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?) => {
        products::$name($self, $($arg),*)
    };
    (@body $lanes:ty; ($features:literal); $self:expr, $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?) => {{
        #[target_feature(enable = $features)]
        fn compiled(lanes: $lanes, $($arg: $type),*) $(-> $out)? {
            products::$name(lanes, $($arg),*)
        }
        // SAFETY: a value of the lanes proves the features.
        unsafe { compiled($self, $($arg),*) }
    }};
}

products_for!(lanes::Plain);
#[cfg(target_arch = "x86_64")]
products_for!(avx2::Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
products_for!(avx512::Vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

impl Isa {
    /// The products of this way, or the next plainer ones that the CPU has.
    pub(crate) fn products(self) -> &'static dyn Products {
        #[cfg(target_arch = "x86_64")]
        {
            if self == Self::Avx512
                && let Some(products) = avx512::Vnni::detect()
            {
                return products;
            }
            if matches!(self, Self::Avx512 | Self::Avx2)
                && let Some(products) = avx2::Avx2::detect()
            {
                return products;
            }
        }
        &lanes::Plain
    }
}
