//! Organizations, projects, users, API keys, usage and budgets.

/// Secrets that let a program in.
pub mod api_key;
/// Who changed what.
pub mod audit;
/// People, and what they are in organizations and projects.
pub mod member;
/// What jobs and projects may cost.
pub mod money;
/// Organizations and projects.
pub mod tenant;
/// What was used, and what it cost.
pub mod usage;
