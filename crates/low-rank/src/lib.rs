//! Low-rank compression of linears: SVD, ASVD, SVD-LLM, FWSVD, Palu; with quantized factors.

#![forbid(unsafe_code)]
