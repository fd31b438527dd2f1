//! Decoding: the engine's thread, its queue, and sampling.

pub mod admission;
pub(crate) mod counters;
pub(crate) mod draft_length;
pub(crate) mod draft_model;
pub(crate) mod drafter;
pub mod engine;
pub(crate) mod fair_queue;
pub(crate) mod filters;
pub(crate) mod forward_step;
pub(crate) mod model_draft;
pub(crate) mod prefix_cache;
pub mod sampling;
pub mod scores;
pub mod sequence;
pub(crate) mod shares;
