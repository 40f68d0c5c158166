//! Changes of basis that preserve a model's function: Hadamard, rotation, smoothing, permutation.

#![forbid(unsafe_code)]
