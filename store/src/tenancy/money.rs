//! Budgets of projects and price caps of jobs. When the money is spent, jobs are paused, never killed: their progress
//! is kept, and they resume automatically when there is money again. The spending is checked when a job is about to
//! start and with each report of its trainer, so it exceeds the limit by at most the cost of a heartbeat interval.

use attune_domain::{
    id::{JobId, ProjectId},
    job::{IllegalTransition, JobEvent, JobState, PauseReason},
};
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    jobs::{
        job::{self, Job},
        job_pause,
    },
    tenancy::usage,
};

/// A project's monthly budget and its spending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The budget in millionths of a US dollar; `None`: unlimited.
    pub monthly_micro_usd: Option<i64>,
    /// The spending since the beginning of the month in millionths of a US dollar, active runs included.
    pub spent_micro_usd: i64,
    /// The beginning of the month.
    pub since: DateTime<Utc>,
}

/// Returns a project's budget. For a transaction of the platform: tenants cannot see reservations of nodes.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn budget(conn: &mut PgConnection, project: ProjectId) -> Result<Budget, StoreError> {
    let monthly_micro_usd =
        sqlx::query_scalar!("select monthly_micro_usd from budget where project_id = $1", project.uuid())
            .fetch_optional(&mut *conn)
            .await?;
    let since = month_of(now(conn).await?);
    let spent_micro_usd = usage::spent(conn, project, since).await?;
    Ok(Budget { monthly_micro_usd, spent_micro_usd, since })
}

/// Locks the project's budget until the transaction ends, even if it was never set.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lock_budget(tx: &mut PgConnection, project: ProjectId) -> Result<(), StoreError> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('attune: budget ' || $1::uuid, 0))", project.uuid())
        .fetch_one(tx)
        .await?;
    Ok(())
}

/// Sets a project's budget; `None` removes it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn set_budget(tx: &mut PgConnection, project: ProjectId, monthly: Option<i64>) -> Result<(), StoreError> {
    lock_budget(tx, project).await?;
    match monthly {
        None => sqlx::query!("delete from budget where project_id = $1", project.uuid()).execute(tx).await?,
        Some(micro_usd) => {
            sqlx::query!(
                "insert into budget (project_id, monthly_micro_usd) values ($1, $2)
                 on conflict (project_id) do update set monthly_micro_usd = excluded.monthly_micro_usd,
                     changed_at = now()",
                project.uuid(),
                micro_usd,
            )
            .execute(tx)
            .await?
        }
    };
    Ok(())
}

/// Sets a job's price cap; `None` removes it.
///
/// # Errors
/// [`StoreError::NotFound`]. [`StoreError::Illegal`]: it has ended. [`StoreError::Database`].
pub async fn set_price_cap(
    tx: &mut PgConnection,
    project: ProjectId,
    id: JobId,
    max_micro_usd: Option<i64>,
) -> Result<Job, StoreError> {
    let held = job::lock(tx, project, id).await?;
    if held.state.is_final() {
        return Err(IllegalTransition { from: held.state, event: JobEvent::ResumeAsked }.into());
    }
    sqlx::query!("update job set max_micro_usd = $2 where job_id = $1", id.uuid(), max_micro_usd)
        .execute(&mut *tx)
        .await?;
    job::get(tx, project, id).await
}

async fn now(conn: &mut PgConnection) -> Result<DateTime<Utc>, StoreError> {
    Ok(sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(conn).await?)
}

/// Returns the first moment of the month, in UTC.
fn month_of(now: DateTime<Utc>) -> DateTime<Utc> {
    let first = NaiveDate::from_ymd_opt(now.year(), now.month(), 1).and_then(|day| day.and_hms_opt(0, 0, 0));
    first.map_or(now, |first| first.and_utc())
}

/// Returns the reason, with a message, why a job must not spend more; `None`: it may.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn exhausted(conn: &mut PgConnection, job: &Job) -> Result<Option<(PauseReason, String)>, StoreError> {
    if let Some(most) = job.max_micro_usd {
        let spent = spent_by(conn, job.job_id).await?;
        if spent >= most {
            let why = format!("The job has cost {}, and its compute.max_price_usd is {}", usd(spent), usd(most));
            return Ok(Some((PauseReason::PriceCap, why)));
        }
    }
    let has_budget = sqlx::query_scalar!(
        r#"select exists (select from budget where project_id = $1) as "there!""#,
        job.project_id.uuid()
    )
    .fetch_one(&mut *conn)
    .await?;
    if !has_budget {
        return Ok(None);
    }
    let Budget { monthly_micro_usd, spent_micro_usd: spent, .. } = budget(conn, job.project_id).await?;
    Ok(monthly_micro_usd.filter(|most| spent >= *most).map(|most| {
        let why = format!("The project has spent {} this month, and its budget is {}", usd(spent), usd(most));
        (PauseReason::Budget, why)
    }))
}

/// Returns a job's cost in millionths of a US dollar, its active run included.
async fn spent_by(conn: &mut PgConnection, id: JobId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select (job.micro_usd + coalesce((
             select extract(epoch from clock_timestamp() - node.created_at) * node.micro_usd_per_hour / 3600
                 + (job.top_tokens - job.charged_tokens)::numeric * job.micro_usd_per_million_tokens / 1000000
             from run join node using (node_id) where run.run_id = job.run_id and run.state <> 'ended'), 0))::bigint
             as "spent!"
         from job where job_id = $1"#,
        id.uuid(),
    )
    .fetch_one(conn)
    .await?)
}

/// Formats an amount in dollars and cents, with more digits if it is not a whole number of cents.
fn usd(micro_usd: i64) -> String {
    let usd = micro_usd as f64 / 1e6;
    if micro_usd % 10_000 == 0 { format!("${usd:.2}") } else { format!("${usd:.6}") }
}

/// Pauses the job of a run that has reported, if its money is spent. Returns whether it did.
pub(crate) async fn check(tx: &mut PgConnection, id: JobId) -> Result<bool, StoreError> {
    let is_bound = sqlx::query_scalar!(
        r#"select max_micro_usd is not null or exists (select from budget where budget.project_id = job.project_id)
             as "bound!" from job where job_id = $1"#,
        id.uuid(),
    )
    .fetch_one(&mut *tx)
    .await?;
    if !is_bound {
        return Ok(false);
    }
    let job = job::load(tx, id).await?;
    let Some((reason, why)) = exhausted(tx, &job).await? else { return Ok(false) };
    job_pause::pause_for(tx, &job, reason, &why).await?;
    Ok(true)
}

/// Resumes jobs that were paused for lack of money and may spend again: a limit was raised or removed, or a new month
/// has begun. Returns the number of jobs.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Queue`].
pub async fn release_affordable(tx: &mut PgConnection, limit: i64) -> Result<usize, StoreError> {
    let waiting = sqlx::query_scalar!(
        "select job_id from job where state = 'paused' and pause_reason in ('price_cap', 'budget')
         order by random() limit $1 for update skip locked",
        limit,
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut released = 0;
    for id in waiting {
        let job = job::load(tx, JobId::new(id)).await?;
        if job.state == JobState::Paused && exhausted(tx, &job).await?.is_none() {
            job_pause::release(tx, &job, "The job may spend again").await?;
            released += 1;
        }
    }
    Ok(released)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_on_its_first_day() {
        let now = "2026-11-24T13:59:14Z".parse().unwrap();
        assert_eq!(month_of(now).to_rfc3339(), "2026-11-01T00:00:00+00:00");
    }

    #[test]
    fn small_sums_are_not_rounded_away() {
        assert_eq!([usd(1_500_000), usd(150), usd(0)], ["$1.50", "$0.000150", "$0.00"]);
    }
}
