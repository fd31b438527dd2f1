//! Routes of the administration: organizations, projects, users, keys, usage.

/// The API keys of a project.
pub mod api_keys;
/// Who changed what.
pub mod audit_logs;
/// What a project may spend.
pub mod budget;
/// The installation's organizations.
pub mod organizations;
/// The people of a project.
pub mod project_users;
/// The organization's projects.
pub mod projects;
/// What was used, and what it cost.
pub mod usage;
/// The people of the organization.
pub mod users;
