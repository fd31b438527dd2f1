//! Serving: one base model in memory, many adapters beside it, all requests answered together.
//!
//! A request's way: [`http`] takes it, [`answer`] gets its adapter and turns its prompt into tokens, the [`engine`] draws
//! the answer's tokens together with everybody else's, [`answer`] turns them into text. Suggested order of reading:

pub mod adapters;
pub mod answering;
pub mod app;
pub mod config;
pub mod decoding;
pub mod error;
pub mod http;
pub mod replica;
pub mod residency;
