//! Quantized weights: NF4, int8, the blocks of GGUF files, and their packed form.

pub mod gguf; // weights in the blocks of a GGUF file
pub mod int8; // weights in 8 bits
pub mod nf4; // weights in 4 bits
pub(crate) mod nf4_tables; // constants of NF4
pub(crate) mod packed; // quantized weights, computed or read from a cache file
pub(crate) mod tiled; // quantized weights laid out for the kernels of serving
