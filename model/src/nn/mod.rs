//! Layers of the decoder, forward and backward.

pub(crate) mod attention; // grouped-query attention
pub(crate) mod block; // one decoder block, forward and backward
pub(crate) mod frozen_weight; // the weight of a frozen linear
pub mod head; // final norm, output projection and loss
pub mod kv_cache; // keys and values of a sequence, in blocks
pub(crate) mod linear; // frozen projections with low-rank updates, forward and backward
pub mod low_rank; // low-rank updates of few rows with many adapters
pub(crate) mod mlp; // SwiGLU
pub(crate) mod rms_norm; // RMSNorm
pub(crate) mod rope; // rotary position embedding
mod row_ops; // operations of a linear on rows and columns
pub(crate) mod scratch; // the memory of the weight that is in use, and of the logits
pub(crate) mod token_matrix; // the embedding and the output projection
