//! One planning pass: it loads the queue, plans it, and executes the plan.

use std::collections::HashMap;

use attune_domain::{
    bytes::Bytes,
    id::JobId,
    job::Priority,
    offer::{Offer, Refusal, right_size},
    queue::{self, Queue, QueuePlan, Wait, WaitReason},
    run::Plan,
};
use attune_store::{
    jobs::{
        job_pause,
        snapshot::{self, PLANNED_PER_PROJECT},
        waiting::{self, Place},
    },
    queue::{DispatchJob, push},
};

use super::{
    measure, plan_words,
    start::{self, Started},
};
use crate::{
    app::{self, App},
    error::SchedulerError,
    reconciler,
};

/// The maximum number of jobs started per message; another message follows for the rest.
const STARTS_AT_ONCE: usize = 20;

/// The maximum number of plans per message. The queue is planned again when a job did not take its place.
const MOST_PLANS: usize = 5;

/// Plans the queue and executes the plan, under the placement lock.
///
/// # Errors
/// [`SchedulerError`]: the next pass tries again.
pub(crate) async fn run(app: &App) -> Result<(), SchedulerError> {
    let _placing = app.placing.lock().await;
    for _ in 0..MOST_PLANS {
        if once(app).await? == Next::Done {
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

/// The waiting jobs by ID, for the execution of a plan.
struct Waiting {
    needs: HashMap<JobId, Bytes>,
    priorities: HashMap<JobId, Priority>,
    kept: HashMap<JobId, Plan>,
}

/// Plans once.
async fn once(app: &App) -> Result<Next, SchedulerError> {
    let mut conn = app.single().await?;
    let offers = app::offers(app, &mut conn).await?;
    measure::all(&mut conn, &offers).await?;
    let snapshot = snapshot::load(&mut conn, PLANNED_PER_PROJECT).await?;
    drop(conn);
    if snapshot.waiting.is_empty() {
        return Ok(Next::Done);
    }
    let needs = snapshot.waiting.iter().map(|job| (job.job, job.need)).collect();
    let waiting = Waiting { needs, priorities: snapshot.priorities, kept: snapshot.kept };
    let queue = Queue {
        now: snapshot.now,
        waiting: snapshot.waiting,
        running: snapshot.running,
        offers,
        projects: snapshot.projects,
    };
    let plan = queue::plan(&queue);
    let next = execute(app, &queue.offers, &plan).await?;
    if next == Next::Done {
        preempt(app, &plan, &waiting).await?;
        store_waits(app, &queue.offers, &plan, &waiting).await?;
    }
    Ok(next)
}

/// Starts the jobs of the plan, and decides again about those that no offer can hold.
async fn execute(app: &App, offers: &[Offer], plan: &QueuePlan) -> Result<Next, SchedulerError> {
    let mut next = Next::Done;
    for &(job, offer) in plan.starts.iter().take(STARTS_AT_ONCE) {
        match start::start(app, job, &offers[offer]).await? {
            Started::Done => {}
            Started::Paused => next = Next::PlanAgain,
            Started::Skipped => return Ok(Next::PlanAgain),
            // The provider may be at fault: the job has a delay now, and the others wait for the next message.
            Started::Failed => return Ok(Next::Done),
        }
    }
    if let Some(&(job_id, _)) = plan.starts.get(STARTS_AT_ONCE) {
        push(&mut *app.single().await?, &DispatchJob { job_id }).await?;
    }
    for wait in plan.waits.iter().filter(|wait| wait.reason.is_final()).take(STARTS_AT_ONCE) {
        start::reconsider(app, wait.job).await?;
        next = Next::PlanAgain;
    }
    Ok(next)
}

/// Stops running jobs at a checkpoint, for jobs that wait.
async fn preempt(app: &App, plan: &QueuePlan, waiting: &Waiting) -> Result<(), SchedulerError> {
    for (running, head) in &plan.preemptions {
        let priority = waiting.priorities.get(head).copied().unwrap_or_default();
        let mut tx = app.begin().await?;
        if job_pause::preempt(&mut tx, *running, priority).await? {
            tracing::info!(job.id = %running, head = %head, "a job is stopped for another one");
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Stores the places of the jobs that wait, and stops idle replicas that hold the memory of one.
async fn store_waits(app: &App, offers: &[Offer], plan: &QueuePlan, waiting: &Waiting) -> Result<(), SchedulerError> {
    let (mut places, mut for_plan) = (Vec::with_capacity(plan.waits.len()), Vec::new());
    let mut is_crowded = false;
    for wait in &plan.waits {
        let refusals = refusals(wait, offers, waiting);
        is_crowded |= refusals.iter().any(|refusal| matches!(refusal, Refusal::Crowded { .. }));
        let kept = waiting.kept.get(&wait.job).filter(|_| !refusals.is_empty());
        let reason = match kept {
            Some(kept) => plan_words::waiting_for_plan(kept, &refusals),
            None => wait.reason.to_string(),
        };
        if kept.is_some() {
            for_plan.push((wait.job, reason.clone()));
        }
        let (job, position, estimated_start) = (wait.job, wait.position, wait.estimated_start);
        places.push(Place { job, position, reason, estimated_start });
    }
    let mut tx = app.begin().await?;
    waiting::store(&mut tx, &places).await?;
    for (job, reason) in &for_plan {
        waiting::for_plan(&mut tx, *job, reason).await?;
    }
    tx.commit().await?;
    if is_crowded {
        reconciler::stop_idle_replicas(app).await?;
    }
    Ok(())
}

/// Returns the reasons why no offer has room for a job now. Empty if one has, or if the job waits for its project's
/// other jobs.
fn refusals(wait: &Wait, offers: &[Offer], waiting: &Waiting) -> Vec<Refusal> {
    match (&wait.reason, waiting.needs.get(&wait.job)) {
        (WaitReason::Quota { .. }, _) | (_, None) => Vec::new(),
        (_, Some(need)) => right_size(*need, true, offers).err().unwrap_or_default(),
    }
}
