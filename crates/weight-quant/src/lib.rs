//! Post-training quantization of weights: RTN, MSE clip, GPTQ, AWQ, SmoothQuant, one file a method.

#![forbid(unsafe_code)]
