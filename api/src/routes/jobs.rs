//! Fine-tuning jobs: make, list, look, cancel, pause, resume; their checkpoints.

use attune_domain::{
    id::{FileId, Job as JobKind, JobId},
    spec::TrainSpec,
};
use attune_store::{adapter, api_key::Holder, checkpoint, error::StoreError, file, job, pausing};
use axum::{
    Json,
    extract::{Path, State},
};
use chrono::Utc;
use serde_json::{Map, Value};
use sqlx::PgConnection;

use crate::{
    app::App,
    body::Body,
    caller::Caller,
    error::{ApiError, ErrorBody},
    job_beginning,
    page::{List, Params},
    preview::no_dataset,
    wire::{
        job::NewJob,
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
    let mut asked = new.requested()?;
    let mut tx = app.tenant(holder.project_id).await?;
    let beginning = job_beginning::find(&mut tx, holder.project_id, &new).await?;
    if let Some(before) = &beginning.adapter {
        asked = asked.continuing(&adapter::spec(&mut tx, before).await?)?;
    }
    let base = beginning.base;
    let training = dataset(&mut tx, &holder, "training_file", &new.training_file).await?;
    let validation = match &new.validation_file {
        Some(id) => Some(dataset(&mut tx, &holder, "validation_file", id).await?),
        None => None,
    };
    let rows = training.dataset.as_ref().map_or(0, |dataset| dataset.rows);
    let spec = TrainSpec::check(&asked, rows, base.architecture.max_position_embeddings)?;
    check_validations(&spec, validation.is_some())?;
    right_rows(&spec, "training_file", &training)?;
    if let Some(validation) = &validation {
        right_rows(&spec, "validation_file", validation)?;
    }
    let row = job::NewJob {
        project_id: holder.project_id,
        base_model_id: base.base_model_id,
        training_file_id: training.file_id,
        validation_file_id: validation.map(|file| file.file_id),
        continue_from: beginning.adapter.map(|adapter| adapter.adapter_version_id),
        suffix: new.suffix.clone(),
        metadata: serde_json::to_value(new.metadata.clone().unwrap_or_default()).map_err(ApiError::internal)?,
        spec,
        requested: new.as_it_came(),
    };
    let job = job::insert(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(Json(JobView::new(job, holder.organization_id, Utc::now())))
}

/// Validations need rows.
fn check_validations(spec: &TrainSpec, there_are_rows: bool) -> Result<(), ApiError> {
    let param =
        if spec.early_stopping_patience > 0 { "trainer.early_stopping_patience" } else { "trainer.eval_every_steps" };
    if there_are_rows || spec.eval_every_steps == 0 {
        return Ok(());
    }
    Err(ApiError::invalid(
        param,
        format!("'{param}' needs a validation file; give 'validation_file', or leave it out."),
    ))
}

/// The file that a field of the request names; it stays until the transaction ends.
async fn dataset(
    tx: &mut PgConnection,
    holder: &Holder,
    field: &'static str,
    text: &str,
) -> Result<file::File, ApiError> {
    let missing = || ApiError::Invalid {
        param: Some(field.into()),
        code: "file_not_found",
        message: format!("Invalid '{field}': there is no file '{}'.", text.chars().take(80).collect::<String>()),
    };
    let id: FileId = text.parse().map_err(|_| missing())?;
    let file = match file::lock_for_job(tx, holder.project_id, id).await {
        Err(StoreError::NotFound(_)) => return Err(missing()),
        found => found?,
    };
    if file.dataset.is_none() { Err(no_dataset(field, &file)) } else { Ok(file) }
}

/// Refuses a file of rows that the method does not learn from.
fn right_rows(spec: &TrainSpec, field: &'static str, file: &file::File) -> Result<(), ApiError> {
    let Some(dataset) = &file.dataset else { return Err(no_dataset(field, file)) };
    spec.method.takes(dataset.format).map_err(|wrong| ApiError::invalid(field, format!("Invalid '{field}': {wrong}.")))
}

/// List fine-tuning jobs, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs", tag = "Fine-tuning", operation_id = "list_jobs",
    params(
        ("after" = Option<String>, Query, description = "The list goes on behind the job of this id."),
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
        ("after" = Option<String>, Query, description = "The list goes on behind the checkpoint of this id."),
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
    let views = behind.map(|c| CheckpointView::new(c, &job, &holder.project)).collect();
    Ok(Json(List::cut(views, limit, |checkpoint: &CheckpointView| checkpoint.id.clone())))
}

/// What is not an id names no job.
pub(super) fn named(id: &str) -> Result<JobId, ApiError> {
    id.parse().map_err(|_| ApiError::NotFound { noun: "fine-tuning job", name: id.chars().take(80).collect() })
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::Requested;

    use super::*;

    #[test]
    fn validations_on_the_way_need_a_validation_file() {
        let spec = |patience| {
            let every = Requested { eval_every_steps: Some(5), ..Requested::default() };
            TrainSpec::check(&Requested { early_stopping_patience: patience, ..every }, 360, 8192).unwrap()
        };
        for (patience, param) in [(None, "trainer.eval_every_steps"), (Some(2), "trainer.early_stopping_patience")] {
            let error = check_validations(&spec(patience), false).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.contains("validation_file"), "{}", error.message);
            assert!(check_validations(&spec(patience), true).is_ok());
        }
        let at_the_end = TrainSpec::check(&Requested::default(), 360, 8192).unwrap();
        assert!(check_validations(&at_the_end, false).is_ok());
    }
}
