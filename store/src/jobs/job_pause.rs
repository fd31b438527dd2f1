//! Pause and resume. A job pauses on its user's request, or because its money is spent; either way its trainer stops at
//! its next step, with a checkpoint, and the rest of the training, once resumed, gives bit-identical results.

use attune_domain::{
    event::EventType,
    id::{JobId, ProjectId},
    job::{IllegalTransition, JobEvent, JobState, PauseReason},
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
        JobState::Paused | JobState::Pausing => release(tx, &job, "").await?,
        JobState::Validating | JobState::Queued | JobState::Provisioning | JobState::Running => return Ok(job),
        from => return Err(IllegalTransition { from, event: JobEvent::ResumeAsked }.into()),
    }
    job::get(tx, project, id).await
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
