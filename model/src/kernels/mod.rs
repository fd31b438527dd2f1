//! Loops and matrix products over the memory of tensors, and their thread pool.

pub(crate) mod ffi; // a tensor's memory as a slice
pub(crate) mod fused; // fused loops
pub mod matmul; // matrix products by the faster library
pub(crate) mod number; // f32 and f64 in generic loops
pub(crate) mod thread_pool; // threads that spin while they wait for work
