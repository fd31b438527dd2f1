//! The permissions of all operations of the OpenAPI document, one line each. An operation without a line is refused to
//! all callers.
//!
//! An API key needs the scope, and a user at least the role: in the requested project or, for the operations of
//! `Level::Organization`, in the organization.

use std::collections::HashMap;

use attune_domain::access::{Role, Scope};
use axum::http::Method;
use utoipa::openapi::{OpenApi as Document, PathItem};

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
    /// The operation ID: `create_file`.
    pub operation: &'static str,
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

/// The operations that require no authentication.
const OPEN: [&str; 1] = ["health"];

/// The permissions of all other operations.
const TABLE: &[Permission] = &[
    project("list_files", Scope::FilesRead, Role::Viewer),
    project("retrieve_file", Scope::FilesRead, Role::Viewer),
    project("download_file", Scope::FilesRead, Role::Viewer),
    project("preview_file", Scope::FilesRead, Role::Viewer),
    project("report_file", Scope::FilesRead, Role::Viewer),
    project("create_upload", Scope::FilesWrite, Role::Member),
    project("retrieve_upload", Scope::FilesRead, Role::Viewer),
    project("create_upload_part", Scope::FilesWrite, Role::Member),
    project("complete_upload", Scope::FilesWrite, Role::Member),
    project("cancel_upload", Scope::FilesWrite, Role::Member),
    project("create_file", Scope::FilesWrite, Role::Member),
    project("delete_file", Scope::FilesWrite, Role::Member),
    project("list_jobs", Scope::JobsRead, Role::Viewer),
    project("retrieve_job", Scope::JobsRead, Role::Viewer),
    project("list_job_events", Scope::JobsRead, Role::Viewer),
    project("list_job_checkpoints", Scope::JobsRead, Role::Viewer),
    project("create_job", Scope::JobsWrite, Role::Member),
    project("cancel_job", Scope::JobsWrite, Role::Member),
    project("estimate_job", Scope::JobsRead, Role::Viewer),
    project("update_job", Scope::JobsWrite, Role::Member),
    project("list_checkpoint_permissions", Scope::JobsRead, Role::Viewer),
    // Grants access to other projects.
    project("create_checkpoint_permissions", Scope::JobsWrite, Role::Admin),
    project("delete_checkpoint_permission", Scope::JobsWrite, Role::Admin),
    project("retrieve_budget", Scope::UsageRead, Role::Viewer),
    // Members who spend the budget must not set it.
    project("set_budget", Scope::All, Role::Admin),
    project("usage_completions", Scope::UsageRead, Role::Viewer),
    project("usage_training", Scope::UsageRead, Role::Viewer),
    project("costs", Scope::UsageRead, Role::Viewer),
    project("usage_storage", Scope::UsageRead, Role::Viewer),
    project("pause_job", Scope::JobsWrite, Role::Member),
    project("resume_job", Scope::JobsWrite, Role::Member),
    project("list_models", Scope::ModelsRead, Role::Viewer),
    project("retrieve_model", Scope::ModelsRead, Role::Viewer),
    project("delete_model", Scope::ModelsWrite, Role::Member),
    project("list_adapters", Scope::ModelsRead, Role::Viewer),
    project("retrieve_adapter", Scope::ModelsRead, Role::Viewer),
    project("download_adapter_file", Scope::ModelsRead, Role::Viewer),
    project("export_adapter", Scope::ModelsRead, Role::Viewer),
    project("list_base_models", Scope::ModelsRead, Role::Viewer),
    project("retrieve_base_model", Scope::ModelsRead, Role::Viewer),
    // Base models of the installation additionally require a key with the scope `installation`.
    project("create_base_model", Scope::ModelsWrite, Role::Admin),
    project("delete_base_model", Scope::ModelsWrite, Role::Admin),
    project("find_blob", Scope::ModelsWrite, Role::Admin),
    project("put_blob", Scope::ModelsWrite, Role::Admin),
    project("list_adapter_versions", Scope::ModelsRead, Role::Viewer),
    project("retrieve_adapter_manifest", Scope::ModelsRead, Role::Viewer),
    project("list_adapter_aliases", Scope::ModelsRead, Role::Viewer),
    project("retrieve_adapter_alias", Scope::ModelsRead, Role::Viewer),
    project("list_adapter_alias_moves", Scope::ModelsRead, Role::Viewer),
    project("import_adapter", Scope::ModelsWrite, Role::Member),
    project("set_adapter_alias", Scope::ModelsWrite, Role::Member),
    project("delete_adapter_alias", Scope::ModelsWrite, Role::Member),
    project("create_chat_completion", Scope::Inference, Role::Member),
    project("create_completion", Scope::Inference, Role::Member),
    project("list_batches", Scope::Inference, Role::Viewer),
    project("retrieve_batch", Scope::Inference, Role::Viewer),
    project("create_batch", Scope::Inference, Role::Member),
    project("cancel_batch", Scope::Inference, Role::Member),
    project("list_webhook_endpoints", Scope::Webhooks, Role::Viewer),
    project("retrieve_webhook_endpoint", Scope::Webhooks, Role::Viewer),
    project("list_webhook_deliveries", Scope::Webhooks, Role::Viewer),
    project("retrieve_webhook_delivery", Scope::Webhooks, Role::Viewer),
    project("create_webhook_endpoint", Scope::Webhooks, Role::Member),
    project("update_webhook_endpoint", Scope::Webhooks, Role::Member),
    project("delete_webhook_endpoint", Scope::Webhooks, Role::Member),
    project("rotate_webhook_secret", Scope::Webhooks, Role::Member),
    project("test_webhook_endpoint", Scope::Webhooks, Role::Member),
    project("replay_webhook_delivery", Scope::Webhooks, Role::Member),
    organization("list_projects"),
    organization("create_project"),
    organization("retrieve_project"),
    organization("modify_project"),
    organization("archive_project"),
    organization("list_project_api_keys"),
    organization("create_project_api_key"),
    organization("retrieve_project_api_key"),
    organization("delete_project_api_key"),
    organization("list_project_users"),
    organization("create_project_user"),
    organization("retrieve_project_user"),
    organization("modify_project_user"),
    organization("delete_project_user"),
    organization("list_users"),
    organization("create_user"),
    organization("retrieve_user"),
    organization("modify_user"),
    organization("delete_user"),
    organization("list_audit_logs"),
    installation("list_organizations"),
    installation("create_organization"),
];

const fn project(operation: &'static str, scope: Scope, role: Role) -> Permission {
    Permission { operation, scope, role, level: Level::Project }
}

const fn organization(operation: &'static str) -> Permission {
    Permission { operation, scope: Scope::Admin, role: Role::Admin, level: Level::Organization }
}

const fn installation(operation: &'static str) -> Permission {
    Permission { operation, scope: Scope::Installation, role: Role::Owner, level: Level::Installation }
}

/// Returns the rule of an operation.
pub fn of_operation(id: &str) -> Option<Rule> {
    if OPEN.contains(&id) {
        return Some(Rule::Open);
    }
    TABLE.iter().find(|permission| permission.operation == id).copied().map(Rule::Asks)
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

/// The rules by method and matched path pattern.
#[derive(Debug, Default)]
pub struct Permissions(HashMap<(Method, String), Rule>);

impl Permissions {
    /// Collects the rules of a document's operations.
    pub fn of(document: &Document) -> Self {
        let mut lines = HashMap::new();
        for (path, item) in &document.paths.paths {
            for (method, id) in operations(item) {
                lines.extend(of_operation(id).map(|rule| ((method, path.clone()), rule)));
            }
        }
        Self(lines)
    }

    /// Returns the rule of a request. `HEAD` has the rule of `GET`, unless it is an operation of its own.
    pub fn find(&self, method: &Method, path: &str) -> Option<Rule> {
        let line = |method: &Method| self.0.get(&(method.clone(), path.to_owned())).copied();
        line(method).or_else(|| if method == Method::HEAD { line(&Method::GET) } else { None })
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
    use crate::router;

    fn ids(document: &Document) -> BTreeSet<String> {
        document.paths.paths.values().flat_map(operations).map(|(_, id)| id.to_owned()).collect()
    }

    #[test]
    fn every_operation_has_one_line() {
        let operations = ids(&router::document());
        let missing: Vec<_> = operations.iter().filter(|id| of_operation(id).is_none()).collect();
        assert!(missing.is_empty(), "no line in api/src/auth/permissions.rs, so refused to everybody: {missing:?}");
        let lines: Vec<&str> = TABLE.iter().map(|line| line.operation).chain(OPEN).collect();
        assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), lines.len(), "an operation has two lines");
    }

    #[test]
    fn a_viewer_changes_nothing() {
        let document = router::document();
        for (path, item) in &document.paths.paths {
            for (method, id) in operations(item) {
                let Some(Rule::Asks(line)) = of_operation(id) else { continue };
                let looks = method == Method::GET || LOOKS.contains(&id);
                assert!(looks || line.role > Role::Viewer, "{method} {path} is open to a viewer");
            }
        }
    }

    /// The operations that change nothing although their method is not `GET`.
    const LOOKS: [&str; 2] = ["preview_file", "estimate_job"];

    #[test]
    fn an_operation_without_a_line_is_nobodys() {
        let permissions = Permissions::of(&router::document());
        assert!(permissions.find(&Method::PATCH, "/v1/files").is_none());
        assert!(permissions.find(&Method::GET, "/v1/nowhere").is_none());
        assert_eq!(permissions.find(&Method::HEAD, "/v1/files"), permissions.find(&Method::GET, "/v1/files"));
        assert_eq!(permissions.find(&Method::GET, "/healthz"), Some(Rule::Open));
    }

    #[test]
    fn a_refusal_names_what_is_missing() {
        let line = project("create_job", Scope::JobsWrite, Role::Member);
        assert!(line.check_key(&[Scope::All]).is_ok() && line.check_role(Role::Owner).is_ok());
        let said = line.check_key(&[Scope::JobsRead, Scope::Admin]).unwrap_err().to_string();
        assert!(said.contains("Missing scopes: jobs:write"), "{said}");
        let said = line.check_role(Role::Viewer).unwrap_err().to_string();
        assert!(said.contains("your role in the project is viewer, and member or higher is required"), "{said}");
    }
}
