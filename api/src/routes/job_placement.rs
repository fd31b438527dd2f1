//! The placement of a fine-tuning job, explained.

use attune_domain::{
    access::{Role, Scope},
    job::JobState,
};
use attune_store::{
    jobs::{job, waiting},
    runs::placement,
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::path_id::parse_id,
    jobs::quotas,
    policy::Policy,
    wire::placement::{JobPlacementView, WaitingView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] =
    &[Policy::project("explain_job_placement", Scope::JobsRead, Role::Viewer).names(Thing::Job)];

/// Explain the placement of a fine-tuning job.
///
/// The response has the machine of the job's last run, with the memory estimate and the reason why each other machine
/// was not taken; for a job that waits, its position, the reason, the estimated start and the project's quotas; for a
/// job that failed, the error.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/placement", tag = "Fine-tuning",
    operation_id = "explain_job_placement", params(("job_id" = String, Path)),
    responses((status = 200, body = JobPlacementView), (status = "4XX", body = ErrorBody)))]
pub async fn explain(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobPlacementView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let job = job::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    let run = placement::last(&mut db, job.job_id).await?;
    // A provisioning job with a reason waits at its provider.
    let waits = job.state == JobState::Queued || job.waiting_reason.is_some();
    let waiting = if waits {
        let neighbors = waiting::neighbors(&mut db, holder.project_id, job.job_id).await?;
        drop(db); // a task holds one connection at a time
        let quotas = quotas::of(&app, &mut *app.platform().await?, holder.project_id).await?;
        Some(WaitingView::new(&job, neighbors, quotas))
    } else {
        None
    };
    Ok(Json(JobPlacementView::new(job, run, waiting)))
}
