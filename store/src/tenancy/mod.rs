//! Organizations, projects, users, API keys, usage and budgets.

/// API keys.
pub mod api_key;
/// The audit log.
pub mod audit;
/// Users, and their roles in organizations and projects.
pub mod member;
/// Budgets of projects and price caps of jobs.
pub mod money;
/// Shares of projects in the queue of jobs.
pub mod project_queue;
/// Organizations and projects.
pub mod tenant;
/// Usage and its cost.
pub mod usage;
