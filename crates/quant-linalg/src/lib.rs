//! Decompositions for quantization methods: f64, deterministic, on faer.

#![forbid(unsafe_code)]
