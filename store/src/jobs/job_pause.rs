//! Pause and resume. A job pauses on its user's request, because its money is spent, or because another job needs its
//! machine; its trainer stops at its next step, with a checkpoint, and the rest of the training, once resumed, gives
//! bit-identical results. A job that was stopped for another one is queued again automatically.

use attune_domain::{
    event::EventType,
    id::{JobId, ProjectId},
    job::{IllegalTransition, JobEvent, JobState, PauseReason, Priority},
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    jobs::{
        checkpoint,
        job::{self, Job, Step},
    },
    queue::{self, DispatchJob, ValidateJob},
    webhooks::outbox,
};

/// Pauses a project's job: immediately if no trainer holds it, else at the trainer's next step. Idempotent; a job that
/// was paused for lack of funds then waits for a resume.
///
/// # Errors
/// [`StoreError::NotFound`]. [`StoreError::Illegal`]: it has ended, or is being cancelled. [`StoreError::Database`].
pub async fn pause(tx: &mut PgConnection, project: ProjectId, id: JobId) -> Result<Job, StoreError> {
    let job = job::lock(tx, project, id).await?;
    if matches!(job.state, JobState::Pausing | JobState::Paused) {
        sqlx::query!("update job set pause_reason = $2 where job_id = $1", id.uuid(), PauseReason::Asked.name())
            .execute(&mut *tx)
            .await?;
    } else {
        pause_for(tx, &job, PauseReason::Asked, "").await?;
    }
    job::get(tx, project, id).await
}

/// Applies the step to a pause. `why` is prepended to the event's message. The caller holds the job's row.
///
/// # Errors
/// [`StoreError::Illegal`]: the job has ended, is being cancelled, or is paused already. [`StoreError::Database`].
pub async fn pause_for(tx: &mut PgConnection, job: &Job, reason: PauseReason, why: &str) -> Result<(), StoreError> {
    let is_held = matches!(job.state, JobState::Provisioning | JobState::Running);
    let what = if is_held { "Pausing: the trainer stops at its next step" } else { "Fine-tuning job paused" };
    let message = if why.is_empty() { what.to_owned() } else { format!("{why}. {what}") };
    job::step(tx, job.job_id, &Step::pause(reason, message)).await?;
    if reason == PauseReason::Budget {
        let told = json!({ "id": job.project_id, "fine_tuning_job": job.job_id });
        outbox::push(tx, job.project_id, EventType::BudgetExhausted, &told).await?;
    }
    Ok(())
}

/// Resumes a project's job: it is queued again, and continues from its last checkpoint. A job that is not paused is
/// left unchanged.
///
/// # Errors
/// [`StoreError::NotFound`]. [`StoreError::Illegal`]: it has ended, or is being cancelled. [`StoreError::Database`].
pub async fn resume(tx: &mut PgConnection, project: ProjectId, id: JobId) -> Result<Job, StoreError> {
    let job = job::lock(tx, project, id).await?;
    match job.state {
        // It is queued again automatically; a resume would only keep the machine from the job that it was stopped for.
        JobState::Pausing if job.pause_reason == Some(PauseReason::Preempted) => return Ok(job),
        JobState::Paused | JobState::Pausing => release(tx, &job, "").await?,
        JobState::Validating | JobState::Queued | JobState::Provisioning | JobState::Running => return Ok(job),
        from => return Err(IllegalTransition { from, event: JobEvent::ResumeAsked }.into()),
    }
    job::get(tx, project, id).await
}

/// Stops a running job at its next step, with a checkpoint, for another one; it is queued again when its trainer has
/// stopped. Its event states the other job's priority, and nothing else of it: that job may belong to another project.
/// Returns `false` if it may not be stopped any more.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn preempt(tx: &mut PgConnection, id: JobId, priority: Priority) -> Result<bool, StoreError> {
    let held = sqlx::query_scalar!("select state from job where job_id = $1 and preemptible for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
    let state = held.map(|state| job::state(&state)).transpose()?;
    if !matches!(state, Some(JobState::Provisioning | JobState::Running)) {
        return Ok(false);
    }
    let message = format!(
        "Preempted: a job of {priority} priority needs the machine. The trainer stops at its next step, and the job is \
         then queued again"
    );
    job::step(tx, id, &Step::pause(PauseReason::Preempted, message)).await?;
    sqlx::query!("update job set preemptions = preemptions + 1 where job_id = $1", id.uuid()).execute(tx).await?;
    Ok(true)
}

/// Queues a job again whose trainer has stopped for another job, in the transaction of the stop. Returns its state. The
/// caller holds the job's row.
pub(crate) async fn requeue_preempted(tx: &mut PgConnection, id: JobId) -> Result<JobState, StoreError> {
    let job = job::load(tx, id).await?;
    if job.state != JobState::Paused || job.pause_reason != Some(PauseReason::Preempted) {
        return Ok(job.state);
    }
    release(tx, &job, "The machine is free for the other job").await?;
    Ok(JobState::Queued)
}

/// Applies the step out of a pause, and pushes the message that moves the job on. The caller holds the job's row.
///
/// # Errors
/// [`StoreError::Illegal`]: it is not paused. [`StoreError::Database`], [`StoreError::Queue`].
pub async fn release(tx: &mut PgConnection, job: &Job, why: &str) -> Result<(), StoreError> {
    let job_id = job.job_id;
    let is_checked = job.token_facts.is_some();
    let from = checkpoint::newest(tx, job_id).await?.map_or(0, |checkpoint| checkpoint.step);
    let what = match (job.state, is_checked) {
        (JobState::Pausing, _) => "Fine-tuning job resumed before its trainer had stopped".to_owned(),
        (_, false) => "Fine-tuning job resumed: its files are validated".to_owned(),
        (_, true) => format!("Fine-tuning job resumed: it is queued again and continues after step {from}"),
    };
    let event = if is_checked { JobEvent::ResumeAsked } else { JobEvent::ResumeAskedUnchecked };
    let message = if why.is_empty() { what } else { format!("{why}. {what}") };
    match job::step(tx, job_id, &Step::new(event, message)).await? {
        JobState::Queued => queue::push(tx, &DispatchJob { job_id }).await,
        JobState::Validating => queue::push(tx, &ValidateJob { job_id }).await,
        _ => Ok(()),
    }
}
