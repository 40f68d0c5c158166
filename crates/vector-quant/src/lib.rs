//! Vector quantization of weights: k-means, GPTVQ, PCDVQ, E8P, RWKVQuant.

#![forbid(unsafe_code)]
