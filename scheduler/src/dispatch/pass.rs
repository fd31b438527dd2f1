//! One planning pass: it loads the queue, plans it, and executes the plan.

use std::{collections::HashMap, time::Instant};

use attune_domain::{
    id::JobId,
    job::Priority,
    offer::Offer,
    queue::{self, Queue, QueuePlan},
};
use attune_process::{
    failpoint::FailPoint,
    metrics::{PLAN_FAILURES, PLAN_SECONDS, PREEMPTIONS},
};
use attune_store::{
    jobs::{
        job_pause,
        snapshot::{self, PLANNED_PER_PROJECT},
    },
    queue::{DispatchJob, push},
};

use super::{
    measure, ranking,
    reconsider::reconsider,
    start,
    started::Started,
    waits::{self, Waiting},
};
use crate::{app::App, error::SchedulerError, providers::market::Market};

/// The maximum number of jobs started in one transaction. PostgreSQL keeps the IDs of up to 64 subtransactions in
/// memory; with more, every other session's snapshots become slower.
const STARTS_AT_ONCE: usize = 50;

/// The maximum number of jobs started per message; another message follows for the rest. The reconciler waits until a
/// message is handled.
const STARTS_PER_MESSAGE: usize = 200;

/// The maximum number of jobs per message about which is decided again because no offer can hold them.
const RECONSIDERED_AT_ONCE: usize = 20;

/// The maximum number of plans per message. The queue is planned again when a job did not take its place.
const MOST_PLANS: usize = 5;

/// Plans the queue and executes the plan, under the placement lock.
///
/// # Errors
/// [`SchedulerError`]: the next pass tries again.
pub(crate) async fn run(app: &App) -> Result<(), SchedulerError> {
    // Outside of the lock and of any transaction: a provider that is slow holds back no repair.
    let market = app.market().await?;
    let _placing = app.placing.lock().await;
    let began = Instant::now();
    let planned = plan(app, &market).await;
    PLAN_SECONDS.observe([], began.elapsed().as_secs_f64());
    if planned.is_err() {
        PLAN_FAILURES.inc([]);
    }
    planned
}

async fn plan(app: &App, market: &Market) -> Result<(), SchedulerError> {
    for _ in 0..MOST_PLANS {
        if once(app, market).await? == Next::Done {
            break;
        }
    }
    Ok(())
}

/// The continuation after a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Done,
    PlanAgain,
}

/// Plans once.
async fn once(app: &App, market: &Market) -> Result<Next, SchedulerError> {
    let mut conn = app.single().await?;
    let offers = market.offers(&mut conn).await?;
    measure::all(&mut conn, &offers).await?;
    let mut snapshot = snapshot::load(&mut conn, PLANNED_PER_PROJECT).await?;
    drop(conn);
    if snapshot.waiting.is_empty() {
        return Ok(Next::Done);
    }
    ranking::rank(&mut snapshot.waiting, &snapshot.terms, &offers, snapshot.now);
    let needs = snapshot.waiting.iter().map(|job| (job.job, job.need)).collect();
    let rankings = snapshot.waiting.iter().filter_map(|job| Some((job.job, job.offers.clone()?))).collect();
    let waiting = Waiting { needs, rankings, kept: snapshot.kept };
    let queue = Queue {
        now: snapshot.now,
        waiting: snapshot.waiting,
        running: snapshot.running,
        offers,
        projects: snapshot.projects,
    };
    let plan = queue::plan(&queue);
    let next = execute(app, (market, &queue.offers), &plan).await?;
    if next == Next::Done {
        preempt(app, &plan, &snapshot.priorities).await?;
        waits::store(app, (market, &queue.offers), &plan, &waiting).await?;
    }
    Ok(next)
}

/// Starts the jobs of the plan, and decides again about those that no offer can hold. While a provider does not answer,
/// these wait: it may have one that can.
async fn execute(app: &App, (market, offers): (&Market, &[Offer]), plan: &QueuePlan) -> Result<Next, SchedulerError> {
    let mut next = Next::Done;
    let now = &plan.starts[..plan.starts.len().min(STARTS_PER_MESSAGE)];
    for starts in now.chunks(STARTS_AT_ONCE) {
        let starts: Vec<(JobId, &Offer)> = starts.iter().map(|&(job, offer)| (job, &offers[offer])).collect();
        let results = start::start(app, market, &starts).await?;
        if results.contains(&Started::Failed) {
            // The provider may be at fault: the job has a delay now, and the others wait for the next message.
            return Ok(Next::Done);
        }
        if results.contains(&Started::Skipped) {
            return Ok(Next::PlanAgain);
        }
        if results.contains(&Started::Paused) {
            next = Next::PlanAgain;
        }
    }
    if let Some(&(job_id, _)) = plan.starts.get(STARTS_PER_MESSAGE) {
        push(&mut *app.single().await?, &DispatchJob { job_id }).await?;
    }
    if !market.is_complete() {
        return Ok(next);
    }
    for wait in plan.waits.iter().filter(|wait| wait.reason.is_final()).take(RECONSIDERED_AT_ONCE) {
        reconsider(app, wait.job, market).await?;
        next = Next::PlanAgain;
    }
    Ok(next)
}

/// Stops running jobs at a checkpoint, for jobs that wait.
async fn preempt(app: &App, plan: &QueuePlan, priorities: &HashMap<JobId, Priority>) -> Result<(), SchedulerError> {
    for (running, head) in &plan.preemptions {
        let priority = priorities.get(head).copied().unwrap_or_default();
        let mut tx = app.begin().await?;
        let is_stopped = job_pause::preempt(&mut tx, *running, priority).await?;
        tx.commit_at(FailPoint::DispatchPreempt).await?;
        if is_stopped {
            PREEMPTIONS.inc([]);
            tracing::info!(job.id = %running, head = %head, "a job is stopped for another one");
        }
    }
    Ok(())
}
