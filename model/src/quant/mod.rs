//! Quantized weights: NF4, int8, and their packed form.

pub mod int8; //           weights in 8 bits
pub mod nf4; //            weights in 4 bits
pub(crate) mod nf4_tables; //         its constants
pub(crate) mod packed; //             packed weights, made or read
