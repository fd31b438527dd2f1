//! Checkpoints: states from which a run can resume, and which can serve requests like a fine-tuned model. The newest
//! three of a job are kept, as OpenAI does; they are deleted with the job's adapter.

use std::collections::BTreeMap;

use attune_domain::{
    event::EventType,
    id::{BaseModelId, CheckpointId, JobId, ProjectId, RunId},
    run::Blob,
    spec::Quantization,
};
use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    adapters::model_name,
    error::{StoreError, json, to_json},
    files::blob,
    ids,
    sweep_batch::Batch,
    webhooks::outbox,
};

/// The number of checkpoints kept per job.
const KEPT: i64 = 3;

/// The files of a checkpoint that serving needs.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// A checkpoint's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The checkpoint's ID.
    pub checkpoint_id: CheckpointId,
    /// The job's ID.
    pub job_id: JobId,
    /// The optimizer step after which it was saved.
    pub step: u64,
    /// The checkpoint's files.
    pub files: Vec<Blob>,
    /// The step's training loss.
    pub train_loss: f64,
    /// The validation loss, if the step was evaluated.
    pub valid_loss: Option<f64>,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
}

/// A checkpoint that is served as a model.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedCheckpoint {
    /// The model's name: `ft:base:project:suffix:id:ckpt-step-N`.
    pub model_name: String,
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The quantization of the base that it was trained over.
    pub quantization: Quantization,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
}

impl NamedCheckpoint {
    /// Returns the files of the PEFT adapter; the others are the optimizer's and the run's state.
    pub fn adapter_files(&self) -> impl Iterator<Item = &Blob> {
        self.checkpoint.files.iter().filter(|file| ADAPTER_FILES.contains(&file.name.as_str()))
    }
}

/// A new checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct NewCheckpoint<'a> {
    pub(crate) job_id: JobId,
    pub(crate) run_id: RunId,
    pub(crate) step: u64,
    pub(crate) files: &'a [Blob],
    pub(crate) train_loss: f64,
    pub(crate) valid_loss: Option<f64>,
}

/// Inserts a checkpoint, replaces an older run's at the same step, and deletes all but the newest.
pub(crate) async fn insert(tx: &mut PgConnection, new: &NewCheckpoint<'_>) -> Result<(), StoreError> {
    delete(tx, new.job_id, new.step).await?;
    let id: CheckpointId = ids::id();
    sqlx::query!(
        "insert into checkpoint (checkpoint_id, job_id, run_id, step, files, train_loss, valid_loss)
         values ($1, $2, $3, $4, $5, $6, $7)",
        id.uuid(),
        new.job_id.uuid(),
        new.run_id.uuid(),
        new.step as i64,
        to_json("checkpoint.files", &new.files)?,
        new.train_loss,
        new.valid_loss,
    )
    .execute(&mut *tx)
    .await?;
    let told = json!({ "id": id, "fine_tuning_job": new.job_id, "step_number": new.step });
    outbox::push_for_job(tx, new.job_id, EventType::CheckpointCreated, &told).await?;
    let surplus = sqlx::query_scalar!(
        "delete from checkpoint where checkpoint_id in
             (select checkpoint_id from checkpoint where job_id = $1 order by step desc offset $2)
         returning files",
        new.job_id.uuid(),
        KEPT,
    )
    .fetch_all(&mut *tx)
    .await?;
    discard(tx, surplus).await
}

/// Deletes a checkpoint from which no run can resume, if there is another one. Returns whether there is.
pub(crate) async fn give_up(tx: &mut PgConnection, job: JobId, id: CheckpointId) -> Result<bool, StoreError> {
    let all = select(tx, job, None, KEPT + 1).await?;
    let (damaged, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|checkpoint| checkpoint.checkpoint_id == id);
    if others.is_empty() {
        return Ok(false);
    }
    for checkpoint in damaged {
        delete(tx, job, checkpoint.step).await?;
    }
    Ok(true)
}

/// Deletes all checkpoints of a job.
pub(crate) async fn delete_all(tx: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    let files = sqlx::query_scalar!("delete from checkpoint where job_id = $1 returning files", job.uuid())
        .fetch_all(&mut *tx)
        .await?;
    discard(tx, files).await
}

/// Days that the checkpoints of a failed or cancelled job are kept: until then its user may read them, use them as
/// models, and export them.
pub const GIVEN_UP_DAYS: i32 = 7;

/// The number of jobs whose checkpoints are deleted in one transaction.
const SWEPT_AT_ONCE: i64 = 50;

/// Deletes the checkpoints of jobs that failed or were cancelled [`GIVEN_UP_DAYS`] ago.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn sweep(tx: &mut PgConnection) -> Result<Batch, StoreError> {
    let jobs = sqlx::query_scalar!(
        "select job_id from job
         where state in ('failed', 'cancelled') and finished_at < now() - make_interval(days => $1)
             and exists (select from checkpoint where checkpoint.job_id = job.job_id)
         order by finished_at limit $2 for update skip locked",
        GIVEN_UP_DAYS,
        SWEPT_AT_ONCE,
    )
    .fetch_all(&mut *tx)
    .await?;
    for job in &jobs {
        delete_all(tx, JobId::new(*job)).await?;
    }
    Ok(Batch { gone: jobs.len() as u64, has_more: jobs.len() as i64 >= SWEPT_AT_ONCE })
}

async fn delete(tx: &mut PgConnection, job: JobId, step: u64) -> Result<(), StoreError> {
    let files = sqlx::query_scalar!(
        "delete from checkpoint where job_id = $1 and step = $2 returning files",
        job.uuid(),
        step as i64,
    )
    .fetch_all(&mut *tx)
    .await?;
    discard(tx, files).await
}

async fn discard(tx: &mut PgConnection, rows: Vec<serde_json::Value>) -> Result<(), StoreError> {
    for files in rows {
        let files: Vec<Blob> = json("checkpoint.files", files)?;
        blob::discard(tx, &files).await?;
    }
    Ok(())
}

/// Returns the newest checkpoint of a job.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn newest(conn: &mut PgConnection, job: JobId) -> Result<Option<Checkpoint>, StoreError> {
    Ok(select(conn, job, None, 1).await?.pop())
}

/// Returns a checkpoint of a job by its ID.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(conn: &mut PgConnection, job: JobId, id: CheckpointId) -> Result<Checkpoint, StoreError> {
    let all = select(conn, job, None, KEPT + 1).await?;
    all.into_iter().find(|checkpoint| checkpoint.checkpoint_id == id).ok_or(StoreError::NotFound("checkpoint"))
}

/// Returns the checkpoints of a project's job, newest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(conn: &mut PgConnection, project: ProjectId, job: JobId) -> Result<Vec<Checkpoint>, StoreError> {
    select(conn, job, Some(project), KEPT + 1).await
}

/// Mean token accuracies at a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Accuracies {
    /// The accuracy on the step's tokens.
    pub train: Option<f64>,
    /// The accuracy on the validation file, if the step was evaluated.
    pub validation: Option<f64>,
}

/// Returns the accuracies at the steps of a job's `checkpoints`; for a repeated step, the last ones.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn accuracies(
    conn: &mut PgConnection,
    job: JobId,
    checkpoints: &[Checkpoint],
) -> Result<BTreeMap<u64, Accuracies>, StoreError> {
    let steps: Vec<String> = checkpoints.iter().map(|checkpoint| checkpoint.step.to_string()).collect();
    let rows = sqlx::query!(
        r#"select (data->>'step')::bigint as "step!",
             (array_agg((data->>'train_mean_token_accuracy')::float8 order by sequence desc)
                 filter (where data ? 'train_mean_token_accuracy'))[1] as train,
             (array_agg((data->>'valid_mean_token_accuracy')::float8 order by sequence desc)
                 filter (where data ? 'valid_mean_token_accuracy'))[1] as validation
         from job_event where job_id = $1 and type = 'metrics' and data->>'step' = any($2) group by 1"#,
        job.uuid(),
        &steps,
    )
    .fetch_all(conn)
    .await?;
    let measured = rows.into_iter();
    Ok(measured.map(|row| (row.step as u64, Accuracies { train: row.train, validation: row.validation })).collect())
}

/// Returns the project's checkpoint with this model name, if it exists.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_model_name(
    conn: &mut PgConnection,
    project: ProjectId,
    name: &str,
) -> Result<Option<NamedCheckpoint>, StoreError> {
    let Some((model, step)) = model_name::read_checkpoint(name) else { return Ok(None) };
    let jobs = sqlx::query!(
        r#"select job.job_id, job.base_model_id, base_model.name as base, project.name as project, suffix,
             job.spec -> 'quantization' as "quantization!", adapter_version.model_name as "published?"
         from job join base_model using (base_model_id) join project on project.project_id = job.project_id
             left join adapter_version using (job_id)
         where job.project_id = $1 and (right(job.job_id::text, 8) = $2 or adapter_version.model_name = $3)"#,
        project.uuid(),
        model_name::digits(model),
        model,
    )
    .fetch_all(&mut *conn)
    .await?;
    for job in jobs {
        let id = JobId::new(job.job_id);
        let of_job = || model_name::of_job(&job.base, &job.project, job.suffix.as_deref(), id);
        if job.published.unwrap_or_else(of_job) != model {
            continue;
        }
        let kept = list(conn, project, id).await?;
        let base_model_id = BaseModelId::new(job.base_model_id);
        let quantization = json("job.spec", job.quantization)?;
        return Ok(kept.into_iter().find(|checkpoint| checkpoint.step == step).map(|checkpoint| NamedCheckpoint {
            model_name: name.to_owned(),
            base_model_id,
            quantization,
            checkpoint,
        }));
    }
    Ok(None)
}

async fn select(
    conn: &mut PgConnection,
    job: JobId,
    project: Option<ProjectId>,
    limit: i64,
) -> Result<Vec<Checkpoint>, StoreError> {
    let rows = sqlx::query!(
        "select checkpoint_id, step, files, train_loss, valid_loss, checkpoint.created_at
         from checkpoint join job using (job_id)
         where job_id = $1 and ($2::uuid is null or project_id = $2)
         order by step desc limit $3",
        job.uuid(),
        project.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Checkpoint {
                checkpoint_id: CheckpointId::new(row.checkpoint_id),
                job_id: job,
                step: row.step as u64,
                files: json("checkpoint.files", row.files)?,
                train_loss: row.train_loss,
                valid_loss: row.valid_loss,
                created_at: row.created_at,
            })
        })
        .collect()
}
