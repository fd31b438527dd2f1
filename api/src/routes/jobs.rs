//! Fine-tuning jobs: create, list, retrieve, cancel, pause, resume; and their checkpoints.

use attune_domain::{
    access::{Role, Scope},
    id::Job as JobKind,
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    error::StoreError,
    jobs::{
        checkpoint, job,
        job_event::{self, Level},
        job_pause, unfinished,
    },
    tenancy::money,
    version::Thing,
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
        path_id::parse_id,
    },
    jobs::{estimate, prepare, satisfiable},
    policy::Policy,
    wire::{
        estimate::EstimateView,
        job::{JobChange, NewJob},
        job_view::{CheckpointView, JobView},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("create_job", Scope::JobsWrite, Role::Member),
    Policy::project("estimate_job", Scope::JobsRead, Role::Viewer),
    Policy::project("list_jobs", Scope::JobsRead, Role::Viewer),
    Policy::project("retrieve_job", Scope::JobsRead, Role::Viewer).retrieves(Thing::Job),
    Policy::project("update_job", Scope::JobsWrite, Role::Member).names(Thing::Job),
    Policy::project("cancel_job", Scope::JobsWrite, Role::Member).names(Thing::Job),
    Policy::project("pause_job", Scope::JobsWrite, Role::Member).names(Thing::Job),
    Policy::project("resume_job", Scope::JobsWrite, Role::Member).names(Thing::Job),
    Policy::project("list_job_checkpoints", Scope::JobsRead, Role::Viewer).names(Thing::Job),
];

/// Create a fine-tuning job.
///
/// The response is returned immediately; the job's files are then tokenized and validated, and the job is queued. All
/// defaults are set now and are in the response. An unknown field is refused by its name, and a job that no machine of
/// the configured providers can run is refused with the reason of each machine.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs", tag = "Fine-tuning", operation_id = "create_job",
    request_body = NewJob,
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewJob>,
) -> Result<Json<JobView>, ApiError> {
    let machines = satisfiable::machines(&app, &new).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    let made = prepare::make(&app, &mut tx, &holder, &new).await?;
    satisfiable::check(&machines, &made)?;
    let row = made.row;
    unfinished::admit(&mut tx, holder.project_id, unfinished::Kind::Jobs, app.limits.unfinished_jobs).await?;
    let job = job::insert(&mut tx, &row).await?;
    if let Some(note) = new.suffix_note() {
        job_event::message(&mut tx, job.job_id, Level::Info, &note).await?;
    }
    storage::check(&app, &mut tx, holder.project_id, storage::NOTHING).await?;
    tx.commit_at(FailPoint::JobCreate).await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Estimate a fine-tuning job.
///
/// The body is that of a job. The files are tokenized and counted, and the response has all defaults, the number of
/// steps and tokens, the memory and the machine that the job would get, its duration and its cost. No job is created.
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
        ("after" = Option<String>, Query, pattern = "^ftjob-[0-9a-f]{32}$", description = "Return jobs after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
        ("metadata[key]" = Option<String>, Query,
            description = "Return only jobs with this metadata pair. Can be repeated."),
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

/// Retrieve a fine-tuning job.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}", tag = "Fine-tuning", operation_id = "retrieve_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let job = job::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Change the price cap of a fine-tuning job.
///
/// A job that is paused because it reached its price cap resumes within seconds when the cap is raised or removed
/// (`null`). The request is refused if the job has ended.
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
    let job = money::set_price_cap(&mut tx, holder.project_id, parse_id(&id)?, most).await;
    let job = job.map_err(cannot("changed", &id))?;
    tx.commit().await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Cancel a fine-tuning job.
///
/// A waiting job is cancelled immediately; a running job stops at its next step. Cancelling twice has no further
/// effect. The request is refused if the job has ended.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/cancel", tag = "Fine-tuning", operation_id = "cancel_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn cancel(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let job = job::cancel(&mut tx, holder.project_id, parse_id(&id)?).await.map_err(cannot("cancelled", &id))?;
    tx.commit_at(FailPoint::JobCancel).await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Pause a fine-tuning job.
///
/// A waiting job is paused immediately; a running job stops at its next step with a checkpoint, and its machine is
/// released. Pausing twice has no further effect. The request is refused if the job has ended.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/pause", tag = "Fine-tuning", operation_id = "pause_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn pause(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let job = job_pause::pause(&mut tx, holder.project_id, parse_id(&id)?).await.map_err(cannot("paused", &id))?;
    tx.commit_at(FailPoint::JobPause).await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Resume a paused fine-tuning job.
///
/// The job is queued again and resumes from its last checkpoint. The result is bit-identical to that of a job without
/// the pause. A job that is not paused is not changed. The request is refused if the job has ended.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/resume", tag = "Fine-tuning", operation_id = "resume_job",
    params(("job_id" = String, Path)),
    responses((status = 200, body = JobView), (status = "4XX", body = ErrorBody)))]
pub async fn resume(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let job = job_pause::resume(&mut tx, holder.project_id, parse_id(&id)?).await.map_err(cannot("resumed", &id))?;
    tx.commit_at(FailPoint::JobResume).await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Converts the error of a state change that the job's state does not allow.
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
/// The newest few are kept. A run that is lost resumes from the last one.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/checkpoints", tag = "Fine-tuning",
    operation_id = "list_job_checkpoints",
    params(
        ("job_id" = String, Path),
        ("after" = Option<String>, Query, pattern = "^ftckpt_[0-9a-f]{32}$",
            description = "Return checkpoints after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 10."),
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
    let job = job::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    let kept = checkpoint::list(&mut db, holder.project_id, job.job_id).await?;
    let behind = kept.iter().filter(|c| after.is_none_or(|after| c.checkpoint_id < after));
    let accuracies = checkpoint::accuracies(&mut db, job.job_id, &kept).await?;
    let measured = |c: &checkpoint::Checkpoint| accuracies.get(&c.step).copied().unwrap_or_default();
    let views = behind.map(|c| CheckpointView::new((c, measured(c)), &job, &holder.project)).collect();
    Ok(Json(List::cut(views, limit, |checkpoint: &CheckpointView| checkpoint.id.clone())))
}
