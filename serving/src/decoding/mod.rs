//! Decoding: the engine's thread, its queue, and sampling.

pub mod admission;
pub mod engine;
pub(crate) mod fair_queue;
pub(crate) mod forward_step;
pub(crate) mod prefix_cache;
pub mod sampling;
pub mod scores;
pub mod sequence;
