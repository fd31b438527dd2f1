//! The audit log: every change and its actor. This file only reads it; triggers write it in the transaction of each
//! change.

use attune_domain::id::AuditLog;
use attune_store::tenancy::audit::{self, Filter};
use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    app::App,
    auth::caller::Administrator,
    error::{ApiError, ErrorBody},
    http::{
        pagination::{List, Params},
        path_id::truncated,
    },
    policy::Policy,
    wire::{organization::AuditLogView, query::AnyId},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[Policy::organization("list_audit_logs")];

/// List the changes in the organization and its projects, newest first.
///
/// Every change is recorded in the transaction that makes it, and no user can change or delete an entry. The log begins
/// when this feature is installed. Requests that only read are not recorded.
#[utoipa::path(get, path = "/v1/organization/audit_logs", tag = "Organization", operation_id = "list_audit_logs",
    params(
        ("after" = Option<String>, Query, pattern = "^audit_log-[0-9a-f]{32}$",
            description = "Return entries after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
        ("project_ids[]" = Option<Vec<AnyId>>, Query, description = "Return only changes in these projects."),
        ("event_types[]" = Option<Vec<String>>, Query,
            description = "Return only events of these types, such as `file.created`."),
        ("actor_ids[]" = Option<Vec<AnyId>>, Query, description = "Return only changes by these API keys and users."),
        ("resource_ids[]" = Option<Vec<AnyId>>, Query, description = "Return only changes of these objects."),
        ("effective_at[gte]" = Option<i64>, Query, minimum = 0, maximum = 253402300799.0,
            description = "Return only events at or after this Unix time, in seconds."),
        ("effective_at[lt]" = Option<i64>, Query, minimum = 0, maximum = 253402300799.0,
            description = "Return only events before this Unix time, in seconds."),
    ),
    responses((status = 200, body = List<AuditLogView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    administrator: Administrator,
    mut query: Params,
) -> Result<Json<List<AuditLogView>>, ApiError> {
    let limit = query.limit(20, 100)?;
    let filter = Filter {
        projects: ids(&mut query, "project_ids")?,
        events: query.take_all("event_types"),
        actors: ids(&mut query, "actor_ids")?,
        objects: ids(&mut query, "resource_ids")?,
        since: moment(query.moment("effective_at[gte]")?),
        until: moment(query.moment("effective_at[lt]")?),
        after: query.after::<AuditLog>()?,
        limit: limit + 1,
    };
    query.done()?;
    let mut db = app.organization(administrator.organization_id).await?;
    let entries = audit::list(&mut db, administrator.organization_id, &filter).await?;
    let views = entries.into_iter().map(AuditLogView::from).collect();
    Ok(Json(List::cut(views, limit, |line: &AuditLogView| line.id.clone())))
}

/// Parses IDs of any kind by their last 32 digits. Clients may write list parameters with or without brackets.
fn ids(query: &mut Params, name: &str) -> Result<Vec<Uuid>, ApiError> {
    let read = |text: String| {
        let digits = text.rsplit(['-', '_']).next().filter(|digits| digits.len() == 32);
        digits.and_then(|digits| Uuid::try_parse(digits).ok()).ok_or_else(|| {
            let shown = truncated(&text);
            ApiError::invalid(name, format!("Invalid '{name}': '{shown}' is not an id."))
        })
    };
    query.take_all(name).into_iter().map(read).collect()
}

fn moment(seconds: Option<i64>) -> Option<DateTime<Utc>> {
    seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0))
}
