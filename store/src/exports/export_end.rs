//! The end of an attempt at an export, and of the export.

use attune_domain::{
    event::EventType,
    id::{ExportId, NodeId, ProjectId},
    text::tenant_text::for_tenant,
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{error::StoreError, exports::export::ExportError, runs::node, webhooks::outbox};

/// The number of attempts at an export that end through its own fault, as far as is known, of which all but the last
/// are followed by another one.
pub const MOST_ATTEMPTS: i32 = 3;

/// The number of attempts at an export that are interrupted through no fault of it, of which all but the last are
/// followed by another one: with the pauses between them, more than an hour.
pub const MOST_INTERRUPTIONS: i32 = 20;

/// The pause after the first lost attempt, in seconds.
const FIRST_PAUSE_SECONDS: f64 = 5.0;

/// The longest pause after a lost attempt, in seconds.
const LONGEST_PAUSE_SECONDS: f64 = 300.0;

/// The number of days after its end until an export is deleted.
pub const KEPT_DAYS: i32 = 7;

/// The code of an export whose process ended without a report.
pub const LOST: &str = "lost";

/// The reason why an attempt ended without a result, as far as it concerns further attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The export itself, or its node: at most [`MOST_ATTEMPTS`].
    Export,
    /// The object store, the provider, or a stop of the platform: at most [`MOST_INTERRUPTIONS`].
    Circumstances,
    /// The attempt did not run, since its process was not launched: counts among no maximum.
    NotRun,
}

/// An attempt that ended without a result.
#[derive(Debug, Clone, Copy)]
pub struct Lost<'a> {
    /// The code of the export's error, if there is no further attempt.
    pub code: &'a str,
    /// The message, which the export's user reads.
    pub message: &'a str,
    /// The reason.
    pub blame: Blame,
}

/// Ends an attempt without a result: the export is queued again for a later attempt, unless it has had all that the
/// reason allows.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lose(tx: &mut PgConnection, id: ExportId, lost: &Lost<'_>) -> Result<(), StoreError> {
    let row = sqlx::query!(
        "select losses, interruptions, unlaunched, node_id from export
         where export_id = $1 and state = 'running' and deleted_at is null for update",
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(()) };
    let (mut losses, mut interruptions, mut unlaunched) = (row.losses, row.interruptions, 0);
    let (count, most) = match lost.blame {
        Blame::Export => (&mut losses, Some(MOST_ATTEMPTS)),
        Blame::Circumstances => (&mut interruptions, Some(MOST_INTERRUPTIONS)),
        Blame::NotRun => {
            unlaunched = row.unlaunched;
            (&mut unlaunched, None)
        }
    };
    *count += 1;
    let count = *count;
    if most.is_some_and(|most| count >= most) {
        let message = format!("{} (after {count} attempts)", lost.message);
        return fail(tx, id, lost.code, &message).await;
    }
    sqlx::query!(
        "update export set state = 'queued', node_id = null, waiting_reason = $2, losses = $3, interruptions = $4,
             unlaunched = $5, pushed_at = now(), next_try_at = now() + make_interval(secs => $6)
         where export_id = $1",
        id.uuid(),
        for_tenant(lost.message),
        losses,
        interruptions,
        unlaunched,
        pause_seconds(count),
    )
    .execute(&mut *tx)
    .await?;
    if let Some(node) = row.node_id {
        node::release(tx, NodeId::new(node)).await?;
    }
    Ok(())
}

/// Returns the pause after this number of attempts that ended for the same reason. It doubles with each.
fn pause_seconds(count: i32) -> f64 {
    (FIRST_PAUSE_SECONDS * 2_f64.powi(count.clamp(1, 20) - 1)).min(LONGEST_PAUSE_SECONDS)
}

/// Fails an export that is not ended. Its user reads the message, so paths and addresses are removed from it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn fail(tx: &mut PgConnection, id: ExportId, code: &str, message: &str) -> Result<(), StoreError> {
    let error = ExportError { code: code.to_owned(), message: for_tenant(message) };
    end(tx, id, Some(&error)).await
}

/// Ends an export that is not ended: it has succeeded, or failed with this error.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn end(tx: &mut PgConnection, id: ExportId, error: Option<&ExportError>) -> Result<(), StoreError> {
    let (state, event) = match error {
        None => ("succeeded", EventType::ExportSucceeded),
        Some(_) => ("failed", EventType::ExportFailed),
    };
    let row = sqlx::query!(
        "update export set state = $2, ended_at = now(), expires_at = now() + make_interval(days => $3),
             error_code = $4, error_message = $5, waiting_reason = null
         where export_id = $1 and state in ('queued', 'running') returning project_id, node_id, model_name",
        id.uuid(),
        state,
        KEPT_DAYS,
        error.map(|error| error.code.as_str()),
        error.map(|error| error.message.as_str()),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(()) };
    if let Some(node) = row.node_id {
        node::release(tx, NodeId::new(node)).await?;
    }
    let mut data = json!({ "id": id, "model": row.model_name });
    if let Some(error) = error {
        data["error"] = json!({ "code": error.code, "message": error.message });
    }
    outbox::push(tx, ProjectId::new(row.project_id), event, &data).await?;
    Ok(())
}
