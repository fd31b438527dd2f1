//! Organizations, projects, users, API keys and the audit log, as OpenAI's administration API returns them.

use attune_domain::access::{Actor, Role, Scope};
use attune_store::tenancy::{
    api_key::ApiKey,
    audit::Entry,
    member::Member,
    tenant::{OrganizationRow, Project},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProjectView {
    /// The project's ID.
    #[schema(example = "proj_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `organization.project`.
    pub object: &'static str,
    /// The project's name, which is a part of the names of models that are fine-tuned in it.
    pub name: String,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The time at which the project was archived, in Unix seconds, since when its keys are refused; `null` if it is
    /// active.
    pub archived_at: Option<i64>,
    /// The status: `active` or `archived`.
    pub status: &'static str,
}

impl From<Project> for ProjectView {
    fn from(project: Project) -> Self {
        Self {
            id: project.project_id.to_string(),
            object: "organization.project",
            name: project.name,
            created_at: project.created_at.timestamp(),
            archived_at: project.archived_at.map(|moment| moment.timestamp()),
            status: if project.archived_at.is_some() { "archived" } else { "active" },
        }
    }
}

/// The request body for creating or renaming a project.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedProject {
    /// The name: lower-case letters, digits and `-`, at most 31 characters.
    #[schema(example = "support", pattern = "^[a-z0-9][a-z0-9-]{0,30}$")]
    pub name: String,
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct OrganizationView {
    /// The organization's ID.
    pub id: String,
    /// The object type, always `organization`.
    pub object: &'static str,
    /// The name, unique in the installation.
    pub name: String,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
}

impl From<OrganizationRow> for OrganizationView {
    fn from(organization: OrganizationRow) -> Self {
        Self {
            id: organization.organization_id.to_string(),
            object: "organization",
            name: organization.name,
            created_at: organization.created_at.timestamp(),
        }
    }
}

/// A new organization, with its first project and an API key that administers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NewOrganizationView {
    /// The organization.
    #[serde(flatten)]
    pub organization: OrganizationView,
    /// The first project, `default`.
    pub project: ProjectView,
    /// An API key of that project with the scopes `all` and `admin`. Its secret is returned only here.
    pub api_key: NewApiKeyView,
}

/// The request body for creating an organization.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOrganization {
    /// The name: 1 to 100 characters, unique in the installation.
    #[schema(example = "Example Inc", min_length = 1, max_length = 100)]
    pub name: String,
    /// The first owner. If omitted, only the API key administers the organization until it adds a user.
    pub owner: Option<NewOwner>,
}

/// The first owner of an organization.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOwner {
    /// The issuer (`iss`) of the user's tokens: one of the configured issuers.
    #[schema(example = "https://login.example.org")]
    pub issuer: String,
    /// The subject (`sub`) of the user's tokens: 1 to 255 characters.
    pub subject: String,
    /// The e-mail address, for display only. Replaced by the issuer's value.
    pub email: Option<String>,
    /// The name, for display only. Replaced by the issuer's value.
    pub name: Option<String>,
}

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ApiKeyView {
    /// The key's ID.
    #[schema(example = "key_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `organization.project.api_key`.
    pub object: &'static str,
    /// A human-readable name.
    pub name: String,
    /// The first and the last characters of the secret.
    #[schema(example = "sk-attune-aB3d…x9Qz")]
    pub redacted_value: String,
    /// The scopes of the key.
    pub scopes: Vec<&'static str>,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The time of the last use, in Unix seconds; at most a minute late.
    pub last_used_at: Option<i64>,
    /// The time at which the key expires, in Unix seconds; `null` if it does not expire.
    pub expires_at: Option<i64>,
}

impl From<ApiKey> for ApiKeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.api_key_id.to_string(),
            object: "organization.project.api_key",
            name: key.name,
            redacted_value: key.hint,
            scopes: key.scopes.into_iter().map(Scope::name).collect(),
            created_at: key.created_at.timestamp(),
            last_used_at: key.last_used_at.map(|moment| moment.timestamp()),
            expires_at: key.expires_at.map(|moment| moment.timestamp()),
        }
    }
}

/// A new API key with its secret, which is returned only here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NewApiKeyView {
    /// The key as later requests return it.
    #[serde(flatten)]
    pub key: ApiKeyView,
    /// The secret.
    pub value: String,
}

/// The request body for creating an API key.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    /// A human-readable name: 1 to 100 characters.
    pub name: String,
    /// The scopes: `all`, `files:read`, `files:write`, `jobs:read`, `jobs:write`, `models:read`, `models:write`,
    /// `inference`, `webhooks`, `usage:read`, `admin`, `installation`. Defaults to `["all"]`: all of the project.
    /// `all` includes neither `admin`, the administration of the organization, which only an owner can grant, nor
    /// `installation`, the administration of the installation, which only a key with that scope can grant.
    pub scopes: Option<Vec<String>>,
    /// The number of seconds after which the key expires. If omitted, the key does not expire.
    #[schema(minimum = 1, maximum = 4294967295.0)]
    pub expires_in_seconds: Option<u32>,
}

/// A user of an organization or a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct UserView {
    /// The user's ID.
    #[schema(example = "user-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type: `organization.user` or `organization.project.user`.
    pub object: &'static str,
    /// The name, as the issuer last reported it, or as the request that added the user gave it.
    pub name: Option<String>,
    /// The e-mail address, as the issuer last reported it, or as the request that added the user gave it.
    pub email: Option<String>,
    /// The role: `viewer`, `member`, `admin` or `owner`.
    pub role: &'static str,
    /// The time at which the user was added, in Unix seconds.
    pub added_at: i64,
    /// The issuer of the user's tokens. Attune extension.
    pub issuer: String,
    /// The subject of the user's tokens. Attune extension.
    pub subject: String,
}

impl UserView {
    /// Creates the view of a member, with the object type `object`.
    pub fn new(member: Member, object: &'static str) -> Self {
        Self {
            id: member.person_id.to_string(),
            object,
            name: member.name,
            email: member.email,
            role: member.role.name(),
            added_at: member.created_at.timestamp(),
            issuer: member.issuer,
            subject: member.subject,
        }
    }
}

/// The request body for adding a user to the organization.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The issuer (`iss`) of the user's tokens: one of the configured issuers.
    #[schema(example = "https://login.example.org")]
    pub issuer: String,
    /// The subject (`sub`) of the user's tokens: 1 to 255 characters.
    pub subject: String,
    /// The role: `viewer`, `member`, `admin` or `owner`.
    #[schema(pattern = "^(viewer|member|admin|owner)$")]
    pub role: String,
    /// The e-mail address, for display only. Replaced by the issuer's value.
    pub email: Option<String>,
    /// The name, for display only. Replaced by the issuer's value.
    pub name: Option<String>,
}

/// The request body for adding a user of the organization to a project.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProjectUser {
    /// The user's ID in the organization.
    pub user_id: String,
    /// The role: `viewer`, `member`, `admin` or `owner`.
    #[schema(pattern = "^(viewer|member|admin|owner)$")]
    pub role: String,
}

/// The request body for changing a role.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangedRole {
    /// The role: `viewer`, `member`, `admin` or `owner`.
    #[schema(pattern = "^(viewer|member|admin|owner)$")]
    pub role: String,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditLogView {
    /// The entry's ID.
    #[schema(example = "audit_log-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `organization.audit_log`.
    pub object: &'static str,
    /// The type of the event, such as `file.created`.
    #[schema(example = "file.created")]
    pub r#type: String,
    /// The time of the event, in Unix seconds.
    pub effective_at: i64,
    /// The project in which the change was made; `null` for a change of the organization itself.
    pub project: Option<AuditProject>,
    /// The actor.
    pub actor: AuditActor,
    /// The ID of the changed object, in the form that other endpoints use. Attune extension.
    pub object_id: String,
    /// The operation ID of the request, as in the OpenAPI document. Attune extension.
    pub operation: String,
    /// The request's `x-request-id`. Attune extension.
    pub request_id: String,
    /// The IP address that the request came from; behind a proxy, the proxy's. Attune extension.
    pub ip_address: Option<String>,
}

/// The project of an audit log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditProject {
    /// The project's ID.
    pub id: String,
    /// The project's current name.
    pub name: String,
}

/// The actor of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditActor {
    /// The type: `api_key` or `session`.
    pub r#type: &'static str,
    /// The API key, for the type `api_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<AuditApiKey>,
    /// The session, for the type `session`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<AuditSession>,
}

/// The API key that made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditApiKey {
    /// The key's ID.
    pub id: String,
}

/// The session of a user who made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditSession {
    /// The user.
    pub user: AuditUser,
    /// The IP address that the request came from.
    pub ip_address: Option<String>,
}

/// A user in the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditUser {
    /// The user's ID.
    pub id: String,
    /// The e-mail address, as the issuer last reported it; `null` once the user has left the organization.
    pub email: Option<String>,
}

impl From<Entry> for AuditLogView {
    fn from(entry: Entry) -> Self {
        let actor = match entry.actor {
            Actor::ApiKey(id) => {
                AuditActor { r#type: "api_key", api_key: Some(AuditApiKey { id: id.to_string() }), session: None }
            }
            Actor::Person(id) => {
                let user = AuditUser { id: id.to_string(), email: entry.email };
                let session = AuditSession { user, ip_address: entry.address.clone() };
                AuditActor { r#type: "session", api_key: None, session: Some(session) }
            }
        };
        Self {
            id: entry.audit_log_id.to_string(),
            object: "organization.audit_log",
            object_id: object_id(&entry.event, entry.object_id),
            r#type: entry.event,
            effective_at: entry.created_at.timestamp(),
            project: entry.project.map(|(id, name)| AuditProject { id: id.to_string(), name }),
            actor,
            operation: entry.operation,
            request_id: entry.request_id,
            ip_address: entry.address,
        }
    }
}

/// Returns an ID in the form that other endpoints use; a bare UUID for objects that have no such form.
fn object_id(event: &str, id: uuid::Uuid) -> String {
    use attune_domain::id;
    let noun = event.rsplit_once('.').map_or(event, |(noun, _)| noun);
    match noun {
        "file" => id::FileId::new(id).to_string(),
        "job" => id::JobId::new(id).to_string(),
        "adapter" | "adapter.alias" => id::AdapterVersionId::new(id).to_string(),
        "adapter.canary" => id::AdapterCanaryId::new(id).to_string(),
        "adapter.shadow" => id::AdapterShadowId::new(id).to_string(),
        "base_model" => id::BaseModelId::new(id).to_string(),
        "project" | "budget" => id::ProjectId::new(id).to_string(),
        "upload" => id::UploadId::new(id).to_string(),
        "batch" => id::BatchId::new(id).to_string(),
        "export" => id::ExportId::new(id).to_string(),
        "checkpoint.permission" => id::CheckpointPermissionId::new(id).to_string(),
        "api_key" => id::ApiKeyId::new(id).to_string(),
        "webhook_endpoint" => id::WebhookEndpointId::new(id).to_string(),
        "deployment" => id::DeploymentId::new(id).to_string(),
        "user" | "project.user" => id::PersonId::new(id).to_string(),
        _ => id.to_string(),
    }
}

/// Parses the role in a request.
///
/// # Errors
/// [`crate::error::ApiError::Invalid`], which names the allowed roles.
pub fn role(text: &str) -> Result<Role, crate::error::ApiError> {
    text.parse().map_err(|e| crate::error::ApiError::invalid("role", format!("Invalid 'role': {e}.")))
}

/// Parses the scopes in a request.
///
/// # Errors
/// As for [`role`].
pub fn scopes(names: Option<&[String]>) -> Result<Vec<Scope>, crate::error::ApiError> {
    let Some(names) = names else { return Ok(vec![Scope::All]) };
    if names.is_empty() {
        return Err(crate::error::ApiError::invalid("scopes", "Invalid 'scopes': a key needs at least one scope."));
    }
    let read = |(i, name): (usize, &String)| {
        let at = format!("scopes[{i}]");
        name.parse().map_err(|e| crate::error::ApiError::invalid(&at, format!("Invalid '{at}': {e}.")))
    };
    let mut scopes = names.iter().enumerate().map(read).collect::<Result<Vec<Scope>, _>>()?;
    scopes.sort_unstable();
    scopes.dedup();
    Ok(scopes)
}
