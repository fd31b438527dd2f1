//! All tensors of Attune. It knows no job, no tenant and no network. Suggested order of reading:

pub mod adapter;
mod attention;
mod block;
pub mod decoder;
pub mod error;
mod ffi;
pub mod kv_cache;
mod linear;
mod mlp;
pub mod nf4;
mod nf4_tables;
mod rms_norm;
mod rope;
pub mod tensor_file;
pub mod weights;
