//! The serving process: one base model in memory, many adapters, and continuous batching of all requests.
//!
//! A request's path: [`http`] accepts it; [`answering::answer`] leases its adapter and tokenizes its prompt; the
//! [`decoding::engine`] samples the answer's tokens in one batch with all other requests; [`answering`] detokenizes
//! them.

pub mod adapters;
pub mod answering;
pub mod app;
pub mod bridge;
pub mod config;
pub mod decoding;
pub mod error;
pub mod http;
mod models;
pub mod replica;
mod reports;
pub mod residency;
