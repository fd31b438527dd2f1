//! LoRAX's generation: requests that are translated to text completions, and responses, whole or token by token.
//!
//! Source of the shapes: `router/src/lib.rs` of `predibase/lorax`, and `types.py` of its client `lorax-client` 0.6.3.

/// The tokens of an answer, and its end.
pub mod answer;
/// Adapters that are merged for a request.
pub mod merge;
/// Requests for a generation.
pub mod request;
/// Responses, whole and in chunks, and errors.
pub mod response;
