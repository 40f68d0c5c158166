//! What calibration gathers: channel ranges, moments, Gram matrices, token samples, expert counts.

#![forbid(unsafe_code)]
