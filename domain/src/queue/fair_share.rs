//! Weighted fair share: the order of the waiting jobs by what their projects have used.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use super::{
    seconds::{self, Ordered},
    state::{NodeTime, ProjectShare, Queue, WaitingJob},
};
use crate::{id::ProjectId, offer};

/// The time after which use counts half, in seconds: a day.
pub const HALF_LIFE_SECONDS: f64 = 86_400.0;

/// The smallest weight of a project.
const LEAST_WEIGHT: f64 = 1e-6;

/// The multiple of its fair share from which a project is far above it, so that its preemptible runs may be stopped for
/// other projects. Less than 2: of two projects, none can be above twice its share.
const OVERUSE: f64 = 1.5;

/// Returns the node-seconds of a run, decayed by their age: `∫ 2^(−(now − t) / half-life) dt` from its start until its
/// end, or until now if it still runs.
#[must_use]
pub fn decayed_use(from: f64, until: f64, now: f64) -> f64 {
    let left = |at: f64| (-(now - at) / HALF_LIFE_SECONDS).exp2();
    (left(until) - left(from)).max(0.0) * HALF_LIFE_SECONDS / std::f64::consts::LN_2
}

/// The limits of a project.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    /// The maximum number of running jobs.
    pub(super) max_running: Option<u32>,
    /// The node time of this month, and its maximum.
    pub(super) node_time: Option<NodeTime>,
}

/// The account of a project.
#[derive(Debug)]
struct Account {
    weight: f64,
    limits: Limits,
    /// The decayed use, and the expected rest of what runs.
    seconds: f64,
}

/// The accounts of the projects that have waiting or running jobs.
#[derive(Debug)]
pub(super) struct Shares {
    index: HashMap<ProjectId, usize>,
    accounts: Vec<Account>,
    /// The account per weight that all projects would have if all had their fair share.
    level: f64,
}

impl Shares {
    /// Adds up the accounts.
    pub(super) fn of(queue: &Queue) -> Self {
        let given: HashMap<_, _> = queue.projects.iter().map(|share| (share.project, share)).collect();
        let mut shares = Self { index: HashMap::new(), accounts: Vec::new(), level: 0.0 };
        for job in &queue.waiting {
            shares.add(job.project, &given);
        }
        for run in &queue.running {
            let account = shares.add(run.project, &given);
            shares.accounts[account].seconds += seconds::end(run.ends_at, queue.now) - queue.now;
        }
        let used: f64 = shares.accounts.iter().map(|account| account.seconds).sum();
        let weight: f64 = shares.accounts.iter().map(|account| account.weight).sum();
        shares.level = used / weight.max(LEAST_WEIGHT);
        shares
    }

    fn add(&mut self, project: ProjectId, given: &HashMap<ProjectId, &ProjectShare>) -> usize {
        *self.index.entry(project).or_insert_with(|| {
            let share = given.get(&project);
            self.accounts.push(Account {
                weight: share.map_or(1.0, |share| share.weight).max(LEAST_WEIGHT),
                limits: share.map_or_else(Limits::default, |share| Limits {
                    max_running: share.max_running,
                    node_time: share.node_time,
                }),
                seconds: share.map_or(0.0, |share| share.used.max(0.0)),
            });
            self.accounts.len() - 1
        })
    }

    /// Returns the index of a project that has waiting or running jobs.
    pub(super) fn index(&self, project: ProjectId) -> usize {
        self.index[&project]
    }

    /// Returns the limits of each project.
    pub(super) fn limits(&self) -> impl Iterator<Item = Limits> {
        self.accounts.iter().map(|account| account.limits)
    }

    /// Returns whether a project is far above its fair share even without some seconds of its account.
    pub(super) fn is_far_above(&self, project: usize, without: f64) -> bool {
        let account = &self.accounts[project];
        (account.seconds - without) / account.weight > OVERUSE * self.level
    }

    /// Returns whether a project is not above its fair share even with some more seconds in its account.
    pub(super) fn is_within(&self, project: usize, with: f64) -> bool {
        let account = &self.accounts[project];
        (account.seconds + with) / account.weight <= self.level
    }
}

/// The waiting jobs in order.
#[derive(Debug)]
pub(super) struct Order {
    /// The indices of the jobs for which an offer is large enough.
    pub(super) possible: Vec<usize>,
    /// The indices of the others, the oldest first.
    pub(super) impossible: Vec<usize>,
}

/// Orders the waiting jobs. Next is always the project with the smallest account per weight, at a tie that of the
/// oldest job, and of that project the job with the highest priority, then the oldest. Each job adds its whole expected
/// duration to the account at once, as in start-time fair queuing (Goyal, Vin and Cheng 1996).
pub(super) fn ordered(queue: &Queue, shares: &Shares) -> Order {
    let usable = queue.offers.iter().filter(|offer| offer::unsupported(offer).is_none());
    let largest = usable.map(|offer| offer.margin.room(offer.memory)).max();
    let fits = |job: &WaitingJob| match &job.offers {
        None => largest.is_some_and(|room| room >= job.need),
        Some(ranking) => ranking.order.iter().any(|&offer| queue.offers[offer].is_large_enough(job.need)),
    };
    let age = |index: usize| (Ordered(queue.waiting[index].since), queue.waiting[index].job);
    let mut order = Order { possible: Vec::with_capacity(queue.waiting.len()), impossible: Vec::new() };
    // The jobs of each project, the next one last.
    let mut jobs: Vec<Vec<usize>> = vec![Vec::new(); shares.accounts.len()];
    for (index, job) in queue.waiting.iter().enumerate() {
        if fits(job) {
            jobs[shares.index(job.project)].push(index);
        } else {
            order.impossible.push(index);
        }
    }
    order.impossible.sort_by_key(|&index| age(index));
    let mut accounts: Vec<f64> = shares.accounts.iter().map(|account| account.seconds).collect();
    let mut heap = BinaryHeap::new();
    let entry = |project: usize, account: f64, next: usize| {
        Reverse((Ordered(account / shares.accounts[project].weight), age(next), project))
    };
    for (project, jobs) in jobs.iter_mut().enumerate() {
        jobs.sort_by_key(|&index| Reverse((Reverse(queue.waiting[index].priority), age(index))));
        heap.extend(jobs.last().map(|&next| entry(project, accounts[project], next)));
    }
    while let Some(Reverse((_, _, project))) = heap.pop() {
        if let Some(index) = jobs[project].pop() {
            accounts[project] += seconds::of(queue.waiting[index].seconds);
            order.possible.push(index);
        }
        heap.extend(jobs[project].last().map(|&next| entry(project, accounts[project], next)));
    }
    order
}

/// Returns the indices of the waiting jobs in the order in which the planner considers them. Those for which no offer
/// is large enough are last.
#[must_use]
pub fn order(queue: &Queue) -> Vec<usize> {
    let Order { mut possible, impossible } = ordered(queue, &Shares::of(queue));
    possible.extend(impossible);
    possible
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{bytes::Bytes, id::JobId, offer::Offer};

    const DAY: f64 = HALF_LIFE_SECONDS;

    fn project(number: u128) -> ProjectId {
        ProjectId::new(Uuid::from_u128(number))
    }

    /// A queue of jobs of an hour, each with its project, its priority and its time of entry.
    fn queue(jobs: &[(u128, i32, f64)], projects: &[(u128, f64, f64)]) -> Queue {
        let waiting = (0..).zip(jobs).map(|(number, &(owner, priority, since))| WaitingJob {
            job: JobId::new(Uuid::from_u128(number)),
            project: project(owner),
            priority,
            since,
            need: Bytes(1),
            seconds: 3600.0,
            was_preempted: false,
            offers: None,
        });
        let share = |&(number, weight, used): &(u128, f64, f64)| ProjectShare {
            project: project(number),
            weight,
            used,
            max_running: None,
            node_time: None,
        };
        let offer = Offer::cpu("local", "local", Bytes(10), 1);
        let projects = projects.iter().map(share).collect();
        Queue { now: 0.0, waiting: waiting.collect(), running: Vec::new(), offers: vec![offer], projects }
    }

    #[test]
    fn use_counts_half_after_a_half_life() {
        let hour = decayed_use(-3600.0, 0.0, 0.0);
        assert!((3540.0..3600.0).contains(&hour), "{hour}");
        assert!((decayed_use(-3600.0 - DAY, -DAY, 0.0) - hour / 2.0).abs() < 1e-6);
        assert_eq!(decayed_use(0.0, 0.0, 0.0), 0.0);
        // A project that always uses one node has a bounded account.
        assert!((decayed_use(-100.0 * DAY, 0.0, 0.0) - DAY / std::f64::consts::LN_2).abs() < 1.0);
    }

    #[test]
    fn projects_take_turns_and_a_project_that_has_used_more_waits() {
        let jobs = [(1, 0, 0.0), (1, 0, 1.0), (1, 0, 2.0), (2, 0, 3.0), (2, 0, 4.0)];
        assert_eq!(order(&queue(&jobs, &[])), [0, 3, 1, 4, 2]);
        assert_eq!(order(&queue(&jobs, &[(1, 1.0, 3000.0)])), [3, 0, 4, 1, 2]);
        // With three times the weight, three jobs of project 1 count as much as one of project 2.
        assert_eq!(order(&queue(&jobs, &[(1, 3.0, 0.0)])), [0, 3, 1, 2, 4]);
    }

    #[test]
    fn priority_counts_within_a_project_only() {
        let jobs = [(1, 0, 0.0), (2, 0, 1.0), (2, 9, 2.0)];
        assert_eq!(order(&queue(&jobs, &[])), [0, 2, 1]);
    }
}
