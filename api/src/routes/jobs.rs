//! Fine-tuning jobs: make, list, look, cancel, pause, resume; their checkpoints.

use attune_domain::id::Job as JobKind;
use attune_store::{
    error::StoreError,
    jobs::{
        checkpoint, job,
        job_event::{self, Level},
        pausing, unfinished,
    },
    tenancy::money,
};
use axum::{
    Json,
    extract::{Path, State},
};
use chrono::Utc;
use serde_json::{Map, Value};

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    files::storage,
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::named,
    },
    jobs::{estimate, prepare},
    wire::{
        estimate::EstimateView,
        job::{JobChange, NewJob},
        job_view::{CheckpointView, JobView},
    },
};

/// Start a fine-tuning job.
///
/// Answers at once; the job's files are then turned into tokens and checked, and it is queued. Every default is filled
/// in now and shown in the answer. An unknown field is refused by its name.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs", tag = "Fine-tuning", operation_id = "create_job",
    request_body = NewJob,
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewJob>,
) -> Result<Json<JobView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let row = prepare::make(&app, &mut tx, &holder, &new).await?.row;
    unfinished::admit(&mut tx, holder.project_id, unfinished::Kind::Jobs, app.limits.unfinished_jobs).await?;
    let job = job::insert(&mut tx, &row).await?;
    if let Some(note) = new.suffix_note() {
        job_event::message(&mut tx, job.job_id, Level::Info, &note).await?;
    }
    storage::check(&app, &mut tx, holder.project_id).await?;
    tx.commit().await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Say what a fine-tuning job would take.
///
/// The body is a job's. Every default is filled in, the files are turned into tokens and counted, and the answer says how
/// many steps and tokens that makes, which memory and machine it would get, how long it would take and what it would
/// cost. Nothing is made.
#[utoipa::path(post, path = "/v1/fine_tuning/estimates", tag = "Fine-tuning", operation_id = "estimate_job",
    request_body = NewJob,
    responses((status = 200, body = EstimateView), (status = "4XX", body = ErrorBody)))]
pub async fn estimate(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewJob>,
) -> Result<Json<EstimateView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let made = prepare::make(&app, &mut tx, &holder, &new).await?;
    tx.rollback().await?;
    Ok(Json(estimate::work_out(&app, holder.project_id, made).await?))
}

/// List fine-tuning jobs, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs", tag = "Fine-tuning", operation_id = "list_jobs",
    params(
        ("after" = Option<String>, Query, pattern = "^ftjob-[0-9a-f]{32}$", description = "The list goes on behind the job of this id."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "20 if left out."),
        ("metadata[key]" = Option<String>, Query, description = "Only jobs with this pair; may be given several times."),
    ),
    responses((status = 200, body = List<JobView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    mut query: Params,
) -> Result<Json<List<JobView>>, ApiError> {
    let (after, limit) = (query.after::<JobKind>()?, query.limit(20, 100)?);
    let metadata: Map<String, Value> = query.metadata().into_iter().map(|(k, v)| (k, v.into())).collect();
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let jobs = job::list(&mut db, holder.project_id, metadata.into(), after, limit + 1).await?;
    let now = Utc::now();
    let views = jobs.into_iter().map(|job| JobView::new(job, holder.organization_id, now)).collect();
    Ok(Json(List::cut(views, limit, |job: &JobView| job.id.clone())))
}

/// Look at a fine-tuning job.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}", tag = "Fine-tuning", operation_id = "retrieve_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let job = job::get(&mut db, holder.project_id, named(&id)?).await.map_err(ApiError::on_read(id))?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Change what a fine-tuning job may cost.
///
/// A job that was paused because its price cap was spent goes on within seconds when the cap is raised or taken away
/// (`null`). A job that has ended is refused.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}", tag = "Fine-tuning", operation_id = "update_job",
    params(("job_id" = String, Path)), request_body = JobChange,
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    Body(change): Body<JobChange>,
) -> Result<Json<JobView>, ApiError> {
    let most = change.compute.checked()?;
    let mut tx = app.tenant(holder.project_id).await?;
    let job = money::set_price_cap(&mut tx, holder.project_id, named(&id)?, most).await;
    let job = job.map_err(cannot("changed", &id))?;
    tx.commit().await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Cancel a fine-tuning job.
///
/// One that waits is cancelled at once; one that runs stops at its next step. To ask twice is to ask once; a job that
/// has ended is refused.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/cancel", tag = "Fine-tuning", operation_id = "cancel_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn cancel(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let job = job::cancel(&mut tx, holder.project_id, named(&id)?).await.map_err(cannot("cancelled", &id))?;
    tx.commit().await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Pause a fine-tuning job.
///
/// One that waits is paused at once; one that runs stops at its next step with a checkpoint, and its machine is free for
/// others. To ask twice is to ask once; a job that has ended is refused.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/pause", tag = "Fine-tuning", operation_id = "pause_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn pause(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let job = pausing::pause(&mut tx, holder.project_id, named(&id)?).await.map_err(cannot("paused", &id))?;
    tx.commit().await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Resume a fine-tuning job that is paused.
///
/// It is queued again and goes on from its last checkpoint: what comes of it is what would have come without the pause,
/// to the bit. A job that goes on already is left as it is; one that has ended is refused.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/resume", tag = "Fine-tuning", operation_id = "resume_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn resume(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let job = pausing::resume(&mut tx, holder.project_id, named(&id)?).await.map_err(cannot("resumed", &id))?;
    tx.commit().await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Why a job's life does not take what was asked for.
fn cannot(done: &'static str, id: &str) -> impl FnOnce(StoreError) -> ApiError {
    let id = id.to_owned();
    move |error| match error {
        StoreError::Illegal(illegal) if illegal.from.is_final() => {
            let status = illegal.from.wire();
            let message = format!("The job {id} cannot be {done}: it has ended already; its status is '{status}'.");
            ApiError::Invalid { param: None, code: "job_has_ended", message }
        }
        StoreError::Illegal(_) => {
            let message = format!("The job {id} cannot be {done}: it is being cancelled.");
            ApiError::Invalid { param: None, code: "job_is_being_cancelled", message }
        }
        other => ApiError::on_read(&id)(other),
    }
}

/// List the checkpoints of a fine-tuning job, newest first.
///
/// The newest few are kept; a run that is lost goes on from the last.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/checkpoints", tag = "Fine-tuning",
    operation_id = "list_job_checkpoints",
    params(
        ("job_id" = String, Path),
        ("after" = Option<String>, Query, pattern = "^ftckpt_[0-9a-f]{32}$", description = "The list goes on behind the checkpoint of this id."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "10 if left out."),
    ),
    responses((status = 200, body = List<CheckpointView>), (status = "4XX", body = ErrorBody)))]
pub async fn checkpoints(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    mut query: Params,
) -> Result<Json<List<CheckpointView>>, ApiError> {
    let (after, limit) = (query.after::<attune_domain::id::Checkpoint>()?, query.limit(10, 100)?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let job = job::get(&mut db, holder.project_id, named(&id)?).await.map_err(ApiError::on_read(id))?;
    let kept = checkpoint::list(&mut db, holder.project_id, job.job_id).await?;
    let behind = kept.iter().filter(|c| after.is_none_or(|after| c.checkpoint_id < after));
    let accuracies = checkpoint::accuracies(&mut db, job.job_id, &kept).await?;
    let measured = |c: &checkpoint::Checkpoint| accuracies.get(&c.step).copied().unwrap_or_default();
    let views = behind.map(|c| CheckpointView::new((c, measured(c)), &job, &holder.project)).collect();
    Ok(Json(List::cut(views, limit, |checkpoint: &CheckpointView| checkpoint.id.clone())))
}
