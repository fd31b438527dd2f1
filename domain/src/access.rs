//! Who may do what, in words: the roles of people, the scopes of keys.

use std::{fmt, str::FromStr};

use crate::id::{ApiKeyId, PersonId};

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A program, with this key.
    ApiKey(ApiKeyId),
    /// A person.
    Person(PersonId),
}

/// What a person is in an organization or a project. A later one may do all that an earlier one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Works: uploads, trains, asks.
    Member,
    /// Lets others in, makes projects and keys.
    Admin,
    /// Makes and unmakes owners.
    Owner,
}

impl Role {
    /// All, from the least.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Member, Self::Admin, Self::Owner];

    /// As it is written.
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

/// A part of the API that a key may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everything in the key's project; not the organization's administration.
    All,
    /// Look at files and read them.
    FilesRead,
    /// Upload and delete files.
    FilesWrite,
    /// Look at fine-tuning jobs.
    JobsRead,
    /// Start, pause and cancel them.
    JobsWrite,
    /// Look at models and adapters, and take adapters home.
    ModelsRead,
    /// Bring base models and adapters, move aliases, delete tuned models.
    ModelsWrite,
    /// Ask models.
    Inference,
    /// Everything about webhooks.
    Webhooks,
    /// What was used, and what it costs.
    UsageRead,
    /// The organization's administration: projects, people, keys, the audit log.
    Admin,
    /// The installation's administration: organizations, and the base models that every project may use.
    Installation,
}

impl Scope {
    /// All there are.
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

    /// As it is written.
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

    /// Whether a key with this scope may do what asks for `wanted`. Whoever writes may read; `all` is everything but the
    /// administration of the organization and of the installation.
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

/// The text is no role or no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is no {noun}; there are {allowed}")]
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
        assert_eq!(refused, "'god' is no role; there are viewer, member, admin, owner");
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
