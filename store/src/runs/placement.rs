//! The placement of a run: the offer that was taken, the memory estimate, and the reason why each other offer was not.
//! Recorded when the run is created, since offers change. The processor is added when the trainer has started, as the
//! field `processor`, which [`past_runs`](crate::runs::past_runs) reads.

use attune_domain::{
    bytes::Bytes,
    id::{JobId, RunId},
    memory::{Margin, MemoryEstimate},
    run::{Plan, processor::Processor},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{StoreError, json, to_json};

/// The offer of a run, and the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// The provider's name.
    pub provider: String,
    /// The name of the offer that was taken.
    pub offer: String,
    /// The price of an hour in millionths of a US dollar.
    pub micro_usd_per_hour: u64,
    /// The memory estimate of the plan.
    pub estimate: MemoryEstimate,
    /// The margin of the offer, which was added to the estimate. Records from before it was recorded have the default.
    #[serde(default)]
    pub margin: Margin,
    /// The prediction for the rest of the job; `None`: unknown, or from before it was recorded.
    #[serde(default)]
    pub predicted: Option<Predicted>,
    /// The other offers, at most [`MOST_OTHERS`].
    pub others: Vec<NotTaken>,
}

/// The maximum number of other offers that are recorded.
pub const MOST_OTHERS: usize = 100;

/// The predicted duration and cost of the rest of a job on an offer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// The seconds from the launch to the end.
    pub seconds: f64,
    /// The price of the machine for that time, in millionths of a US dollar.
    pub micro_usd: u64,
}

/// An offer that was not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotTaken {
    /// The provider's name.
    pub provider: String,
    /// The offer's name.
    pub offer: String,
    /// The human-readable reason.
    pub reason: String,
    /// The prediction for the rest of the job; `None`: unknown, as for an offer that the job cannot use, or from before
    /// it was recorded.
    #[serde(default)]
    pub predicted: Option<Predicted>,
}

/// Records the placements of new runs, in one statement.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn record(tx: &mut PgConnection, placements: &[(RunId, Placed)]) -> Result<(), StoreError> {
    let runs: Vec<Uuid> = placements.iter().map(|(run, _)| run.uuid()).collect();
    let placed = placements.iter().map(|(_, placed)| to_json("run.placed", placed));
    let placed = placed.collect::<Result<Vec<Value>, StoreError>>()?;
    sqlx::query!(
        "update run set placed = placement.placed
         from unnest($1::uuid[], $2::jsonb[]) as placement (run_id, placed) where run.run_id = placement.run_id",
        &runs,
        &placed,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Records the processor that a run was placed on.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn record_processor(tx: &mut PgConnection, run: RunId, processor: &Processor) -> Result<(), StoreError> {
    sqlx::query!(
        "update run set placed = jsonb_set(placed, '{processor}', $2) where run_id = $1",
        run.uuid(),
        to_json("run.placed", &processor.clone().bounded())?,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The last run of a job, and its placement.
#[derive(Debug, Clone, PartialEq)]
pub struct LastRun {
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The training plan.
    pub plan: Plan,
    /// The placement; `None`: the run is from before placements were recorded.
    pub placed: Option<Placed>,
    /// The measured peak memory; `None`: not measured yet.
    pub measured_peak: Option<Bytes>,
    /// The time of the start.
    pub started_at: DateTime<Utc>,
    /// The time of the end.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Returns the last run of a job; `None`: it has had none.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn last(conn: &mut PgConnection, job: JobId) -> Result<Option<LastRun>, StoreError> {
    let row = sqlx::query!(
        "select attempt, plan, placed, measured_peak, created_at, ended_at from run
         where job_id = $1 order by attempt desc limit 1",
        job.uuid(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(LastRun {
        attempt: row.attempt,
        plan: json("run.plan", row.plan)?,
        placed: row.placed.map(|placed| json("run.placed", placed)).transpose()?,
        measured_peak: row.measured_peak.map(Bytes::from_i64),
        started_at: row.created_at,
        ended_at: row.ended_at,
    }))
}
