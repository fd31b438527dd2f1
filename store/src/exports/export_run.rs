//! The attempts at exports. An attempt holds its export while its lease, the attempt's number, is the row's.

use attune_domain::{
    bytes::Bytes,
    export::{Drift, ExportState},
    id::{ExportId, NodeId},
    run::{Blob, Directive, Reply, Report, RunEvent},
};
use sqlx::PgConnection;

use crate::{
    error::{StoreError, to_json},
    exports::{
        export,
        export_end::{self, Blame, LOST, Lost, fail, lose},
        export_file,
    },
    ids,
    runs::node::{self, NewNode},
};

/// The holder of an attempt's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportRun {
    /// The export's ID.
    pub export_id: ExportId,
    /// The lease of the attempt.
    pub lease: i64,
    /// The state.
    pub state: ExportState,
}

/// The placement of an export.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The node to reserve.
    pub node: NewNode,
    /// The number of CPU threads.
    pub threads: u32,
    /// Seconds between reports.
    pub heartbeat_seconds: u64,
}

/// A placed attempt.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The reserved node.
    pub node_id: NodeId,
    /// The token of the attempt; only its hash is stored.
    pub token: String,
}

/// Reserves the node of a queued export and begins an attempt. Returns `None` if it is not queued any more, or pauses
/// after a lost attempt.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn place(tx: &mut PgConnection, id: ExportId, placement: &Placement) -> Result<Option<Placed>, StoreError> {
    let queued = sqlx::query_scalar!(
        "select export_id from export where export_id = $1 and state = 'queued' and deleted_at is null
             and next_try_at <= now() for update",
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    if queued.is_none() {
        return Ok(None);
    }
    let node_id = node::reserve(tx, &placement.node).await?;
    let token = ids::secret();
    sqlx::query!(
        "update export set state = 'running', attempts = attempts + 1, node_id = $2, token_hash = $3, threads = $4,
             heartbeat_seconds = $5, predicted_peak = $6, heartbeat_at = now(), started_at = now(), next_sequence = 0,
             done_bytes = 0, total_bytes = null, waiting_reason = null
         where export_id = $1",
        id.uuid(),
        node_id.uuid(),
        ids::hash(&token),
        placement.threads as i32,
        placement.heartbeat_seconds as i32,
        placement.node.memory.to_i64(),
    )
    .execute(tx)
    .await?;
    Ok(Some(Placed { node_id, token }))
}

/// Stores the reason why an export still waits.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn wait(tx: &mut PgConnection, id: ExportId, reason: &str) -> Result<(), StoreError> {
    sqlx::query!("update export set waiting_reason = $2 where export_id = $1 and state = 'queued'", id.uuid(), reason)
        .execute(tx)
        .await?;
    Ok(())
}

/// Returns the attempt whose process this token authenticates.
///
/// # Errors
/// [`StoreError::NotFound`]: no export has this token, or it was deleted. [`StoreError::Database`].
pub async fn by_token(conn: &mut PgConnection, token: &str) -> Result<ExportRun, StoreError> {
    let row = sqlx::query!(
        "select export_id, attempts, state from export where token_hash = $1 and deleted_at is null",
        ids::hash(token),
    )
    .fetch_optional(conn)
    .await?
    .ok_or(StoreError::NotFound("export"))?;
    Ok(ExportRun {
        export_id: ExportId::new(row.export_id),
        lease: i64::from(row.attempts),
        state: export::state(&row.state)?,
    })
}

/// Applies a report: a heartbeat, and the events that were not applied before.
///
/// # Errors
/// [`StoreError::Stale`]: the lease is an older one, or the export has ended. [`StoreError::Gap`]: events are missing.
/// [`StoreError::NotGranted`]: files that were not uploaded. [`StoreError::Database`].
#[tracing::instrument(skip(tx, report), fields(export.id = %id))]
pub async fn take(tx: &mut PgConnection, id: ExportId, report: &Report) -> Result<Reply, StoreError> {
    let row = sqlx::query!(
        "select attempts, state, next_sequence from export where export_id = $1 and deleted_at is null for update",
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::Stale)?;
    if i64::from(row.attempts) != report.run_lease {
        return Err(StoreError::Stale);
    }
    let first = i64::try_from(report.first_sequence).unwrap_or(i64::MAX);
    let end = first.saturating_add(report.events.len() as i64);
    if export::state(&row.state)? != ExportState::Running {
        // The reply to the last report was lost: repeat it.
        let is_repeated = !report.events.is_empty() && end == row.next_sequence;
        return if is_repeated { Ok(Reply { directive: Directive::Stop }) } else { Err(StoreError::Stale) };
    }
    if first > row.next_sequence && !report.events.is_empty() {
        return Err(StoreError::Gap { expected: row.next_sequence, given: first });
    }
    sqlx::query!(
        "update export set heartbeat_at = now(), next_sequence = greatest(next_sequence, $2) where export_id = $1",
        id.uuid(),
        if report.events.is_empty() { 0 } else { end },
    )
    .execute(&mut *tx)
    .await?;
    let taken = usize::try_from(row.next_sequence.saturating_sub(first)).unwrap_or(0);
    for event in report.events.iter().skip(taken) {
        apply(tx, id, event).await?;
        if event.is_last() {
            return Ok(Reply { directive: Directive::Stop });
        }
    }
    Ok(Reply { directive: Directive::Continue })
}

async fn apply(tx: &mut PgConnection, id: ExportId, event: &RunEvent) -> Result<(), StoreError> {
    match event {
        RunEvent::Exporting { done, total } => {
            sqlx::query!(
                "update export set done_bytes = $2, total_bytes = $3 where export_id = $1",
                id.uuid(),
                done.to_i64(),
                total.to_i64(),
            )
            .execute(tx)
            .await?;
            Ok(())
        }
        RunEvent::Exported { files, drift, peak_memory } => succeed(tx, id, files, (*drift, *peak_memory)).await,
        RunEvent::Failed { code, message, passing: true, .. } => {
            lose(tx, id, &Lost { code, message, blame: Blame::Circumstances }).await
        }
        RunEvent::Failed { code, message, passing: false, .. } => fail(tx, id, code, message).await,
        RunEvent::OutOfMemory { message, .. } => {
            lose(tx, id, &Lost { code: "out_of_memory", message, blame: Blame::Export }).await
        }
        RunEvent::Stopped { .. } => {
            lose(tx, id, &Lost { code: LOST, message: "its node ended", blame: Blame::Circumstances }).await
        }
        // The events of a training.
        _ => Err(StoreError::Stale),
    }
}

async fn succeed(
    tx: &mut PgConnection,
    id: ExportId,
    files: &[Blob],
    (drift, peak): (Option<Drift>, Bytes),
) -> Result<(), StoreError> {
    export_file::publish(tx, id, files).await?;
    let drift = drift.map(|drift| to_json("export.drift", &drift)).transpose()?;
    sqlx::query!(
        "update export set drift = $2, measured_peak = $3 where export_id = $1",
        id.uuid(),
        drift,
        peak.to_i64(),
    )
    .execute(&mut *tx)
    .await?;
    export_end::end(tx, id, None).await
}

/// An export that is being written, for the reconciler.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveExport {
    /// The export's ID.
    pub export_id: ExportId,
    /// The node of its attempt, after which its process is named.
    pub node_id: NodeId,
    /// The provider's handle of its process; `None`: the launch has not returned.
    pub handle: Option<String>,
    /// Seconds since its last report, by the database's clock.
    pub silent_seconds: f64,
}

/// Returns the provider's exports that are being written.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn active(conn: &mut PgConnection, provider: &str) -> Result<Vec<ActiveExport>, StoreError> {
    let rows = sqlx::query!(
        r#"select export_id, node.node_id, node.handle,
             extract(epoch from clock_timestamp() - heartbeat_at)::float8 as "silent_seconds!"
         from export join node using (node_id)
         where export.state = 'running' and export.deleted_at is null and node.provider = $1 order by export_id"#,
        provider,
    )
    .fetch_all(conn)
    .await?;
    let exports = rows.into_iter().map(|row| ActiveExport {
        export_id: ExportId::new(row.export_id),
        node_id: NodeId::new(row.node_id),
        handle: row.handle,
        silent_seconds: row.silent_seconds,
    });
    Ok(exports.collect())
}

/// Begins the lease of an export again: its process waits at its provider.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn waits_at_provider(conn: &mut PgConnection, id: ExportId) -> Result<(), StoreError> {
    sqlx::query!(
        "update export set heartbeat_at = clock_timestamp() where export_id = $1 and state = 'running'",
        id.uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Returns queued exports whose last message is older than `seconds`; their messages count as pushed now, so the caller
/// must push them in the same transaction.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim_unpushed(tx: &mut PgConnection, seconds: f64) -> Result<Vec<ExportId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "update export set pushed_at = now()
         where state = 'queued' and deleted_at is null and next_try_at <= now()
             and pushed_at < now() - make_interval(secs => $1)
         returning export_id",
        seconds,
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(ExportId::new).collect())
}
