//! The permission that an operation requires. Each operation's is declared in its policy ([`crate::policy`]).
//!
//! An API key needs the scope, and a user at least the role: in the requested project or, for the operations of
//! `Level::Organization`, in the organization.

use attune_domain::access::{Role, Scope};

use crate::error::ApiError;

/// The level at which the caller must hold the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A role in the project.
    Project,
    /// A role in the organization.
    Organization,
    /// The installation, in which no user has a role: only a key with the scope is permitted.
    Installation,
}

/// The permission that an operation requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// The scope that an API key needs.
    pub scope: Scope,
    /// The minimum role of a user.
    pub role: Role,
    /// The level of that role.
    pub level: Level,
}

/// The access rule of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// No authentication is required.
    Open,
    /// Authentication and this permission are required.
    Asks(Permission),
}

impl Permission {
    /// Checks that an API key with these scopes is permitted.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`], which names the missing scope.
    pub fn check_key(&self, scopes: &[Scope]) -> Result<(), ApiError> {
        if scopes.iter().any(|scope| scope.covers(self.scope)) {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!(
            "You have insufficient permissions for this operation. Missing scopes: {}.",
            self.scope
        )))
    }

    /// Checks that a user with this role is permitted.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`], which names the required role.
    pub fn check_role(&self, role: Role) -> Result<(), ApiError> {
        let place = match self.level {
            Level::Project => "project",
            Level::Organization => "organization",
            Level::Installation => {
                let message = "Only an API key with the scope installation may do this; a user may not.";
                return Err(ApiError::Forbidden(message.into()));
            }
        };
        if role >= self.role {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!(
            "You have insufficient permissions for this operation: your role in the {place} is {role}, \
             and {} or higher is required.",
            self.role
        )))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::*;
    use crate::{
        policy::{self, Policies},
        router, routes,
    };

    #[test]
    fn a_viewer_changes_nothing() {
        let document = router::document();
        let policies = Policies::of(&document, routes::POLICIES);
        for (path, item) in &document.paths.paths {
            for (method, id) in policy::operations(item) {
                let rule = policies.find(&method, path).map(|policy| policy.rule);
                let Some(Rule::Asks(line)) = rule else { continue };
                let looks = method == Method::GET || LOOKS.contains(&id);
                assert!(looks || line.role > Role::Viewer, "{method} {path} is open to a viewer");
            }
        }
    }

    /// The operations that change nothing although their method is not `GET`.
    const LOOKS: [&str; 2] = ["preview_file", "estimate_job"];

    #[test]
    fn a_refusal_names_what_is_missing() {
        let line = Permission { scope: Scope::JobsWrite, role: Role::Member, level: Level::Project };
        assert!(line.check_key(&[Scope::All]).is_ok() && line.check_role(Role::Owner).is_ok());
        let said = line.check_key(&[Scope::JobsRead, Scope::Admin]).unwrap_err().to_string();
        assert!(said.contains("Missing scopes: jobs:write"), "{said}");
        let said = line.check_role(Role::Viewer).unwrap_err().to_string();
        assert!(said.contains("your role in the project is viewer, and member or higher is required"), "{said}");
    }
}
