//! The bridge: a replica whose tokens another engine generates, vLLM or LoRAX, in a container next to it.
//!
//! The platform sees an ordinary replica. The bridge fetches the base and the adapters into a folder that both
//! containers mount, has the engine load adapters, renders and tokenizes prompts, and turns the engine's tokens into
//! events with the code of [`crate::answering`]. What an engine cannot do is refused (`refusals.rs`).

mod adapters;
mod answer;
mod engine;
mod generate;
mod lorax;
mod refusals;
mod replica;
mod stream;
mod vllm;

pub use replica::{fetch, serve};
