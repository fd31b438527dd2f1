//! Administration endpoints: organizations, projects, users, API keys, budgets, usage and the audit log.

/// The API keys of a project.
pub mod api_keys;
/// The audit log.
pub mod audit_logs;
/// The budget of a project.
pub mod budget;
/// The catalogue of instance types.
pub mod catalogue;
/// The installation's organizations.
pub mod organizations;
/// The share of a project in the queue of jobs.
pub mod project_queue;
/// The users of a project.
pub mod project_users;
/// The organization's projects.
pub mod projects;
/// The state of the queue, the runs and the machines.
pub mod status;
/// Usage and costs.
pub mod usage;
/// The users of the organization.
pub mod users;
