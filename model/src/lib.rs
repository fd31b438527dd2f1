//! All tensors of Attune. It knows no job, no tenant and no network.
//!
//! Serving: [`decoder::Decoder::load`], [`adapter::LoraAdapter::load`], then [`decoder::Decoder::prefill`] and
//! [`decoder::Decoder::forward_cached`] over a [`kv_cache::KvCache`] per sequence.
//!
//! Training: [`batch::PackedBatch`] → [`train::loss_and_gradients`] into [`gradients::Gradients`], which add up over
//! micro-batches → [`gradients::Gradients::clip`] → [`optimizer::AdamW::step`] at [`schedule::learning_rate`] →
//! [`gradients::Gradients::clear`]. [`train::loss`] is the loss alone.
//!
//! Nothing here is `Sync`, as libtorch's tensors are not; all of it is `Send`. Set the threads with `tch::set_num_threads`.
//!
//! In suggested order of reading:

pub mod adapter; //        LoRA factors, read and written as PEFT does
mod attention; //          grouped-query attention
pub mod batch; //          what is trained on at once
mod block; //              one decoder block, forward and backward
pub mod decoder; //        the whole model, inference
pub mod error; //          what can go wrong
mod ffi; //                a tensor's memory as a slice
pub mod gradients; //      gradients of an adapter
pub mod head; //           last norm, head and loss
pub mod int8; //           weights in 8 bits
mod kernels; //            loops that are fused
pub mod kv_cache; //       keys and values of a sequence
mod linear; //             frozen projections with corrections, forward and backward
pub mod matmul; //         products, each by the faster library
mod mlp; //                SwiGLU
mod moments; //            the optimiser's state
pub mod nf4; //            weights in 4 bits
mod nf4_tables; //         its constants
pub mod noise; //          dropout and NEFTune
pub mod optimizer; //      AdamW
mod packed; //             packed weights, made or read
#[cfg(test)]
mod reference; //        plain autograd, what the gradients are held against
mod rms_norm; //           the norm
mod rope; //               rotary positions
pub mod schedule; //       the learning rate over a run
mod segments; //           sequences that begin alike share rows
pub mod served; //         a base as it is served
mod team; //               threads that stand ready
pub mod tensor_file; //    one .safetensors file, read and written
mod tiles; //              attention of a whole batch
pub mod train; //          loss and gradients
pub mod weights; //        the weights of a Hugging Face folder, checked
