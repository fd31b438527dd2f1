//! The HTTP API: routes, authentication, limits, the OpenAPI document, and the streams between users and replicas.
//!
//! A handler extracts, checks, makes one transaction, and responds. SQL is in `store`; the rules of a dataset, a job
//! and a shape are in `domain`. Read the modules in this order.

pub mod auth;
/// The configuration.
pub mod config;

/// The state that all handlers share.
pub mod app;

pub mod exports;
pub mod files;
pub mod http;
pub mod jobs;
pub mod middleware;
/// Slots for expensive work, shared among projects.
pub mod places;
/// The policies of operations: access, versions, secrets.
pub mod policy;
/// All routes, and their middleware.
pub mod router;

/// The frame of the OpenAPI document.
pub mod openapi;

/// The errors of the API.
pub mod error;

/// The configuration of webhooks.
pub mod webhooks;

/// The handlers.
pub mod routes;

/// The types of requests and responses.
pub mod wire;

/// The checks of a folder before it becomes a base model.
pub mod base_import;

/// The adapters that deployments pin.
mod pinned_adapters;

/// The draft models of deployments.
mod draft_model;

/// Imports of adapters that were trained elsewhere.
pub mod adapter_import;

#[cfg(test)]
mod tests;
