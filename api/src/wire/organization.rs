//! Projects, people, keys and the audit log as OpenAI's administration API shows them.

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
    /// Its id.
    #[schema(example = "proj_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `organization.project`.
    pub object: &'static str,
    /// Stands in the names of models that are tuned in it.
    pub name: String,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// Since when its keys open nothing; `null` while they do.
    pub archived_at: Option<i64>,
    /// `active` or `archived`.
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

/// A project to be, or its new name.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedProject {
    /// Lower-case letters, digits and `-`, at most 31.
    #[schema(example = "support", pattern = "^[a-z0-9][a-z0-9-]{0,30}$")]
    pub name: String,
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct OrganizationView {
    /// Its ID.
    pub id: String,
    /// Always `organization`.
    pub object: &'static str,
    /// Unique in the installation.
    pub name: String,
    /// Unix time, in seconds.
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

/// A new organization, with its first project and a key that administers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NewOrganizationView {
    /// The organization.
    #[serde(flatten)]
    pub organization: OrganizationView,
    /// Its first project, `default`.
    pub project: ProjectView,
    /// A key of that project with the scopes `all` and `admin`; its secret is shown this once.
    pub api_key: NewApiKeyView,
}

/// An organization to be made.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOrganization {
    /// 1 to 100 characters; unique in the installation.
    #[schema(example = "Example Inc", min_length = 1, max_length = 100)]
    pub name: String,
    /// The person who is its first owner; left out: only the key administers it, until it lets somebody in.
    pub owner: Option<NewOwner>,
}

/// The first owner of an organization.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOwner {
    /// The `iss` of their tokens; must be one of the configured issuers.
    #[schema(example = "https://login.example.org")]
    pub issuer: String,
    /// The `sub` of their tokens; 1 to 255 characters.
    pub subject: String,
    /// Shown to people; replaced by what the issuer says.
    pub email: Option<String>,
    /// Shown to people; replaced by what the issuer says.
    pub name: Option<String>,
}

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ApiKeyView {
    /// Its id.
    #[schema(example = "key_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `organization.project.api_key`.
    pub object: &'static str,
    /// For people.
    pub name: String,
    /// Its first and last letters.
    #[schema(example = "sk-attune-aB3d…x9Qz")]
    pub redacted_value: String,
    /// What it may do.
    pub scopes: Vec<&'static str>,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// Unix time, in seconds; at most a minute behind.
    pub last_used_at: Option<i64>,
    /// Unix time, in seconds; `null`: it does not expire.
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

/// A new API key, and its secret, which is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NewApiKeyView {
    /// What is shown of it from now on.
    #[serde(flatten)]
    pub key: ApiKeyView,
    /// The secret.
    pub value: String,
}

/// An API key to be.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    /// For people; 1 to 100 characters.
    pub name: String,
    /// What it may do: `all`, `files:read`, `files:write`, `jobs:read`, `jobs:write`, `models:read`, `models:write`,
    /// `inference`, `webhooks`, `usage:read`, `admin`. `["all"]`, everything in its project, if left out; `admin`, the
    /// organization's administration, is never meant by that, and only an owner gives it.
    pub scopes: Option<Vec<String>>,
    /// In how many seconds it expires; never if left out.
    #[schema(minimum = 1, maximum = 4294967295.0)]
    pub expires_in_seconds: Option<u32>,
}

/// Somebody in an organization or a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct UserView {
    /// Their id.
    #[schema(example = "user-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// `organization.user` or `organization.project.user`.
    pub object: &'static str,
    /// As their issuer last said, or as they were let in.
    pub name: Option<String>,
    /// As their issuer last said, or as they were let in.
    pub email: Option<String>,
    /// `viewer`, `member`, `admin` or `owner`.
    pub role: &'static str,
    /// Unix time, in seconds.
    pub added_at: i64,
    /// Who vouches for them. Attune's own.
    pub issuer: String,
    /// As whom. Attune's own.
    pub subject: String,
}

impl UserView {
    /// Somebody in something whose object name is `object`.
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

/// Somebody to be let into the organization.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The `iss` of their tokens; must be one of the configured issuers.
    #[schema(example = "https://login.example.org")]
    pub issuer: String,
    /// The `sub` of their tokens; 1 to 255 characters.
    pub subject: String,
    /// `viewer`, `member`, `admin` or `owner`.
    #[schema(pattern = "^(viewer|member|admin|owner)$")]
    pub role: String,
    /// For people; the issuer's word replaces it.
    pub email: Option<String>,
    /// For people; the issuer's word replaces it.
    pub name: Option<String>,
}

/// A member of the organization to be let into a project.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProjectUser {
    /// Their id in the organization.
    pub user_id: String,
    /// `viewer`, `member`, `admin` or `owner`.
    #[schema(pattern = "^(viewer|member|admin|owner)$")]
    pub role: String,
}

/// Another role.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangedRole {
    /// `viewer`, `member`, `admin` or `owner`.
    #[schema(pattern = "^(viewer|member|admin|owner)$")]
    pub role: String,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditLogView {
    /// Its id.
    #[schema(example = "audit_log-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `organization.audit_log`.
    pub object: &'static str,
    /// What happened: `file.created`.
    #[schema(example = "file.created")]
    pub r#type: String,
    /// Unix time, in seconds.
    pub effective_at: i64,
    /// Where; `null`: the organization itself was changed.
    pub project: Option<AuditProject>,
    /// Who.
    pub actor: AuditActor,
    /// The id of what was changed, as it is shown everywhere. Attune's own.
    pub object_id: String,
    /// The operation that was called, as in the OpenAPI document. Attune's own.
    pub operation: String,
    /// The request's `x-request-id`. Attune's own.
    pub request_id: String,
    /// From where the request came; behind a proxy, the proxy's. Attune's own.
    pub ip_address: Option<String>,
}

/// The project of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditProject {
    /// Its id.
    pub id: String,
    /// As it is called now.
    pub name: String,
}

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditActor {
    /// `api_key` or `session`.
    pub r#type: &'static str,
    /// The key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<AuditApiKey>,
    /// The person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<AuditSession>,
}

/// The key that made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditApiKey {
    /// Its id.
    pub id: String,
}

/// The person who made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditSession {
    /// Who.
    pub user: AuditUser,
    /// From where.
    pub ip_address: Option<String>,
}

/// A person in the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditUser {
    /// Their id.
    pub id: String,
    /// As their issuer last said; `null` once they are in the organization no more.
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

/// An id as it is shown everywhere else; that of a kind without one of its own as a bare UUID.
fn object_id(event: &str, id: uuid::Uuid) -> String {
    use attune_domain::id;
    let noun = event.rsplit_once('.').map_or(event, |(noun, _)| noun);
    match noun {
        "file" => id::FileId::new(id).to_string(),
        "job" => id::JobId::new(id).to_string(),
        "adapter" | "adapter.alias" => id::AdapterVersionId::new(id).to_string(),
        "base_model" => id::BaseModelId::new(id).to_string(),
        "project" | "budget" => id::ProjectId::new(id).to_string(),
        "upload" => id::UploadId::new(id).to_string(),
        "batch" => id::BatchId::new(id).to_string(),
        "checkpoint.permission" => id::CheckpointPermissionId::new(id).to_string(),
        "api_key" => id::ApiKeyId::new(id).to_string(),
        "webhook_endpoint" => id::WebhookEndpointId::new(id).to_string(),
        "user" | "project.user" => id::PersonId::new(id).to_string(),
        _ => id.to_string(),
    }
}

/// Reads a role out of a request.
///
/// # Errors
/// [`crate::error::ApiError::Invalid`], which names those that there are.
pub fn role(text: &str) -> Result<Role, crate::error::ApiError> {
    text.parse().map_err(|e| crate::error::ApiError::invalid("role", format!("Invalid 'role': {e}.")))
}

/// Reads scopes out of a request.
///
/// # Errors
/// As [`role`].
pub fn scopes(names: Option<&[String]>) -> Result<Vec<Scope>, crate::error::ApiError> {
    let Some(names) = names else { return Ok(vec![Scope::All]) };
    if names.is_empty() {
        return Err(crate::error::ApiError::invalid("scopes", "Invalid 'scopes': a key without any opens nothing."));
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
