//! Common functions of all programs of the platform, on both sides of the walls: a process exits with its parent,
//! logging never blocks it, an error is reported with its causes, and metrics and traces have one vocabulary.
//!
//! This crate has no rows and no tensors, and no network but for the export of traces. The modules are listed in
//! reading order.

/// The exit of a process when its parent exits.
pub mod parent;

/// The log on standard error.
pub mod log;

/// The text of an error with its causes.
pub mod error_chain;

/// Traces.
pub mod telemetry;

/// Metrics.
pub mod metrics;

/// Fail points for tests.
pub mod failpoint;
