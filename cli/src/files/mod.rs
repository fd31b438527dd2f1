//! `attune files`.

/// `attune files`.
pub(crate) mod commands;
/// SHA-256 of files.
pub(crate) mod digest;
/// `attune files preview`.
pub(crate) mod preview;
/// `attune files report`.
pub(crate) mod report;
/// Files in parts.
pub(crate) mod uploads;
