//! The reasons of the waiting jobs, and the times at which they are expected to start.

use super::{
    backfill::Reservation, fair_share::Shares, pool::Pools, quotas::Quotas, reasons::WaitReason, results::Wait,
    state::Queue,
};

/// The decisions about the queue.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) queue: &'a Queue,
    pub(super) shares: &'a Shares,
    /// The reservation of the head.
    pub(super) head: Option<Reservation>,
    /// The number of runs that are stopped for the head.
    pub(super) stopping: usize,
}

impl Context<'_> {
    fn is_head(&self, index: usize) -> bool {
        self.head.as_ref().is_some_and(|head| head.waiting == index)
    }

    /// Schedules a job as the next one, and returns the time of its start.
    fn next_start(&self, index: usize, (pools, quotas): (&mut Pools, &mut Quotas)) -> Option<f64> {
        let job = &self.queue.waiting[index];
        let project = self.shares.index(job.project);
        let opens_at = quotas.opens_at(project)?;
        let (pool, at) = pools.earliest(job)?;
        if opens_at <= at {
            pools.start(pool, job, at);
        }
        let start = opens_at.max(at);
        quotas.schedule(project, (start, start + pools.seconds(pool, job)));
        Some(start)
    }

    /// Returns the reason why a job waits, `ahead` jobs being ahead of it.
    fn reason(&self, index: usize, ahead: usize, (pools, quotas): (&Pools, &Quotas)) -> WaitReason {
        let job = &self.queue.waiting[index];
        let used_up = quotas.used_up(self.shares.index(job.project));
        let reserved = match (&self.head, used_up) {
            (Some(_), _) if self.is_head(index) && self.stopping > 0 => {
                return WaitReason::Stopping { runs: self.stopping };
            }
            (Some(head), _) if self.is_head(index) => Some(head.pool),
            (_, Some(reason)) => return reason,
            // The rest of the memory is held by replicas: no end is known.
            _ if pools.earliest(job).is_none() => pools.large_enough(job).next(),
            _ => None,
        };
        match reserved {
            Some(pool) => WaitReason::Room {
                offer: self.queue.offers[pools.offer(pool)].name.clone(),
                need: pools.need(pool, job),
                free: pools.get(pool).room().memory,
                free_slots: pools.get(pool).room().slots,
            },
            None => WaitReason::Ahead { jobs: ahead },
        }
    }
}

/// Describes the waiting jobs, in order.
///
/// The times follow from the expected ends, without any new job. They are approximate for deep positions: each offer
/// starts its jobs in order, without backfill, and a job that waits for the limit of its project takes no room from
/// the jobs behind it. Behind the node time of a month, all are expected at the beginning of the next.
pub(super) fn waits(context: &Context<'_>, waiting: &[usize], (now, quotas): (Pools, Quotas)) -> Vec<Wait> {
    let (mut pools, mut scheduled) = (now.clone(), quotas.clone());
    let mut starts = vec![None; waiting.len()];
    // The head has its reservation before jobs that are ahead of it and wait for the limit of their project.
    let head = waiting.iter().position(|&index| context.is_head(index));
    let others = (0..waiting.len()).filter(|&place| Some(place) != head);
    for place in head.into_iter().chain(others) {
        starts[place] = context.next_start(waiting[place], (&mut pools, &mut scheduled));
    }
    let describe = |(ahead, (&index, estimated_start)): (usize, (&usize, Option<f64>))| {
        let reason = context.reason(index, ahead, (&now, &quotas));
        Wait { job: context.queue.waiting[index].job, position: position(ahead), reason, estimated_start }
    };
    waiting.iter().zip(starts).enumerate().map(describe).collect()
}

/// Describes the jobs for which no offer is large enough; they are behind all others.
pub(super) fn impossible<'a>(queue: &'a Queue, jobs: &'a [usize], ahead: usize) -> impl Iterator<Item = Wait> + 'a {
    let describe = move |(place, &index): (usize, &usize)| {
        let job = &queue.waiting[index];
        let refusals = queue.offers.iter().enumerate().filter_map(|(index, offer)| job.refusal(index, offer)).collect();
        let reason = WaitReason::NoOffer { need: job.need, refusals };
        Wait { job: job.job, position: position(ahead + place), reason, estimated_start: None }
    };
    jobs.iter().enumerate().map(describe)
}

fn position(ahead: usize) -> u32 {
    u32::try_from(ahead + 1).unwrap_or(u32::MAX)
}
