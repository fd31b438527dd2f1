//! Endpoints that trainers call: their task, upload URLs for blobs, and their reports. See `domain::run`.

use attune_domain::{
    bytes::Bytes,
    run::{Blob, BlobGrant, Reply, Report, RunEvent, task::TaskSpec},
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    exports::export_task,
    runs::{
        outcome, report,
        run::{Run, RunState},
        run_spec,
    },
};
use axum::{Json, extract::State};
use serde::Deserialize;

use crate::{
    app::App,
    auth::caller::{TaskRow, TokenHolder},
    error::ApiError,
    exports::reports as export_reports,
    http::json_body::Body,
    jobs::{progress, results, run_files},
};

/// The maximum number of blobs in one request.
const MOST_BLOBS: usize = 1000;

/// The request for upload URLs, [`BlobsWanted`](attune_domain::run::BlobsWanted), before its digests are checked.
#[derive(Debug, Deserialize)]
#[serde(expecting = "struct BlobsWanted")]
pub struct BlobsRequest {
    run_lease: i64,
    blobs: Vec<BlobRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "struct Blob")]
struct BlobRequest {
    name: String,
    sha256: String,
    bytes: Bytes,
}

impl BlobRequest {
    /// Returns the blob, or `None` if its digest is not a SHA-256.
    fn read(self) -> Option<Blob> {
        Some(Blob { sha256: self.sha256.parse().ok()?, name: self.name, bytes: self.bytes })
    }
}

/// Returns the task of the run or the export, with newly presigned URLs.
pub async fn spec(State(app): State<App>, TokenHolder(row): TokenHolder<TaskRow>) -> Result<Json<TaskSpec>, ApiError> {
    let mut db = app.platform().await?;
    Ok(Json(match row {
        TaskRow::Run(run) => {
            check_alive(&run)?;
            TaskSpec::Train(run_spec::get(&mut db, &app.objects, &run).await?)
        }
        TaskRow::Export(export) => TaskSpec::Export(export_task::get(&mut db, &app.objects, export.export_id).await?),
    }))
}

/// Returns presigned URLs for uploading blobs.
pub async fn blobs(
    State(app): State<App>,
    TokenHolder(row): TokenHolder<TaskRow>,
    Body(wanted): Body<BlobsRequest>,
) -> Result<Json<Vec<BlobGrant>>, ApiError> {
    if let TaskRow::Run(run) = &row {
        check_alive(run)?;
        if wanted.run_lease != run.run_lease {
            return Err(ApiError::Stale);
        }
    }
    let invalid = || ApiError::invalid("blobs", format!("At most {MOST_BLOBS} blobs, each with its SHA-256 in hex."));
    if wanted.blobs.len() > MOST_BLOBS {
        return Err(invalid());
    }
    let blobs = wanted.blobs.into_iter().map(BlobRequest::read).collect::<Option<Vec<_>>>().ok_or_else(invalid)?;
    Ok(Json(match row {
        TaskRow::Run(run) => run_files::grant(&app, &run, blobs).await?,
        TaskRow::Export(export) => export_reports::grant(&app, export, wanted.run_lease, &blobs).await?,
    }))
}

/// Applies the report of the run or the export: all of it, or nothing.
pub async fn reports(
    State(app): State<App>,
    TokenHolder(row): TokenHolder<TaskRow>,
    Body(said): Body<Report>,
) -> Result<Json<Reply>, ApiError> {
    match row {
        TaskRow::Run(run) => Ok(Json(of_run(&app, &run, &said).await?)),
        TaskRow::Export(export) => Ok(Json(export_reports::take(&app, export, &said).await?)),
    }
}

async fn of_run(app: &App, run: &Run, said: &Report) -> Result<Reply, ApiError> {
    if said.run_lease == run.run_lease {
        run_files::prove(app, run, &said.events).await?;
    }
    let mut tx = app.platform().await?;
    let applied = outcome::applied(&mut tx, run.run_id, said).await?;
    let mut reply = report::take(&mut tx, run.run_id, said).await?;
    let publishes = said.events.iter().any(|event| matches!(event, RunEvent::Published { .. }));
    if publishes && let Some(results) = results::of(&mut tx, run.job_id).await? {
        // The content is uploaded while no connection is held; then the report is applied again, together with its
        // file.
        tx.rollback().await?;
        results.put(app).await?;
        tx = app.platform().await?;
        reply = report::take(&mut tx, run.run_id, said).await?;
        results.name(&mut tx, run.job_id).await?;
    }
    let new = said.events.get(applied..).unwrap_or_default();
    let end = match new.iter().any(RunEvent::is_last) {
        true => Some(outcome::of(&mut tx, run.run_id).await?),
        false => None,
    };
    tx.commit_at(if publishes { FailPoint::RunPublish } else { FailPoint::RunReport }).await?;
    progress::count(run, new, end);
    Ok(reply)
}

fn check_alive(run: &Run) -> Result<(), ApiError> {
    if run.state == RunState::Ended { Err(ApiError::Stale) } else { Ok(()) }
}
