//! The checks of every plan: backfill and preemption.

use std::collections::{HashMap, HashSet};

use attune_domain::{
    bytes::Bytes,
    id::JobId,
    queue::{self, Queue, QueuePlan, STOP_SECONDS, WaitReason},
};

/// The memory of a run and its expected end, on the offer of an index.
type Held = (usize, Bytes, f64);

/// The number of violations, and the preemptions that they are found in.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// The times that backfill delayed the head.
    pub(crate) head_delays: usize,
    /// The preemptions of a job by one that it had stopped, directly or through others.
    pub(crate) preemption_cycles: usize,
    /// The number of preemptions.
    pub(crate) preemptions: usize,
    /// The jobs for which each job was stopped.
    stopped_for: HashMap<JobId, Vec<JobId>>,
}

impl Checks {
    /// Checks a plan.
    pub(crate) fn check(&mut self, queue: &Queue, plan: &QueuePlan) {
        self.head_delays += usize::from(delays_head(queue, plan));
        for &(stopped, head) in &plan.preemptions {
            self.preemptions += 1;
            self.preemption_cycles += usize::from(self.reaches(head, stopped));
            self.stopped_for.entry(stopped).or_default().push(head);
        }
    }

    /// Returns whether a job was stopped for another one, directly or through others.
    fn reaches(&self, from: JobId, to: JobId) -> bool {
        let (mut seen, mut next) = (HashSet::new(), vec![from]);
        while let Some(job) = next.pop() {
            if job == to {
                return true;
            }
            if seen.insert(job) {
                next.extend(self.stopped_for.get(&job).into_iter().flatten());
            }
        }
        false
    }
}

/// Returns whether the head starts later with the jobs that overtake it than without them, by the expected ends.
fn delays_head(queue: &Queue, plan: &QueuePlan) -> bool {
    let is_head = |reason: &WaitReason| matches!(reason, WaitReason::Room { .. } | WaitReason::Stopping { .. });
    let Some(head) = plan.waits.iter().find(|wait| is_head(&wait.reason)) else { return false };
    let mut starts: HashMap<JobId, usize> = plan.starts.iter().copied().collect();
    if starts.is_empty() {
        return false;
    }
    let mut held = running(queue, plan);
    let mut start = |index: usize, held: &mut Vec<Held>| {
        let job = &queue.waiting[index];
        if let Some(offer) = starts.remove(&job.job) {
            held.push((offer, job.need, queue.now + job.seconds));
        }
    };
    let ordered = queue::order(queue);
    let place = ordered.iter().position(|&index| queue.waiting[index].job == head.job).unwrap_or(ordered.len());
    ordered[..place].iter().for_each(|&index| start(index, &mut held));
    let need = ordered.get(place).map_or(Bytes(0), |&index| queue.waiting[index].need);
    let without = earliest(queue, &held, need);
    ordered[place..].iter().for_each(|&index| start(index, &mut held));
    earliest(queue, &held, need) > without
}

/// Returns the runs, once the plan's preemptions are requested.
fn running(queue: &Queue, plan: &QueuePlan) -> Vec<Held> {
    let stopped: HashSet<JobId> = plan.preemptions.iter().map(|&(job, _)| job).collect();
    let offers = queue.offers.iter().enumerate().map(|(index, offer)| (offer.name.as_str(), index));
    let offers: HashMap<&str, usize> = offers.collect();
    let held = queue.running.iter().map(|run| {
        // As the planner: a late run needs as long again as it is late.
        let late = (queue.now - run.ends_at).max(0.0);
        let end = run.ends_at.max(queue.now) + late;
        let end = if stopped.contains(&run.job) { end.min(queue.now + STOP_SECONDS) } else { end };
        (offers[run.offer.1.as_str()], run.memory, end)
    });
    held.collect()
}

/// Returns the earliest time at which an offer has room for a job, next to the given runs and no other.
fn earliest(queue: &Queue, held: &[Held], need: Bytes) -> f64 {
    let mut earliest = f64::INFINITY;
    for (index, offer) in queue.offers.iter().enumerate().filter(|(_, offer)| offer.memory >= need) {
        let runs = queue.running.iter().filter(|run| run.offer.1 == offer.name).count();
        let mut here: Vec<(f64, Bytes)> =
            held.iter().filter(|&&(on, _, _)| on == index).map(|&(_, memory, end)| (end, memory)).collect();
        here.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut used: Bytes = here.iter().map(|&(_, memory)| memory).sum();
        let mut count = here.len();
        let mut time = queue.now;
        for (end, memory) in here {
            if used + need <= offer.memory && count < offer.free_slots + runs {
                break;
            }
            used = used.saturating_sub(memory);
            count -= 1;
            time = end;
        }
        earliest = earliest.min(time);
    }
    earliest
}
