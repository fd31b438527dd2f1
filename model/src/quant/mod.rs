//! Quantized weights: NF4, int8, and their packed form.

pub mod int8; // weights in 8 bits
pub mod nf4; // weights in 4 bits
pub(crate) mod nf4_tables; // constants of NF4
pub(crate) mod packed; // quantized weights, computed or read from a cache file
