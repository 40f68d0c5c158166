//! Golden vectors: the answers of other programs, compared bit for bit.
//!
//! `vectors/` holds a reduced copy, made as `README.md` here says. Where the environment variable
//! `LEANBITS_GOLDEN` names a folder with the full set, or it lies at the default place beside the
//! workspace, every test runs on that too.

mod checkpoints;
mod codebook;
mod int;
mod mx;
mod nv;
mod packing;
mod scalar;
mod shared_exponent;
mod vectors;
