//! Lost runs, and how their jobs continue.

use attune_domain::{
    id::{JobId, RunId},
    job::{
        JobEvent, JobState, PauseReason,
        retry::{MOST_SETBACKS, pause_seconds},
    },
    run::process::EndCause,
};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    jobs::{
        checkpoint,
        job::{self, JobError, Step},
        job_pause, memory_ladder,
    },
    queue::{self, DispatchJob},
    runs::run::{self, Outcome, RunState},
    tenancy::usage::{self, NodeTime},
};

/// The `code` of the event of a run that its provider reports as ended, and of the error of a job that fails because of
/// such runs.
const RUN_LOST: &str = "run_lost";

/// The cause of a lost run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Perhaps the job: after `max_attempts` such attempts in a row without a new checkpoint it fails.
    Job {
        /// The maximum number of such attempts.
        max_attempts: i32,
    },
    /// External circumstances: reports could not arrive, or the node's disk was full. Only after [`MOST_SETBACKS`] in a
    /// row without a new checkpoint does the job fail.
    Circumstances,
    /// The run's plan: it ran out of memory. The job's next run has a smaller plan or a larger offer, and the job fails
    /// only when there is none ([`memory_ladder`]).
    Memory,
    /// None: the platform was shut down, or the run was to end anyway.
    Nobody,
}

/// The reason why a run is lost.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The job's error code, should it fail because of this.
    pub code: String,
    /// The human-readable reason, about the trainer.
    pub reason: String,
    /// The cause of the end, for the job's attempts.
    pub blame: Blame,
    /// The cause of the process's end, as its provider reports it; `None`: it reports none.
    pub cause: Option<EndCause>,
}

impl Loss {
    /// Creates the loss of a run that stopped reporting or whose process ended.
    #[must_use]
    pub fn new(reason: impl Into<String>, blame: Blame) -> Self {
        Self { code: RUN_LOST.into(), reason: reason.into(), blame, cause: None }
    }

    /// Returns the data of the event of a lost run.
    fn data(&self, run: RunId) -> Value {
        self.cause
            .map_or(Value::Null, |cause| json!({ "code": RUN_LOST, "reason": cause.name(), "run_id": run.to_string() }))
    }
}

/// The number of consecutive attempts without a checkpoint.
struct Barren {
    by_job: i32,
    by_circumstances: i32,
}

/// Ends a lost run: its job is queued again and resumes from the last checkpoint, after a delay if there is no new one;
/// or, after too many attempts without a new one, it fails with the reason. A job that was being cancelled becomes
/// cancelled, one that was pausing becomes paused. A job whose run ended through no fault of its own is refunded the
/// work that is done again: the steps and the node's time after the last checkpoint. A run that was being stopped for
/// another job counts as such a run, whatever its end. After a run that ran out of memory, the job's next run has other
/// terms.
///
/// Returns the job's state, or `None` if the run had ended meanwhile.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`], [`StoreError::Queue`].
#[tracing::instrument(skip(tx, loss), fields(run.id = %id))]
pub async fn lost(tx: &mut PgConnection, id: RunId, loss: &Loss) -> Result<Option<JobState>, StoreError> {
    let row = sqlx::query!("select job_id, state from run where run_id = $1 for update", id.uuid())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("run"))?;
    if run::state(&row.state) == RunState::Ended {
        return Ok(None);
    }
    run::end(tx, id, if loss.blame == Blame::Memory { Outcome::OutOfMemory } else { Outcome::Lost }).await?;
    let job_id = JobId::new(row.job_id);
    let job = sqlx::query!("select state, pause_reason from job where job_id = $1 for update", row.job_id)
        .fetch_one(&mut *tx)
        .await?;
    let held = job::state(&job.state)?;
    let is_preempted = held == JobState::Pausing && job.pause_reason.as_deref() == Some(PauseReason::Preempted.name());
    let blame = if is_preempted && loss.blame != Blame::Memory { Blame::Nobody } else { loss.blame };
    let barren = count(tx, job_id, id, blame).await?;
    let pause = match blame {
        Blame::Memory | Blame::Nobody => 0,
        Blame::Job { .. } | Blame::Circumstances => {
            pause_seconds(barren.by_job.saturating_add(barren.by_circumstances).unsigned_abs())
        }
    };
    let is_wanted = is_preempted || !matches!(held, JobState::Cancelling | JobState::Pausing);
    if is_wanted && matches!(blame, Blame::Circumstances | Blame::Nobody) {
        let kept_step = checkpoint::newest(tx, job_id).await?.map_or(0, |checkpoint| checkpoint.step);
        usage::refund_run(tx, id, kept_step, NodeTime::AfterCheckpoint).await?;
    }
    let next = match blame {
        Blame::Memory => memory_ladder::climb(tx, job_id, id, held, &loss.reason).await?,
        _ => {
            let step = Step { data: loss.data(id), ..step(held, &barren, pause, loss) };
            job::step_held(tx, job_id, id, &step).await?
        }
    };
    if next == JobState::Paused {
        return job_pause::requeue_preempted(tx, job_id).await.map(Some);
    }
    if next == JobState::Queued {
        sqlx::query!(
            "update job set retry_at = now() + make_interval(secs => $2) where job_id = $1",
            row.job_id,
            f64::from(pause),
        )
        .execute(&mut *tx)
        .await?;
        queue::push(tx, &DispatchJob { job_id }).await?;
    }
    Ok(Some(next))
}

/// Returns the step of a job in the state `held`. No I/O.
fn step(held: JobState, barren: &Barren, pause: u32, loss: &Loss) -> Step {
    let Loss { code, reason, blame, .. } = loss;
    let spent = match blame {
        Blame::Job { max_attempts } => barren.by_job >= *max_attempts,
        Blame::Circumstances => barren.by_circumstances >= MOST_SETBACKS,
        Blame::Memory | Blame::Nobody => false,
    };
    match held {
        JobState::Cancelling => Step::new(JobEvent::RunLost, format!("Fine-tuning job cancelled; {reason}")),
        JobState::Pausing => Step::new(JobEvent::RunLost, format!("Fine-tuning job paused; {reason}")),
        _ if spent => {
            let attempt = barren.by_job.max(barren.by_circumstances);
            let message = format!("{reason}. That was attempt {attempt} without a new checkpoint; the job failed");
            Step::failure(JobEvent::RunFailed, JobError { code: code.clone(), message, param: None })
        }
        _ if pause == 0 => Step::new(JobEvent::RunLost, format!("{reason}; the job is queued again")),
        _ => {
            Step::new(JobEvent::RunLost, format!("{reason}; the job is queued again, for another attempt in {pause} s"))
        }
    }
}

/// Counts this attempt, unless it made a checkpoint: then the counts are reset.
async fn count(tx: &mut PgConnection, job: JobId, run: RunId, blame: Blame) -> Result<Barren, StoreError> {
    let row = sqlx::query!(
        "update job set
             barren_attempts = case when kept.one then 0 else barren_attempts + $3 end,
             setbacks = case when kept.one then 0 else setbacks + $4 end
         from (select exists (select from checkpoint where job_id = $1 and run_id = $2) as one) as kept
         where job.job_id = $1 returning barren_attempts, setbacks",
        job.uuid(),
        run.uuid(),
        i32::from(matches!(blame, Blame::Job { .. })),
        i32::from(blame == Blame::Circumstances),
    )
    .fetch_one(tx)
    .await?;
    Ok(Barren { by_job: row.barren_attempts, by_circumstances: row.setbacks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_setbacks_are_survived_a_hundred_times_and_no_more() {
        let loss = Loss::new("The disk was full", Blame::Circumstances);
        let after = |by_circumstances| step(JobState::Running, &Barren { by_job: 2, by_circumstances }, 120, &loss);
        let survived = after(MOST_SETBACKS - 1);
        assert_eq!(survived.event, JobEvent::RunLost);
        assert!(survived.message.ends_with("queued again, for another attempt in 120 s"), "{}", survived.message);
        assert_eq!(after(MOST_SETBACKS).event, JobEvent::RunFailed);
    }
}
