//! Access control: the roles of users, the scopes of API keys.

use std::{fmt, str::FromStr};

use crate::id::{ApiKeyId, PersonId};

/// The author of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Actor {
    /// An API key.
    ApiKey(ApiKeyId),
    /// A user.
    Person(PersonId),
}

/// A user's role in an organization or a project. A later role includes the permissions of all earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Uploads, trains and runs inference.
    Member,
    /// Adds users, and creates projects and keys.
    Admin,
    /// Adds and removes owners.
    Owner,
}

impl Role {
    /// All roles, from the fewest permissions.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Member, Self::Admin, Self::Owner];

    /// Returns the role's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

/// A part of the API that a key gives access to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everything in the key's project; not the organization's administration.
    All,
    /// List, retrieve and download files.
    FilesRead,
    /// Upload and delete files.
    FilesWrite,
    /// List and retrieve fine-tuning jobs.
    JobsRead,
    /// Create, pause, resume and cancel fine-tuning jobs.
    JobsWrite,
    /// List and retrieve models and adapters, and export adapters.
    ModelsRead,
    /// Import base models and adapters, move aliases, delete fine-tuned models.
    ModelsWrite,
    /// Run inference.
    Inference,
    /// All operations on webhooks.
    Webhooks,
    /// Usage and costs.
    UsageRead,
    /// The organization's administration: projects, users, keys, the audit log.
    Admin,
    /// The installation's administration: organizations, and the base models that every project may use.
    Installation,
}

impl Scope {
    /// All scopes.
    pub const EACH: [Self; 12] = [
        Self::All,
        Self::FilesRead,
        Self::FilesWrite,
        Self::JobsRead,
        Self::JobsWrite,
        Self::ModelsRead,
        Self::ModelsWrite,
        Self::Inference,
        Self::Webhooks,
        Self::UsageRead,
        Self::Admin,
        Self::Installation,
    ];

    /// Returns the scope's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::FilesRead => "files:read",
            Self::FilesWrite => "files:write",
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::ModelsRead => "models:read",
            Self::ModelsWrite => "models:write",
            Self::Inference => "inference",
            Self::Webhooks => "webhooks",
            Self::UsageRead => "usage:read",
            Self::Admin => "admin",
            Self::Installation => "installation",
        }
    }

    /// Returns whether a key with this scope may use an operation that requires `wanted`. A write scope includes the
    /// read scope; `all` is everything but the administration of the organization and of the installation.
    #[must_use]
    pub fn covers(self, wanted: Self) -> bool {
        self == wanted
            || match self {
                Self::All => !matches!(wanted, Self::Admin | Self::Installation),
                Self::FilesWrite => wanted == Self::FilesRead,
                Self::JobsWrite => wanted == Self::JobsRead,
                Self::ModelsWrite => wanted == Self::ModelsRead,
                _ => false,
            }
    }
}

/// The error for a text that is not a role or not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is not a {noun}; allowed: {allowed}")]
pub struct Unknown {
    given: String,
    noun: &'static str,
    allowed: String,
}

impl Unknown {
    fn new(given: &str, noun: &'static str, allowed: &[&str]) -> Self {
        Self { given: given.chars().take(80).collect(), noun, allowed: allowed.join(", ") }
    }
}

impl FromStr for Role {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| Unknown::new(text, "role", &Self::ALL.map(Self::name)))
    }
}

impl FromStr for Scope {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let found = Self::EACH.into_iter().find(|scope| scope.name() == text);
        found.ok_or_else(|| Unknown::new(text, "scope", &Self::EACH.map(Self::name)))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_and_scope_reads_back_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
        for scope in Scope::EACH {
            assert_eq!(scope.name().parse(), Ok(scope));
        }
        let refused = "god".parse::<Role>().unwrap_err().to_string();
        assert_eq!(refused, "'god' is not a role; allowed: viewer, member, admin, owner");
        assert!("Files:read".parse::<Scope>().is_err());
    }

    #[test]
    fn whoever_writes_may_read_and_nothing_but_admin_administers() {
        assert!(Scope::FilesWrite.covers(Scope::FilesRead) && !Scope::FilesRead.covers(Scope::FilesWrite));
        assert!(!Scope::FilesWrite.covers(Scope::JobsRead));
        for wanted in Scope::EACH {
            assert_eq!(Scope::All.covers(wanted), !matches!(wanted, Scope::Admin | Scope::Installation));
            assert_eq!(Scope::Admin.covers(wanted), wanted == Scope::Admin);
            assert_eq!(Scope::Installation.covers(wanted), wanted == Scope::Installation);
        }
    }

    #[test]
    fn a_later_role_may_do_what_an_earlier_one_may() {
        assert!(Role::Viewer < Role::Member && Role::Member < Role::Admin && Role::Admin < Role::Owner);
    }
}
