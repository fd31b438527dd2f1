//! Preemption: preemptible runs that stop at a checkpoint so that the head of the queue starts.

use std::collections::HashMap;

use super::{
    fair_share::Shares,
    pool::{Pools, Room},
    seconds::{self, Ordered},
    state::{Queue, RunningJob, WaitingJob},
};
use crate::{
    bytes::Bytes,
    id::{JobId, ProjectId},
};

/// The expected time in which a run stops at a checkpoint, in seconds. Runs are stopped only for a head that would wait
/// longer than that.
pub const STOP_SECONDS: f64 = 60.0;

/// The runs that may be stopped for one waiting job.
struct Rule<'a> {
    shares: &'a Shares,
    head: &'a WaitingJob,
    now: f64,
}

impl Rule<'_> {
    /// Returns whether a run may be stopped, after others of its project whose expected rest is `others` seconds.
    ///
    /// Priorities count only within a project, since its users set them. Between projects, the account decides.
    fn allows(&self, run: &RunningJob, others: f64) -> bool {
        if !run.is_preemptible {
            return false;
        }
        if run.project == self.head.project {
            return run.priority < self.head.priority;
        }
        let head = self.shares.index(self.head.project);
        self.shares.is_far_above(self.shares.index(run.project), others)
            && self.shares.is_within(head, seconds::of(self.head.seconds))
    }

    /// Selects runs of one offer to stop until the head has room for its `need` there: those that lose the fewest
    /// node-seconds first.
    fn select<'r>(&self, runs: &[&'r RunningJob], room: Room, need: Bytes) -> Option<Vec<&'r RunningJob>> {
        let mut rests: HashMap<ProjectId, f64> = HashMap::new();
        let mut stopped: Vec<&'r RunningJob> = Vec::new();
        for &run in runs {
            if with(room, &stopped).holds(need) {
                break;
            }
            let rest = rests.entry(run.project).or_default();
            if self.allows(run, *rest) {
                *rest += seconds::end(run.ends_at, self.now) - self.now;
                stopped.push(run);
            }
        }
        // Small runs that were selected before a large one may not be needed with it.
        for place in (0..stopped.len()).rev() {
            let run = stopped.remove(place);
            if !with(room, &stopped).holds(need) {
                stopped.insert(place, run);
            }
        }
        with(room, &stopped).holds(need).then_some(stopped)
    }
}

fn with(room: Room, stopped: &[&RunningJob]) -> Room {
    let memory: Bytes = stopped.iter().map(|run| run.memory).sum();
    Room { memory: room.memory + memory, slots: room.slots.saturating_add(stopped.len()) }
}

/// Selects the runs to stop for a head, all on the offer where that loses the fewest node-seconds, and moves their
/// expected ends. Selects none if the head has room soon, if even that would not give it room, or if a run of the head
/// was itself stopped for another job.
pub(super) fn choose(queue: &Queue, shares: &Shares, pools: &mut Pools, head: &WaitingJob) -> Vec<(JobId, JobId)> {
    let stopped_at = queue.now + STOP_SECONDS;
    if head.was_preempted || pools.earliest(head).is_none_or(|(_, at)| at <= stopped_at) {
        return Vec::new();
    }
    let mut runs: Vec<Vec<&RunningJob>> = pools.all().map(|_| Vec::new()).collect();
    for run in &queue.running {
        if let Some(pool) = pools.of_run(&run.offer) {
            runs[pool].push(run);
        }
    }
    let rule = Rule { shares, head, now: queue.now };
    let selected = pools.large_enough(head).enumerate().filter_map(|(rank, pool)| {
        runs[pool].sort_by_key(|run| (Ordered(run.lost_seconds), run.job));
        let stopped = rule.select(&runs[pool], pools.get(pool).room(), pools.need(pool, head))?;
        let lost: f64 = stopped.iter().map(|run| run.lost_seconds).sum();
        Some((lost, rank, (pool, stopped)))
    });
    let best = selected.min_by_key(|&(lost, rank, _)| (Ordered(lost), rank));
    let Some((_, _, (pool, stopped))) = best else { return Vec::new() };
    for run in &stopped {
        pools.stop(pool, run.job, stopped_at);
    }
    stopped.iter().map(|run| (run.job, head.job)).collect()
}
