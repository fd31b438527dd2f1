//! The packer that knows the real durations and owes no tenant anything: the bar for utilisation.

use attune_domain::queue::{Queue, QueuePlan};

use crate::{
    replay::{Conditions, job_index, replay},
    workload::Job,
};

/// A key of jobs; the job with the smallest goes first.
pub(crate) type Key = fn(&Job) -> f64;

/// The packer's orders: the oldest first, the longest first, the smallest first.
const KEYS: [Key; 3] = [|job| job.since, |job| -job.seconds, |job| job.need.0 as f64];

/// Returns the most node-seconds that the packer trains in the measured time, with the best of its orders.
pub(crate) fn node_seconds(jobs: &[Job], conditions: &Conditions) -> f64 {
    let trained = |key: &Key| {
        let outcome = replay(jobs, conditions, &|queue: &Queue| pack(queue, jobs, *key));
        outcome.trained.iter().sum::<f64>()
    };
    KEYS.iter().map(trained).fold(0.0, f64::max)
}

/// Starts each job that fits, in the order of a key, on the smallest offer that has room.
pub(crate) fn pack(queue: &Queue, jobs: &[Job], key: Key) -> QueuePlan {
    let mut plan = QueuePlan { starts: Vec::new(), preemptions: Vec::new(), waits: Vec::new() };
    let mut offers = queue.offers.clone();
    let mut slots: usize = offers.iter().map(|offer| offer.free_slots).sum();
    if slots == 0 {
        return plan;
    }
    let mut waiting: Vec<_> = queue.waiting.iter().map(|job| (key(&jobs[job_index(job.job)]), job)).collect();
    waiting.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (_, job) in waiting {
        let room = offers.iter_mut().enumerate().filter(|(_, offer)| offer.free_slots > 0 && offer.free() >= job.need);
        if let Some((index, offer)) = room.min_by_key(|(_, offer)| offer.memory) {
            offer.free_slots -= 1;
            offer.reserved = offer.reserved + job.need;
            plan.starts.push((job.job, index));
            slots -= 1;
        }
        if slots == 0 {
            break;
        }
    }
    plan
}
