//! The audit log: written by triggers in the transaction of each change (`migrations/0012`), read here.

use std::{fmt, net::IpAddr};

use attune_domain::{
    access::Actor,
    id::{ApiKeyId, AuditLogId, OrganizationId, PersonId, ProjectId},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::StoreError;

/// The caller of a change and its address. A transaction that begins with an origin records its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The caller.
    pub actor: Actor,
    /// The client's address, as seen by the connection.
    pub address: Option<IpAddr>,
    /// The request's ID.
    pub request: Uuid,
    /// The operation: `create_file`.
    pub operation: &'static str,
}

/// The format that the trigger parses. It cannot contain a quote: two fixed words, two UUIDs and an address.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, actor) = match self.actor {
            Actor::ApiKey(id) => ("api_key", id.uuid()),
            Actor::Person(id) => ("person", id.uuid()),
        };
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        write!(f, "{kind}|{actor}|{address}|req_{}|{}", self.request.simple(), self.operation)
    }
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The entry's ID; sorts by time.
    pub audit_log_id: AuditLogId,
    /// The project and its current name; `None`: the organization itself was changed.
    pub project: Option<(ProjectId, String)>,
    /// The event: `file.created`.
    pub event: String,
    /// The ID of the changed object.
    pub object_id: Uuid,
    /// The operation: `create_file`.
    pub operation: String,
    /// The caller.
    pub actor: Actor,
    /// The user's email address, as the issuer last reported it.
    pub email: Option<String>,
    /// The client's address.
    pub address: Option<String>,
    /// The request's ID.
    pub request_id: String,
    /// The time of the change.
    pub created_at: DateTime<Utc>,
}

/// A filter of entries; an empty list matches all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The projects.
    pub projects: Vec<Uuid>,
    /// The events: `file.created`.
    pub events: Vec<String>,
    /// The callers.
    pub actors: Vec<Uuid>,
    /// The changed objects.
    pub objects: Vec<Uuid>,
    /// The earliest time, included.
    pub since: Option<DateTime<Utc>>,
    /// The latest time, excluded.
    pub until: Option<DateTime<Utc>>,
    /// The ID to list after, towards older entries.
    pub after: Option<AuditLogId>,
    /// The maximum number of entries.
    pub limit: i64,
}

/// Returns an organization's entries, newest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    organization: OrganizationId,
    filter: &Filter,
) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query!(
        r#"select a.audit_log_id, a.project_id, p.name as "project?", a.event, a.object_id, a.operation, a.actor_kind,
             a.actor_id, q.email as "email?", a.address, a.request_id, a.created_at
         from audit_log a left join project p using (project_id)
             left join person q on a.actor_kind = 'person' and q.person_id = a.actor_id
         where a.organization_id = $1 and (cardinality($2::uuid[]) = 0 or a.project_id = any($2))
             and (cardinality($3::text[]) = 0 or a.event = any($3))
             and (cardinality($4::uuid[]) = 0 or a.actor_id = any($4))
             and (cardinality($5::uuid[]) = 0 or a.object_id = any($5))
             and ($6::timestamptz is null or a.created_at >= $6) and ($7::timestamptz is null or a.created_at < $7)
             and ($8::uuid is null or a.audit_log_id < $8)
         order by a.audit_log_id desc limit $9"#,
        organization.uuid(),
        &filter.projects[..],
        &filter.events[..],
        &filter.actors[..],
        &filter.objects[..],
        filter.since,
        filter.until,
        filter.after.map(|id| id.uuid()),
        filter.limit,
    )
    .fetch_all(db)
    .await?;
    let entries = rows.into_iter().map(|row| Entry {
        audit_log_id: AuditLogId::new(row.audit_log_id),
        project: row.project_id.map(|id| (ProjectId::new(id), row.project.unwrap_or_default())),
        event: row.event,
        object_id: row.object_id,
        operation: row.operation,
        actor: match row.actor_kind.as_str() {
            "api_key" => Actor::ApiKey(ApiKeyId::new(row.actor_id)),
            _ => Actor::Person(PersonId::new(row.actor_id)),
        },
        email: row.email,
        address: row.address,
        request_id: row.request_id,
        created_at: row.created_at,
    });
    Ok(entries.collect())
}
