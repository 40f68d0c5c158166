//! One quantized key-value cache, many codecs: SKVQ, PM-KVQ, WKVQuant, KIVI; attention on the packed cache.

#![forbid(unsafe_code)]
