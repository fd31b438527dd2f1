//! All tensor code of Attune. It knows no job, no tenant and no network.
//!
//! Serving: [`decoder::Decoder::load`], [`adapter::LoraAdapter::load`], then [`decoder::Decoder::prefill`] and
//! [`decoder::Decoder::forward_cached`] over a [`nn::kv_cache::KvCache`] per sequence.
//!
//! Training: [`batch::PackedBatch`] → [`train::loss_and_gradients`] into [`optim::gradients::Gradients`], which
//! accumulate over micro-batches → [`optim::gradients::Gradients::clip`] → [`optim::optimizer::AdamW::step`] at
//! [`optim::schedule::learning_rate`] → [`optim::gradients::Gradients::clear`]. [`train::loss`] computes the loss
//! alone.
//!
//! Nothing here is `Sync`, as libtorch's tensors are not; all of it but KV caches and their pools is `Send`. Set the
//! thread count with `tch::set_num_threads`.

pub mod adapter; //        LoRA factors, read and written as PEFT does
pub mod allocator; //      freed memory: returned, or kept for the next tensor
pub mod batch; //          packed training batches
pub mod decoder; //        the whole model: loading and inference
pub mod error; //          error types
pub mod importance; // the importance of the columns of weights
pub mod io;
pub mod kernels;
pub mod merge; // a base with an adapter merged into it
pub mod nn;
pub mod noise; //          dropout and NEFTune
pub mod optim;
pub mod quant;
#[cfg(test)]
mod reference; // plain autograd, the reference for the gradients
mod segments; // rows shared by sequences with a common prefix
pub mod served; // a base as a serving process loads it
pub mod train; //          loss and gradients
