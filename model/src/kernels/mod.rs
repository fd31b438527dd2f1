//! Loops and products over the memory of tensors, and the threads that run them.

pub(crate) mod ffi; //                a tensor's memory as a slice
pub(crate) mod fused; //            loops that are fused
pub mod matmul; //         products, each by the faster library
pub(crate) mod number; //             f32 and f64 in generic loops
pub(crate) mod thread_pool; //               threads that stand ready
