//! What single codes mean: small floats, code books, and how reals are rounded onto them.

mod codebook;
mod dynamic;
mod e8m0;
mod float;
mod generated {
    pub(super) mod books;
    pub(super) mod floats;
}
mod round;

pub(crate) use dynamic::{SIGNED_DYNAMIC_MAP, encode_dynamic};
pub use e8m0::{E8m0, E8m0Rounding};
pub(crate) use float::{exp2, exponent_of};
pub(crate) use generated::books::BOOK_NAMES;
pub use generated::books::Codebook;
pub use generated::floats::FloatKind;
pub(crate) use generated::floats::{MX_NAMES, NAMES};
pub use round::Rounding;
