//! Common functions of all programs of the platform, on both sides of the walls: a process exits with its parent,
//! logging never blocks it, and an error is reported with its causes.
//!
//! This crate has no network, no rows and no tensors. The modules are listed in reading order.

/// The exit of a process when its parent exits.
pub mod parent;

/// The log on standard error.
pub mod log;

/// The text of an error with its causes.
pub mod error_chain;
