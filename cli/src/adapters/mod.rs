//! `attune adapters`.

/// `attune adapters alias`.
pub(crate) mod alias;
/// `attune adapters`.
pub(crate) mod commands;
/// `attune adapters import`.
pub(crate) mod import;
/// The check of file names that the API returns.
pub(crate) mod plain_name;
/// `attune adapters pull`.
pub(crate) mod pull;
