//! Serving: one base model in memory, many adapters beside it, all requests answered together.
//!
//! A request's way: [`http`] takes it, [`answer`] gets its adapter and turns its prompt into tokens, the [`engine`] draws
//! the answer's tokens together with everybody else's, [`answer`] turns them into text. Suggested order of reading:

pub mod adapters;
pub mod admission;
pub mod answer;
pub mod config;
pub mod engine;
pub mod error;
pub mod grammar;
pub mod http;
pub mod life;
mod pass;
mod prefixes;
pub mod residency;
pub mod sampling;
pub mod scores;
pub mod sequence;
pub mod stop;
mod telling;
mod turns;
