//! The administration of an organization: projects, API keys, users, audit logs. Needs a key with the scope `admin`, or
//! the token of an owner or admin.

/// `attune audit-log`.
pub(crate) mod audit_log;
/// `attune catalogue`.
pub(crate) mod catalogue;
/// `attune keys`.
pub(crate) mod keys;
/// `attune members`.
pub(crate) mod members;
/// `attune organizations`.
pub(crate) mod organizations;
/// The shares and quotas of projects.
mod project_limits;
/// `attune projects`.
pub(crate) mod projects;
