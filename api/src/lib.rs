//! The front door: routes, keys, limits, the OpenAPI document, and the streams between users and replicas.
//!
//! A handler extracts, checks, makes one transaction, answers. SQL is `store`'s; the rules of a dataset, a job and a
//! shape are `domain`'s. Read in this order.

pub mod auth;
/// Batches, from their file to their answers.
pub mod batches;
/// What can be set.
pub mod config;

/// What every handler has at hand.
pub mod app;

pub mod files;
pub mod http;
pub mod inference;
pub mod jobs;
pub mod middleware;
/// Every path, and what all of them go through.
pub mod router;

/// The frame of the OpenAPI document.
pub mod openapi;

/// What a caller is told when something cannot be done.
pub mod error;

/// What webhooks need of the configuration.
pub mod webhooks;

/// The handlers.
pub mod routes;

/// What goes over the wire.
pub mod wire;

/// A folder before it becomes a base model.
pub mod base_import;

/// An adapter that was made elsewhere.
pub mod adapter_import;

#[cfg(test)]
mod tests;
