//! Loops and matrix products over the memory of tensors, their thread pool, and the choice among kernels.

pub(crate) mod ffi; // a tensor's memory as a slice
pub(crate) mod fused; // rows in parallel, for the fused loops of the operations
pub(crate) mod integer_matmul; // products from the codes of a weight
pub mod matmul; // matrix products by the faster library
pub(crate) mod number; // f32 and f64 in generic loops
pub(crate) mod pick; // the kernel of an operation
pub(crate) mod placement; // libtorch's kinds and devices
pub(crate) mod thread_pool; // threads that spin while they wait for work
