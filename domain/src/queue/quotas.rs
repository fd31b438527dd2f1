//! The limits of each project: its running jobs, and its node time in a month.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    fair_share::{Limits, Shares},
    reasons::WaitReason,
    seconds::{self, Ordered},
    state::{NodeTime, Queue},
};

/// The use of a project's limits.
#[derive(Debug, Clone)]
struct Quota {
    limits: Limits,
    running: u32,
    /// The ends of the jobs that run together, at most as many as the limit.
    ends: BinaryHeap<Reverse<Ordered>>,
    /// The node-seconds of this month that the jobs which run or start are expected to use from now on.
    expected: f64,
    /// The node-seconds that the head is expected to use in this month, until it starts.
    reserved: f64,
}

impl Quota {
    /// Returns the seconds of an interval that are in this month, if the node time is limited.
    fn of_this_month(&self, from: f64, until: f64) -> f64 {
        self.limits.node_time.map_or(0.0, |time| (until.min(time.resets_at) - from).max(0.0))
    }
}

/// The limits of all projects, and their use.
#[derive(Debug, Clone)]
pub(super) struct Quotas {
    projects: Vec<Quota>,
    now: f64,
}

impl Quotas {
    /// Counts the running jobs.
    pub(super) fn of(queue: &Queue, shares: &Shares) -> Self {
        let quota = |limits| Quota { limits, running: 0, ends: BinaryHeap::new(), expected: 0.0, reserved: 0.0 };
        let mut quotas = Self { projects: shares.limits().map(quota).collect(), now: queue.now };
        for run in &queue.running {
            quotas.start(shares.index(run.project), seconds::end(run.ends_at, queue.now));
        }
        quotas
    }

    /// Counts a job that starts now or runs, until the given time.
    pub(super) fn start(&mut self, project: usize, ends_at: f64) {
        self.projects[project].running += 1;
        self.schedule(project, (self.now, ends_at));
    }

    /// Counts the head, so that no other job of its project uses the rest of its limits.
    pub(super) fn reserve(&mut self, project: usize, seconds: f64) {
        let now = self.now;
        let quota = &mut self.projects[project];
        quota.running += 1;
        quota.reserved += quota.of_this_month(now, now + seconds);
    }

    /// Adds a job that runs at some time, from its start until its end.
    pub(super) fn schedule(&mut self, project: usize, (starts_at, ends_at): (f64, f64)) {
        let quota = &mut self.projects[project];
        quota.expected += quota.of_this_month(starts_at, ends_at);
        if let Some(max) = quota.limits.max_running {
            quota.ends.push(Reverse(Ordered(ends_at)));
            while quota.ends.len() > max as usize {
                quota.ends.pop();
            }
        }
    }

    /// Returns whether a job of the project may start now that is expected to run for some seconds. Next to the head of
    /// its own project, only one that leaves the head's node time.
    pub(super) fn admits(&self, project: usize, seconds: f64) -> bool {
        let quota = &self.projects[project];
        let leaves_the_head_its_time = |time: NodeTime| {
            let job = quota.of_this_month(self.now, self.now + seconds);
            quota.reserved <= 0.0 || time.used + quota.expected + quota.reserved + job <= time.max
        };
        self.used_up(project).is_none() && quota.limits.node_time.is_none_or(leaves_the_head_its_time)
    }

    /// Returns the reason why no job of the project may start now, if a limit is used up.
    pub(super) fn used_up(&self, project: usize) -> Option<WaitReason> {
        let quota = &self.projects[project];
        let running = quota.running;
        if let Some(max_running) = quota.limits.max_running.filter(|&max| running >= max) {
            return Some(WaitReason::Quota { running, max_running });
        }
        let NodeTime { used, max, .. } = quota.limits.node_time?;
        let expected = quota.expected + quota.reserved;
        (used + expected >= max).then_some(WaitReason::NodeHours {
            used: used as u64,
            expected: expected as u64,
            max: max as u64,
        })
    }

    /// Returns the time from which the project's next job may run, if all others end as expected; `None`: never.
    pub(super) fn opens_at(&self, project: usize) -> Option<f64> {
        let quota = &self.projects[project];
        let opens_at = match quota.limits.max_running {
            Some(0) => return None,
            Some(max) if quota.ends.len() >= max as usize => quota.ends.peek().map(|&Reverse(Ordered(at))| at)?,
            _ => self.now,
        };
        let used_up = quota.limits.node_time.filter(|time| time.used + quota.expected >= time.max);
        Some(used_up.map_or(opens_at, |time| time.resets_at.max(opens_at)))
    }
}
