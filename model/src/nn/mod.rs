//! Layers of the decoder, forward and backward.

pub(crate) mod attention; //          grouped-query attention
pub(crate) mod block; //              one decoder block, forward and backward
pub mod head; //           last norm, head and loss
pub mod kv_cache; //       keys and values of a sequence
pub(crate) mod linear; //             frozen projections with corrections, forward and backward
pub(crate) mod mlp; //                SwiGLU
pub(crate) mod rms_norm; //           the norm
pub(crate) mod rope; //               rotary positions
pub(crate) mod tiles; //              attention of a whole batch
