//! Number formats for small neural networks.
