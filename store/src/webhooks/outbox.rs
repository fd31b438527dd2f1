//! The outbox: events for webhooks, written in the transaction of the change that they report.
//!
//! Code that changes something that a user may want to know calls `push` with the change; the outcome of the event is
//! in `webhook_delivery`.

use attune_domain::{
    event::EventType,
    id::{EventId, JobId, ProjectId},
};
use serde_json::Value;
use sqlx::PgConnection;

use crate::{error::StoreError, ids};

/// Writes an event of a project. `data` contains at least the `id` of the changed object, and never a secret.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn push(
    tx: &mut PgConnection,
    project: ProjectId,
    event: EventType,
    data: &Value,
) -> Result<EventId, StoreError> {
    let id: EventId = ids::id();
    sqlx::query!(
        "insert into outbox (event_id, project_id, type, data) values ($1, $2, $3, $4)",
        id.uuid(),
        project.uuid(),
        event.to_string(),
        data,
    )
    .execute(tx)
    .await?;
    Ok(id)
}

/// As [`push`], for the project of a job.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn push_for_job(tx: &mut PgConnection, job: JobId, event: EventType, data: &Value) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into outbox (event_id, project_id, type, data)
         select $1, project_id, $3, $4 from job where job_id = $2",
        ids::id::<attune_domain::id::Event>().uuid(),
        job.uuid(),
        event.to_string(),
        data,
    )
    .execute(tx)
    .await?;
    Ok(())
}
