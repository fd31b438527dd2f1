//! `attune files`.

/// `attune files`.
pub(crate) mod commands;
/// The SHA-256 of files.
pub(crate) mod digest;
/// `attune files preview`.
pub(crate) mod preview;
/// `attune files report`.
pub(crate) mod report;
/// Multipart uploads.
pub(crate) mod uploads;
