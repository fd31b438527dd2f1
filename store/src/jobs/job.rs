//! Jobs and their state machine.
//!
//! Their state changes only through `step` and `step_held`: both lock the row, apply the table in `domain::job`,
//! and write the step as an event in the same transaction.

use attune_domain::{
    dataset::file_facts::FileFacts,
    event::EventType,
    id::{AdapterVersionId, ApiKeyId, BaseModelId, FileId, JobId, ProjectId, RunId},
    job::{JobEvent, JobState, PauseReason, Priority},
    offer::ComputeLimits,
    run::traceparent::Traceparent,
    spec::{BASE_LEARNING_RATE, TrainSpec},
    text::tenant_text::for_tenant,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    adapters::base_model,
    error::{StoreError, json, named, to_json},
    ids,
    jobs::{
        job_event::{self, Level},
        terms,
    },
    queue::{self, ValidateJob},
    webhooks::outbox,
};

/// A job's row, with the names that its view shows.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct Job {
    pub job_id: JobId,
    pub project_id: ProjectId,
    pub base_model_id: BaseModelId,
    /// The base's name, as the user requested it.
    pub base_model: String,
    pub training_file_id: FileId,
    pub validation_file_id: Option<FileId>,
    pub continue_from: Option<AdapterVersionId>,
    pub state: JobState,
    /// The reason for the pause, while it is pausing or paused.
    pub pause_reason: Option<PauseReason>,
    pub suffix: Option<String>,
    pub metadata: serde_json::Value,
    pub spec: TrainSpec,
    pub token_facts: Option<TokenFacts>,
    pub run_id: Option<RunId>,
    pub waiting_reason: Option<String>,
    pub priority: Priority,
    pub preemptible: bool,
    pub limits: ComputeLimits,
    pub queue_position: Option<i32>,
    pub estimated_start: Option<DateTime<Utc>>,
    pub attempts: i32,
    pub barren_attempts: i32,
    pub total_steps: Option<i64>,
    pub steps_done: i64,
    pub trained_tokens: Option<i64>,
    pub result_file_id: Option<FileId>,
    pub max_micro_usd: Option<i64>,
    pub charged_tokens: i64,
    pub node_ms: i64,
    pub micro_usd: i64,
    /// The mean step time of the run that holds it, in milliseconds.
    pub mean_step_ms: Option<f64>,
    pub error: Option<JobError>,
    /// The model's name, `ft:…`, once it is published.
    pub fine_tuned_model: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A job's error, as the user reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// The error code, for programs: `row_too_long`.
    pub code: String,
    /// The human-readable message.
    pub message: String,
    /// The invalid field of the request, if there is one.
    pub param: Option<String>,
}

/// Token counts of a job's files, from the scan with the base's tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFacts {
    /// The training file's counts.
    pub training: FileFacts,
    /// The validation file's counts.
    pub validation: Option<FileFacts>,
}

/// A new job; every field is checked.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the column of the same name, described in migrations/")]
pub struct NewJob {
    pub project_id: ProjectId,
    pub base_model_id: BaseModelId,
    pub training_file_id: FileId,
    pub validation_file_id: Option<FileId>,
    pub continue_from: Option<AdapterVersionId>,
    pub suffix: Option<String>,
    pub metadata: serde_json::Value,
    pub spec: TrainSpec,
    pub api_key_id: Option<ApiKeyId>,
    pub micro_usd_per_million_tokens: i64,
    pub max_micro_usd: Option<i64>,
    pub priority: Priority,
    pub preemptible: bool,
    pub limits: ComputeLimits,
    pub traceparent: Option<Traceparent>,
}

/// Inserts a job and pushes the message that starts its validation: both commit, or neither.
///
/// # Errors
/// [`StoreError::Conflict`], [`StoreError::NotFound`]: a file, or the base, was deleted. Otherwise as [`queue::push`].
pub async fn insert(tx: &mut PgConnection, new: &NewJob) -> Result<Job, StoreError> {
    let id: JobId = ids::id();
    sqlx::query!(
        "insert into job (job_id, project_id, base_model_id, training_file_id, validation_file_id, state, suffix,
             metadata, spec, continue_from, api_key_id, micro_usd_per_million_tokens, max_micro_usd, priority,
             preemptible, traceparent, limits)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        id.uuid(),
        new.project_id.uuid(),
        new.base_model_id.uuid(),
        new.training_file_id.uuid(),
        new.validation_file_id.map(|id| id.uuid()),
        JobState::Validating.name(),
        new.suffix,
        new.metadata,
        to_json("job.spec", &new.spec)?,
        new.continue_from.map(|id| id.uuid()),
        new.api_key_id.map(|id| id.uuid()),
        new.micro_usd_per_million_tokens,
        new.max_micro_usd,
        new.priority.name(),
        new.preemptible,
        new.traceparent.map(|traceparent| traceparent.to_string()),
        terms::write_limits(&new.limits)?,
    )
    .execute(&mut *tx)
    .await?;
    base_model::still_there(tx, new.base_model_id).await?;
    job_event::message(tx, id, Level::Info, &format!("Created fine-tuning job: {id}")).await?;
    job_event::message(tx, id, Level::Info, &format!("Validating training file: {}", new.training_file_id)).await?;
    outbox::push(tx, new.project_id, EventType::Job(JobState::Validating), &json!({ "id": id })).await?;
    queue::push(tx, &ValidateJob { job_id: id }).await?;
    load(tx, id).await
}

/// Returns a project's job.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or is another project's. [`StoreError::Database`].
pub async fn get(conn: &mut PgConnection, project: ProjectId, id: JobId) -> Result<Job, StoreError> {
    let filter = Filter { project: Some(project), job: Some(id), metadata: None, before: None, limit: 1 };
    select(conn, filter).await?.pop().ok_or(StoreError::NotFound("fine-tuning job"))
}

/// Returns any project's job, for the platform's own work; never for an answer to a user.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn load(conn: &mut PgConnection, id: JobId) -> Result<Job, StoreError> {
    let filter = Filter { project: None, job: Some(id), metadata: None, before: None, limit: 1 };
    select(conn, filter).await?.pop().ok_or(StoreError::NotFound("fine-tuning job"))
}

/// Returns a project's jobs whose metadata contains `metadata`, newest first, after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    metadata: serde_json::Value,
    after: Option<JobId>,
    limit: i64,
) -> Result<Vec<Job>, StoreError> {
    select(conn, Filter { project: Some(project), job: None, metadata: Some(metadata), before: after, limit }).await
}

struct Filter {
    project: Option<ProjectId>,
    job: Option<JobId>,
    metadata: Option<serde_json::Value>,
    before: Option<JobId>,
    limit: i64,
}

async fn select(conn: &mut PgConnection, filter: Filter) -> Result<Vec<Job>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select job.job_id, job.project_id, job.base_model_id, base_model.name as base_model, training_file_id,
             validation_file_id, continue_from, job.state, pause_reason, suffix, metadata, spec, token_facts,
             job.run_id, waiting_reason, priority, preemptible, limits, queue_position, estimated_start, attempts,
             barren_attempts, total_steps, steps_done, trained_tokens, error_code, error_message, error_param,
             adapter_version.model_name as "fine_tuned_model?", job.created_at, started_at, finished_at,
             run.step_ms::float8 / nullif(run.steps, 0) as mean_step_ms, result_file_id, max_micro_usd, charged_tokens,
             node_ms, micro_usd
         from job join base_model using (base_model_id) left join adapter_version using (job_id)
             left join run on run.run_id = job.run_id
         where ($1::uuid is null or job.project_id = $1) and ($2::uuid is null or job.job_id = $2)
             and ($3::uuid is null or job.job_id < $3) and ($5::jsonb is null or metadata @> $5)
         order by job.job_id desc limit $4"#,
        filter.project.map(|id| id.uuid()),
        filter.job.map(|id| id.uuid()),
        filter.before.map(|id| id.uuid()),
        filter.limit,
        filter.metadata,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Job::try_from).collect()
}

/// The row as PostgreSQL returns it.
struct Row {
    job_id: Uuid,
    project_id: Uuid,
    base_model_id: Uuid,
    base_model: String,
    training_file_id: Uuid,
    validation_file_id: Option<Uuid>,
    continue_from: Option<Uuid>,
    state: String,
    pause_reason: Option<String>,
    suffix: Option<String>,
    metadata: serde_json::Value,
    spec: serde_json::Value,
    token_facts: Option<serde_json::Value>,
    run_id: Option<Uuid>,
    waiting_reason: Option<String>,
    priority: String,
    preemptible: bool,
    limits: Option<serde_json::Value>,
    queue_position: Option<i32>,
    estimated_start: Option<DateTime<Utc>>,
    attempts: i32,
    barren_attempts: i32,
    total_steps: Option<i64>,
    steps_done: i64,
    trained_tokens: Option<i64>,
    mean_step_ms: Option<f64>,
    result_file_id: Option<Uuid>,
    max_micro_usd: Option<i64>,
    charged_tokens: i64,
    node_ms: i64,
    micro_usd: i64,
    error_code: Option<String>,
    error_message: Option<String>,
    error_param: Option<String>,
    fine_tuned_model: Option<String>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Job {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let error = row.error_code.zip(row.error_message);
        let pause_reason = |name: &str| named("job.pause_reason", name, "reason");
        Ok(Self {
            job_id: JobId::new(row.job_id),
            project_id: ProjectId::new(row.project_id),
            base_model_id: BaseModelId::new(row.base_model_id),
            base_model: row.base_model,
            training_file_id: FileId::new(row.training_file_id),
            validation_file_id: row.validation_file_id.map(FileId::new),
            continue_from: row.continue_from.map(AdapterVersionId::new),
            state: state(&row.state)?,
            pause_reason: row.pause_reason.as_deref().map(pause_reason).transpose()?,
            suffix: row.suffix,
            metadata: row.metadata,
            spec: json("job.spec", row.spec)?,
            token_facts: row.token_facts.map(|facts| json("job.token_facts", facts)).transpose()?,
            run_id: row.run_id.map(RunId::new),
            waiting_reason: row.waiting_reason,
            priority: named("job.priority", &row.priority, "priority")?,
            preemptible: row.preemptible,
            limits: terms::read_limits(row.limits)?,
            queue_position: row.queue_position,
            estimated_start: row.estimated_start,
            attempts: row.attempts,
            barren_attempts: row.barren_attempts,
            total_steps: row.total_steps,
            steps_done: row.steps_done,
            trained_tokens: row.trained_tokens,
            mean_step_ms: row.mean_step_ms,
            result_file_id: row.result_file_id.map(FileId::new),
            max_micro_usd: row.max_micro_usd,
            charged_tokens: row.charged_tokens,
            node_ms: row.node_ms,
            micro_usd: row.micro_usd,
            error: error.map(|(code, message)| JobError { code, message, param: row.error_param }),
            fine_tuned_model: row.fine_tuned_model,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}

pub(crate) fn state(name: &str) -> Result<JobState, StoreError> {
    named("job.state", name, "state")
}

/// A state transition of a job: an event, and the message that the user reads about it.
#[derive(Debug, Clone)]
pub struct Step {
    /// The event.
    pub event: JobEvent,
    /// The human-readable message.
    pub message: String,
    /// The error of a failure.
    pub error: Option<JobError>,
    /// The reason of a pause.
    pub pause: Option<PauseReason>,
    /// The machine-readable data of the event; `null`: none.
    pub data: serde_json::Value,
}

impl Step {
    /// Creates a step without an error.
    #[must_use]
    pub fn new(event: JobEvent, message: impl Into<String>) -> Self {
        Self { event, message: message.into(), error: None, pause: None, data: serde_json::Value::Null }
    }

    /// Creates a failure; the error's message is the step's.
    #[must_use]
    pub fn failure(event: JobEvent, error: JobError) -> Self {
        Self { event, message: error.message.clone(), error: Some(error), pause: None, data: serde_json::Value::Null }
    }

    /// Creates a pause with its reason.
    #[must_use]
    pub fn pause(reason: PauseReason, message: impl Into<String>) -> Self {
        Self {
            event: JobEvent::PauseAsked,
            message: message.into(),
            error: None,
            pause: Some(reason),
            data: serde_json::Value::Null,
        }
    }
}

/// Applies one step to a job, and writes it as an event.
///
/// The row is locked until the transaction ends, so two workers cannot both step it.
///
/// # Errors
/// [`StoreError::NotFound`]: the job does not exist. [`StoreError::Illegal`]: the event is illegal in this state.
/// [`StoreError::Database`].
pub async fn step(tx: &mut PgConnection, id: JobId, step: &Step) -> Result<JobState, StoreError> {
    take(tx, id, None, step).await
}

/// As [`step`], on behalf of the run that holds the job.
///
/// # Errors
/// Also [`StoreError::Stale`]: another run holds it now, or none does; the run's write must be dropped.
pub async fn step_held(tx: &mut PgConnection, id: JobId, run: RunId, step: &Step) -> Result<JobState, StoreError> {
    take(tx, id, Some(run), step).await
}

#[tracing::instrument(skip_all, fields(job.id = %id, event = ?step.event))]
async fn take(tx: &mut PgConnection, id: JobId, run: Option<RunId>, step: &Step) -> Result<JobState, StoreError> {
    let held = sqlx::query!("select state, run_id from job where job_id = $1 for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("fine-tuning job"))?;
    if run.is_some_and(|run| held.run_id != Some(run.uuid())) {
        return Err(StoreError::Stale);
    }
    let next = state(&held.state)?.apply(step.event)?;
    // Only a failed job has an error: a run that fails during a cancellation belongs to a cancelled job.
    let error = step.error.as_ref().filter(|_| next == JobState::Failed);
    sqlx::query!(
        "update job set state = $2,
             started_at = case when $2 = 'running' then coalesce(started_at, now()) else started_at end,
             finished_at = case when $3 then now() end,
             run_id = case when $2 in ('queued', 'paused') then null else run_id end,
             pause_reason = case when $2 in ('pausing', 'paused') then coalesce($7, pause_reason) end,
             queued_at = case when $2 = 'queued' then coalesce(queued_at, now()) else queued_at end,
             need_bytes = case when $2 = 'provisioning' then null else need_bytes end,
             waiting_reason = null, queue_position = null, estimated_start = null,
             pushed_at = now(), error_code = $4, error_message = $5, error_param = $6
         where job_id = $1",
        id.uuid(),
        next.name(),
        next.is_final(),
        error.map(|e| for_tenant(&e.code)),
        error.map(|e| for_tenant(&e.message)),
        error.and_then(|e| e.param.as_deref()),
        step.pause.map(PauseReason::name),
    )
    .execute(&mut *tx)
    .await?;
    let level = if error.is_some() { Level::Error } else { Level::Info };
    job_event::message_with(tx, id, level, &step.message, &step.data).await?;
    outbox::push_for_job(tx, id, EventType::Job(next), &json!({ "id": id })).await?;
    tracing::info!(state = %next, "{}", step.message);
    Ok(next)
}

/// Cancels a project's job: immediately if no trainer holds it, else at the trainer's next report. Idempotent.
///
/// # Errors
/// [`StoreError::NotFound`]. [`StoreError::Illegal`]: it has ended already. [`StoreError::Database`].
pub async fn cancel(tx: &mut PgConnection, project: ProjectId, id: JobId) -> Result<Job, StoreError> {
    let job = lock(tx, project, id).await?;
    match job.state {
        JobState::Cancelling => return Ok(job),
        JobState::Validating | JobState::Queued | JobState::Paused => {
            step(tx, id, &Step::new(JobEvent::CancelAsked, "Fine-tuning job cancelled")).await?;
        }
        _ => {
            step(tx, id, &Step::new(JobEvent::CancelAsked, "Cancelling: the trainer stops at its next step")).await?;
        }
    }
    get(tx, project, id).await
}

/// Returns a project's job, locked until the transaction ends.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub(crate) async fn lock(tx: &mut PgConnection, project: ProjectId, id: JobId) -> Result<Job, StoreError> {
    sqlx::query!("select from job where job_id = $1 and project_id = $2 for update", id.uuid(), project.uuid())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("fine-tuning job"))?;
    get(tx, project, id).await
}

/// Stores the token counts of the files.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn save_facts(
    tx: &mut PgConnection,
    id: JobId,
    facts: &TokenFacts,
    total_steps: u64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update job set token_facts = $2, total_steps = $3 where job_id = $1",
        id.uuid(),
        to_json("job.token_facts", facts)?,
        total_steps as i64,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores the learning rate that the range test found; the job's view and its next runs use it.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub(crate) async fn save_learning_rate(tx: &mut PgConnection, id: JobId, rate: f64) -> Result<(), StoreError> {
    let spec = sqlx::query_scalar!("select spec from job where job_id = $1 for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("fine-tuning job"))?;
    let mut spec: TrainSpec = json("job.spec", spec)?;
    spec.trainer.learning_rate = rate;
    spec.hyperparameters.learning_rate_multiplier = rate / BASE_LEARNING_RATE;
    sqlx::query!("update job set spec = $2 where job_id = $1", id.uuid(), to_json("job.spec", &spec)?)
        .execute(tx)
        .await?;
    Ok(())
}
