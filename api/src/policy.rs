//! The policy of an operation: its access rule, the object with versions that its path names, whether its response
//! contains a secret, and whether its response is never stored.
//!
//! Each file in `routes/` declares the policies of its operations, and `routes/mod.rs` lists them. The router collects
//! them in one table, by method and path. The guard finds a request's policy there, and passes it on to the other
//! middleware in the request's extensions. An operation without a policy is refused to all callers.

use std::collections::HashMap;

use attune_domain::access::{Role, Scope};
use attune_store::version::Thing;
use axum::http::Method;
use utoipa::openapi::{OpenApi as Document, PathItem};

use crate::auth::permissions::{Level, Permission, Rule};

/// The policy of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The operation ID: `create_file`.
    pub operation: &'static str,
    /// The access rule.
    pub rule: Rule,
    /// The object with versions that the first parameters of the path name.
    pub thing: Option<Thing>,
    /// True if the response is that object, so that its `ETag` contains the object's version.
    pub shows_version: bool,
    /// True if the response contains a secret, so that it is stored encrypted.
    pub holds_secret: bool,
    /// True if the response is never stored, so that an `Idempotency-Key` is refused.
    pub is_never_stored: bool,
}

impl Policy {
    /// Returns the policy of an operation in a project: an API key needs the scope, and a user at least the role in the
    /// project.
    #[must_use]
    pub const fn project(operation: &'static str, scope: Scope, role: Role) -> Self {
        Self::new(operation, Rule::Asks(Permission { scope, role, level: Level::Project }))
    }

    /// Returns the policy of an operation that administers an organization.
    #[must_use]
    pub const fn organization(operation: &'static str) -> Self {
        let permission = Permission { scope: Scope::Admin, role: Role::Admin, level: Level::Organization };
        Self::new(operation, Rule::Asks(permission))
    }

    /// Returns the policy of an operation that administers the installation.
    #[must_use]
    pub const fn installation(operation: &'static str) -> Self {
        let permission = Permission { scope: Scope::Installation, role: Role::Owner, level: Level::Installation };
        Self::new(operation, Rule::Asks(permission))
    }

    /// Returns the policy of an operation that requires no authentication.
    #[must_use]
    pub const fn open(operation: &'static str) -> Self {
        Self::new(operation, Rule::Open)
    }

    const fn new(operation: &'static str, rule: Rule) -> Self {
        Self { operation, rule, thing: None, shows_version: false, holds_secret: false, is_never_stored: false }
    }

    /// Returns the policy of an operation whose path names this object: `If-Match` is compared with its version.
    #[must_use]
    pub const fn names(self, thing: Thing) -> Self {
        Self { thing: Some(thing), ..self }
    }

    /// Returns the policy of an operation whose response is the object that its path names.
    #[must_use]
    pub const fn retrieves(self, thing: Thing) -> Self {
        Self { thing: Some(thing), shows_version: true, ..self }
    }

    /// Returns the policy of an operation whose response contains a secret.
    #[must_use]
    pub const fn holds_secret(self) -> Self {
        Self { holds_secret: true, ..self }
    }

    /// Returns the policy of an operation whose response is never stored: the answers of a model.
    #[must_use]
    pub const fn never_stored(self) -> Self {
        Self { is_never_stored: true, ..self }
    }
}

/// The policies by method and matched path pattern.
#[derive(Debug, Default)]
pub struct Policies(HashMap<(Method, String), Policy>);

impl Policies {
    /// Collects the declared policies of a document's operations.
    pub fn of(document: &Document, declared: &[&[Policy]]) -> Self {
        let of_operation = |id: &str| declared.iter().copied().flatten().find(|policy| policy.operation == id).copied();
        let mut policies = HashMap::new();
        for (path, item) in &document.paths.paths {
            for (method, id) in operations(item) {
                policies.extend(of_operation(id).map(|policy| ((method, path.clone()), policy)));
            }
        }
        Self(policies)
    }

    /// Returns the policy of a request. `HEAD` has the policy of `GET`, unless it is an operation of its own.
    pub fn find(&self, method: &Method, path: &str) -> Option<Policy> {
        let of = |method: &Method| self.0.get(&(method.clone(), path.to_owned())).copied();
        of(method).or_else(|| if method == Method::HEAD { of(&Method::GET) } else { None })
    }
}

/// Returns the operations of a path, with their methods.
pub fn operations(item: &PathItem) -> impl Iterator<Item = (Method, &str)> {
    let all = [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::DELETE, &item.delete),
        (Method::HEAD, &item.head),
        (Method::PATCH, &item.patch),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_ref()?.operation_id.as_deref()?)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{router, routes};

    /// Returns the operations that have no policy or two, and the policies that have no operation.
    fn faults(document: &Document, declared: &[&[Policy]]) -> Vec<String> {
        let documented: BTreeSet<&str> = document.paths.paths.values().flat_map(operations).map(|(_, id)| id).collect();
        let mut faults = Vec::new();
        let mut found = BTreeSet::new();
        for policy in declared.iter().copied().flatten() {
            if !found.insert(policy.operation) {
                faults.push(format!("{} has two policies", policy.operation));
            }
        }
        faults.extend(documented.difference(&found).map(|id| format!("{id} has no policy, so it is refused")));
        faults.extend(found.difference(&documented).map(|id| format!("{id} is no operation of the document")));
        faults
    }

    #[test]
    fn every_operation_has_one_line() {
        assert_eq!(faults(&router::document(), routes::POLICIES), [""; 0], "see POLICIES in api/src/routes/");
    }

    #[test]
    fn a_missing_a_second_and_an_unknown_policy_are_faults() {
        let document = router::document();
        let all = routes::POLICIES.concat();
        let first = all[0].operation;
        assert_eq!(faults(&document, &[&all[1..]]), [format!("{first} has no policy, so it is refused")]);
        assert_eq!(faults(&document, &[&all[..], &all[..1]]), [format!("{first} has two policies")]);
        let unknown = [Policy::open("fly")];
        assert_eq!(faults(&document, &[&all[..], &unknown[..]]), ["fly is no operation of the document"]);
    }

    #[test]
    fn an_operation_without_a_line_is_nobodys() {
        let document = router::document();
        let policies = Policies::of(&document, routes::POLICIES);
        assert!(policies.find(&Method::PATCH, "/v1/files").is_none());
        assert!(policies.find(&Method::GET, "/v1/nowhere").is_none());
        assert_eq!(policies.find(&Method::HEAD, "/v1/files"), policies.find(&Method::GET, "/v1/files"));
        assert_eq!(policies.find(&Method::GET, "/healthz").map(|policy| policy.rule), Some(Rule::Open));
        assert!(Policies::of(&document, &[]).find(&Method::GET, "/v1/files").is_none());
    }

    #[test]
    fn the_responses_with_a_secret_are_those_that_create_one() {
        let secret = routes::POLICIES.iter().copied().flatten().filter(|policy| policy.holds_secret);
        let secret: BTreeSet<&str> = secret.map(|policy| policy.operation).collect();
        let known =
            ["create_organization", "create_project_api_key", "create_webhook_endpoint", "rotate_webhook_secret"];
        assert_eq!(secret, BTreeSet::from(known));
    }

    #[test]
    fn the_responses_that_are_never_stored_are_models_answers() {
        let passing = routes::POLICIES.iter().copied().flatten().filter(|policy| policy.is_never_stored);
        let passing: BTreeSet<&str> = passing.map(|policy| policy.operation).collect();
        let lorax = ["lorax", "lorax_generate", "lorax_generate_stream"];
        let openai = ["create_chat_completion", "create_completion", "create_response"];
        assert_eq!(passing, BTreeSet::from_iter(openai.into_iter().chain(lorax)));
    }
}
