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
pub mod batch; //          what is trained on at once
pub mod decoder; //        the whole model, inference
pub mod error; //          what can go wrong
pub mod io;
pub mod kernels;
pub mod nn;
pub mod noise; //          dropout and NEFTune
pub mod optim;
pub mod quant;
#[cfg(test)]
mod reference; //        plain autograd, what the gradients are held against
mod segments; //           sequences that begin alike share rows
pub mod served; //         a base as it is served
pub mod train; //          loss and gradients
