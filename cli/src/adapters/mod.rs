//! `attune adapters`.

/// `attune adapters alias`.
pub(crate) mod alias;
/// `attune adapters`.
pub(crate) mod commands;
/// `attune adapters export`.
pub(crate) mod export;
/// `attune adapters exports`.
pub(crate) mod exports;
/// `attune adapters import`.
pub(crate) mod import;
/// The check of file names that the API returns.
pub(crate) mod plain_name;
/// `attune adapters canary` and the other commands of promotion.
pub(crate) mod promotion;
/// `attune adapters pull`.
pub(crate) mod pull;
/// `attune adapters residency` and `prefetch`.
pub(crate) mod residency;
