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

/// Who asked for a change, and from where. A transaction that is begun with one notes what it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Who.
    pub actor: Actor,
    /// From where, as the connection says.
    pub address: Option<IpAddr>,
    /// The request.
    pub request: Uuid,
    /// What was called: `create_file`.
    pub operation: &'static str,
}

/// As the trigger reads it. Nothing in it can hold a quote: two words of ours, two UUIDs and an address.
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

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Sorts by time.
    pub audit_log_id: AuditLogId,
    /// Where, and how it is called now; `None`: the organization itself was changed.
    pub project: Option<(ProjectId, String)>,
    /// `file.created`.
    pub event: String,
    /// The kind of what changed: `file`.
    pub object_id: Uuid,
    /// `create_file`.
    pub operation: String,
    /// Who.
    pub actor: Actor,
    /// A person's address, as their issuer last said.
    pub email: Option<String>,
    /// From where.
    pub address: Option<String>,
    /// The request.
    pub request_id: String,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Which lines are wanted; an empty list asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these projects.
    pub projects: Vec<Uuid>,
    /// Of these kinds: `file.created`.
    pub events: Vec<String>,
    /// By these.
    pub actors: Vec<Uuid>,
    /// About these.
    pub objects: Vec<Uuid>,
    /// Not before.
    pub since: Option<DateTime<Utc>>,
    /// Before.
    pub until: Option<DateTime<Utc>>,
    /// Behind this one, towards the older.
    pub after: Option<AuditLogId>,
    /// At the most.
    pub limit: i64,
}

/// An organization's lines, newest first.
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
