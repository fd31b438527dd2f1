//! The limits of running jobs per project.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    fair_share::Shares,
    seconds::{self, Ordered},
    state::Queue,
};

/// The running jobs of a project, and their limit.
#[derive(Debug, Clone)]
struct Quota {
    max_running: Option<u32>,
    running: u32,
    /// The ends of the jobs that run together, at most as many as the limit.
    ends: BinaryHeap<Reverse<Ordered>>,
}

/// The running jobs of all projects, and their limits.
#[derive(Debug, Clone)]
pub(super) struct Quotas(Vec<Quota>);

impl Quotas {
    /// Counts the running jobs.
    pub(super) fn of(queue: &Queue, shares: &Shares) -> Self {
        let quota = |max_running| Quota { max_running, running: 0, ends: BinaryHeap::new() };
        let mut quotas = Self(shares.limits().map(quota).collect());
        for run in &queue.running {
            quotas.start(shares.index(run.project), seconds::end(run.ends_at, queue.now));
        }
        quotas
    }

    /// Counts a job that starts now or runs, until the given time.
    pub(super) fn start(&mut self, project: usize, ends_at: f64) {
        self.0[project].running += 1;
        self.schedule(project, ends_at);
    }

    /// Counts the head, so that no other job of its project uses the rest of its limit.
    pub(super) fn reserve(&mut self, project: usize) {
        self.0[project].running += 1;
    }

    /// Adds a job that runs at some time, until the given time.
    pub(super) fn schedule(&mut self, project: usize, ends_at: f64) {
        let quota = &mut self.0[project];
        if let Some(max) = quota.max_running {
            quota.ends.push(Reverse(Ordered(ends_at)));
            while quota.ends.len() > max as usize {
                quota.ends.pop();
            }
        }
    }

    /// Returns the running jobs and their limit, if no other job may start now.
    pub(super) fn used_up(&self, project: usize) -> Option<(u32, u32)> {
        let Quota { max_running, running, .. } = self.0[project];
        max_running.filter(|&max| running >= max).map(|max| (running, max))
    }

    /// Returns the time from which the project's next job may run, if all others end as expected; `None`: never.
    pub(super) fn opens_at(&self, project: usize, now: f64) -> Option<f64> {
        let quota = &self.0[project];
        match quota.max_running {
            Some(0) => None,
            Some(max) if quota.ends.len() >= max as usize => quota.ends.peek().map(|&Reverse(Ordered(at))| at),
            _ => Some(now),
        }
    }
}
