//! States from which a run can go on, and that answer like a tuned model. The newest three of a job are kept, as OpenAI
//! does; they go with the job's adapter.

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
    mint,
    sweep_batch::Batch,
    webhooks::outbox,
};

/// How many of a job are kept.
const KEPT: i64 = 3;

/// What of a checkpoint answers requests.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// A checkpoint as its row has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Which checkpoint.
    pub checkpoint_id: CheckpointId,
    /// Of which job.
    pub job_id: JobId,
    /// After which optimiser step.
    pub step: u64,
    /// Its files.
    pub files: Vec<Blob>,
    /// The step's loss.
    pub train_loss: f64,
    /// The validation's, if there was one at this step.
    pub valid_loss: Option<f64>,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// A checkpoint as a model that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedCheckpoint {
    /// `ft:base:project:suffix:id:ckpt-step-N`.
    pub model_name: String,
    /// What it corrects.
    pub base_model_id: BaseModelId,
    /// The quantization of the base that it was trained over.
    pub quantization: Quantization,
    /// The state.
    pub checkpoint: Checkpoint,
}

impl NamedCheckpoint {
    /// Those of its files that are a PEFT adapter; the others are the optimiser's and the run's.
    pub fn adapter_files(&self) -> impl Iterator<Item = &Blob> {
        self.checkpoint.files.iter().filter(|file| ADAPTER_FILES.contains(&file.name.as_str()))
    }
}

/// A checkpoint to be written down.
#[derive(Debug, Clone)]
pub(crate) struct NewCheckpoint<'a> {
    pub(crate) job_id: JobId,
    pub(crate) run_id: RunId,
    pub(crate) step: u64,
    pub(crate) files: &'a [Blob],
    pub(crate) train_loss: f64,
    pub(crate) valid_loss: Option<f64>,
}

/// Writes a checkpoint down, in place of an older run's at the same step, and lets go of all but the newest.
pub(crate) async fn insert(tx: &mut PgConnection, new: &NewCheckpoint<'_>) -> Result<(), StoreError> {
    delete(tx, new.job_id, new.step).await?;
    let id: CheckpointId = mint::id();
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

/// Lets go of a checkpoint from which no run can go on, if there is another one. Returns whether there is.
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

/// Lets go of all of a job's.
pub(crate) async fn delete_all(tx: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    let files = sqlx::query_scalar!("delete from checkpoint where job_id = $1 returning files", job.uuid())
        .fetch_all(&mut *tx)
        .await?;
    discard(tx, files).await
}

/// How long the checkpoints of a job that failed or was cancelled are kept: until then its user may look at them, use them
/// as models, and export what they hold.
pub const GIVEN_UP_DAYS: i32 = 7;

/// Jobs whose checkpoints are let go of in one transaction.
const SWEPT_AT_ONCE: i64 = 50;

/// Lets go of the checkpoints of jobs that failed or were cancelled [`GIVEN_UP_DAYS`] ago.
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

/// The newest checkpoint of a job.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn newest(conn: &mut PgConnection, job: JobId) -> Result<Option<Checkpoint>, StoreError> {
    Ok(select(conn, job, None, 1).await?.pop())
}

/// A checkpoint of a job by its id.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(conn: &mut PgConnection, job: JobId, id: CheckpointId) -> Result<Checkpoint, StoreError> {
    let all = select(conn, job, None, KEPT + 1).await?;
    all.into_iter().find(|checkpoint| checkpoint.checkpoint_id == id).ok_or(StoreError::NotFound("checkpoint"))
}

/// The checkpoints of a project's job, newest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(conn: &mut PgConnection, project: ProjectId, job: JobId) -> Result<Vec<Checkpoint>, StoreError> {
    select(conn, job, Some(project), KEPT + 1).await
}

/// Shares of tokens that were predicted right.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Accuracies {
    /// Of the step's.
    pub train: Option<f64>,
    /// Of the validation file's, if it was read at this step.
    pub validation: Option<f64>,
}

/// Returns what was measured at the steps of `checkpoints`, a job's; a step that was done again counts as the last time.
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

/// The project's checkpoint of this model name, if there is one.
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
