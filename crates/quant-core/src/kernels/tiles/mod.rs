//! Products with weights whose rows lie side by side, sixteen to a vector.
//!
//! [`Tiles`] (in `pack`) holds the codes of a packed tensor rearranged so that a vector of 32-bit lanes has one
//! output row a lane: no sum is ever folded across lanes, an input is broadcast once for sixteen rows, and four
//! 8-bit codes of a row stand together as integer dot products want them. One arrangement serves every instruction
//! set: AVX2 takes a line as two halves of eight rows.
//!
//! `products` holds the loops, written once over [`Lanes`](super::generated::lanes::Lanes), the few operations on sixteen
//! lanes that an instruction set must supply; `inputs` arranges the other operand. Each (instruction set × kind of codes) is
//! compiled once, behind [`Products`].

mod inputs;
pub(super) mod pack;
pub(super) mod products;

pub(crate) use super::generated::products::Products;
pub(crate) use inputs::{FloatInputs, IntInputs};
pub(crate) use pack::Tiles;
pub(crate) use products::decode_all as decode;

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
