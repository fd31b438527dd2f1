//! The plan of the queue: which waiting jobs start now, where, and why the others wait. Pure: the same input has the
//! same result, so the scheduler and `make simulate` share it. `docs/SCHEDULING.md` describes the policy.

mod backfill;
mod estimate;
mod fair_share;
mod pool;
mod preemption;
mod quotas;
mod reasons;
mod results;
mod seconds;
mod state;
#[cfg(test)]
mod tests;

pub use fair_share::{HALF_LIFE_SECONDS, decayed_use, order};
pub use preemption::STOP_SECONDS;
pub use reasons::WaitReason;
pub use results::{QueuePlan, Wait};
pub use state::{NodeTime, ProjectShare, Queue, RunningJob, WaitingJob};

use backfill::Reservation;
use fair_share::Shares;
use pool::Pools;
use quotas::Quotas;

/// Plans the queue. Each waiting job appears once in the result: it starts, or it waits with a reason.
///
/// One step over 10,000 waiting jobs sorts them once and visits each twice.
#[must_use]
pub fn plan(queue: &Queue) -> QueuePlan {
    let shares = Shares::of(queue);
    let mut pools = Pools::of(queue);
    let ordered = fair_share::ordered(queue, &shares);
    let mut quotas = Quotas::of(queue, &shares);
    let mut plan = QueuePlan { starts: Vec::new(), preemptions: Vec::new(), waits: Vec::new() };
    let mut waiting = Vec::new();
    let mut head: Option<Reservation> = None;
    for &index in &ordered.possible {
        let job = &queue.waiting[index];
        let project = shares.index(job.project);
        if !quotas.admits(project, seconds::of(job.seconds)) {
            waiting.push(index);
        } else if let Some(pool) = backfill::choose(job, &pools, queue.now, head.as_mut()) {
            pools.start(pool, job, queue.now);
            quotas.start(project, queue.now + pools.seconds(pool, job));
            plan.starts.push((job.job, pools.offer(pool)));
        } else {
            if head.is_none() {
                plan.preemptions = preemption::choose(queue, &shares, &mut pools, job);
                head = Reservation::of(index, job, &pools);
                if head.is_some() {
                    quotas.reserve(project, seconds::of(job.seconds));
                }
            }
            waiting.push(index);
        }
    }
    let context = estimate::Context { queue, shares: &shares, head, stopping: plan.preemptions.len() };
    plan.waits = estimate::waits(&context, &waiting, (pools, quotas));
    plan.waits.extend(estimate::impossible(queue, &ordered.impossible, waiting.len()));
    plan
}
