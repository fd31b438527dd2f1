//! Access control: the roles of users, the scopes of API keys.

use strum::{Display, EnumString, IntoStaticStr, VariantArray, VariantNames};

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
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
#[strum(serialize_all = "snake_case", parse_err_ty = Unknown, parse_err_fn = unknown_role)]
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
    /// Returns the role's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A part of the API that a key gives access to.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
#[strum(serialize_all = "snake_case", parse_err_ty = Unknown, parse_err_fn = unknown_scope)]
pub enum Scope {
    /// Everything in the key's project; not the organization's administration.
    All,
    /// List, retrieve and download files.
    #[strum(serialize = "files:read")]
    FilesRead,
    /// Upload and delete files.
    #[strum(serialize = "files:write")]
    FilesWrite,
    /// List and retrieve fine-tuning jobs.
    #[strum(serialize = "jobs:read")]
    JobsRead,
    /// Create, pause, resume and cancel fine-tuning jobs.
    #[strum(serialize = "jobs:write")]
    JobsWrite,
    /// List and retrieve models and adapters, and export adapters.
    #[strum(serialize = "models:read")]
    ModelsRead,
    /// Import base models and adapters, move aliases, delete fine-tuned models.
    #[strum(serialize = "models:write")]
    ModelsWrite,
    /// Run inference.
    Inference,
    /// All operations on webhooks.
    Webhooks,
    /// Usage and costs.
    #[strum(serialize = "usage:read")]
    UsageRead,
    /// The organization's administration: projects, users, keys, the audit log.
    Admin,
    /// The installation's administration: organizations, and the base models that every project may use.
    Installation,
}

impl Scope {
    /// Returns the scope's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
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

fn unknown_role(given: &str) -> Unknown {
    Unknown::new(given, "role", <Role as VariantNames>::VARIANTS)
}

fn unknown_scope(given: &str) -> Unknown {
    Unknown::new(given, "scope", <Scope as VariantNames>::VARIANTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::assert_names_read_back;

    #[test]
    fn every_role_and_scope_reads_back_as_it_is_written() {
        assert_names_read_back::<Role>();
        assert_names_read_back::<Scope>();
        let refused = "god".parse::<Role>().unwrap_err().to_string();
        assert_eq!(refused, "'god' is not a role; allowed: viewer, member, admin, owner");
        assert!("Files:read".parse::<Scope>().is_err());
    }

    #[test]
    fn a_scope_that_writes_may_read_and_nothing_but_admin_administers() {
        assert!(Scope::FilesWrite.covers(Scope::FilesRead) && !Scope::FilesRead.covers(Scope::FilesWrite));
        assert!(!Scope::FilesWrite.covers(Scope::JobsRead));
        for &wanted in <Scope as VariantArray>::VARIANTS {
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
