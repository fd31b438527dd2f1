//! The replay of a workload with a virtual clock.

use std::collections::{HashMap, VecDeque};

use attune_domain::{
    id::{JobId, ProjectId},
    offer::Offer,
    queue::{self, NodeTime, ProjectShare, Queue, QueuePlan, RunningJob, WaitingJob},
};
use uuid::Uuid;

use crate::{checks::Checks, workload::Job};

/// The interval of the clock, in seconds. A plan is made at each of its times at which a job came, ended or stopped.
const STEP: f64 = 15.0;

/// The time in which a run starts and trains nothing, in seconds.
const START: f64 = 30.0;

/// The time after which the queue of a timed planning step is taken, in seconds.
const WARM_UP: f64 = 1800.0;

/// The time until the next month begins, in seconds, for the quotas of a timed planning step.
const REST_OF_MONTH: f64 = 10.0 * 86_400.0;

/// The node time that a project with a quota may use in a month, in seconds.
const NODE_TIME: f64 = 100.0 * 3600.0;

/// The time after which the longest replay must have ended, in seconds.
const LONGEST: f64 = 100.0 * 86_400.0;

/// A rule that plans the queue.
pub(crate) type Policy<'a> = &'a dyn Fn(&Queue) -> QueuePlan;

/// The conditions of a replay.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    pub(crate) offers: Vec<Offer>,
    /// The maximum number of running jobs of each tenant; its length is the number of tenants.
    pub(crate) limits: Vec<Option<u32>>,
    /// `Some`: each tenant always has this many waiting jobs, instead of jobs that come at their times.
    pub(crate) backlog: Option<usize>,
    /// The end of the measured time. A replay with a backlog ends then; any other when all jobs have ended.
    pub(crate) measured: f64,
}

/// The results of a replay.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The time of each job's first start.
    pub(crate) starts: Vec<Option<f64>>,
    /// The number of ended jobs.
    pub(crate) ended: usize,
    /// The node-seconds in which each tenant's jobs trained, within the measured time, less what was lost.
    pub(crate) trained: Vec<f64>,
    pub(crate) checks: Checks,
}

impl Outcome {
    /// Returns the waits of a tenant's jobs that were submitted in a time, in order of length.
    pub(crate) fn waits(&self, jobs: &[Job], tenant: usize, from: f64, until: f64) -> Vec<f64> {
        let own = jobs.iter().zip(&self.starts).filter(|(job, _)| job.tenant == tenant);
        let own = own.filter(|(job, _)| (from..until).contains(&job.since));
        let mut waits: Vec<f64> = own.filter_map(|(job, start)| Some(start.as_ref()? - job.since)).collect();
        waits.sort_by(f64::total_cmp);
        waits
    }
}

/// A run of a job.
#[derive(Debug, Clone)]
struct Run {
    job: usize,
    offer: usize,
    start: f64,
    /// The real end.
    end: f64,
    expected_end: f64,
    /// The time at which it stops for another job.
    stop: Option<f64>,
}

/// The state of a replay.
struct Replay<'a> {
    jobs: &'a [Job],
    conditions: &'a Conditions,
    queue: Queue,
    runs: Vec<Run>,
    /// The jobs of each tenant that are not submitted yet.
    upcoming: Vec<VecDeque<usize>>,
    /// The number of waiting jobs of each tenant.
    queued: Vec<usize>,
    /// The rest of each job's training, in seconds.
    left: Vec<f64>,
    outcome: Outcome,
}

/// Returns the ID of a job.
pub(crate) fn job_id(job: usize) -> JobId {
    JobId::new(Uuid::from_u128(job as u128))
}

/// Returns the number of the job with an ID.
pub(crate) fn job_index(job: JobId) -> usize {
    job.uuid().as_u128() as usize
}

fn project_id(tenant: usize) -> ProjectId {
    ProjectId::new(Uuid::from_u128(tenant as u128))
}

/// Returns a job as it waits, with `left` seconds to train.
fn waiting(number: usize, job: &Job, left: f64) -> WaitingJob {
    WaitingJob {
        job: job_id(number),
        project: project_id(job.tenant),
        priority: job.priority,
        since: job.since,
        need: job.need,
        seconds: START + left * job.expected / job.seconds,
        was_preempted: false,
        offers: None,
    }
}

/// Replays jobs under a policy.
pub(crate) fn replay(jobs: &[Job], conditions: &Conditions, policy: Policy<'_>) -> Outcome {
    let mut replay = Replay::new(jobs, conditions);
    let is_over = |replay: &Replay<'_>| match conditions.backlog {
        Some(_) => replay.queue.now >= conditions.measured,
        None => replay.outcome.ended == jobs.len(),
    };
    while !is_over(&replay) {
        replay.step(policy);
        assert!(replay.queue.now < LONGEST, "{} of {} jobs have ended", replay.outcome.ended, jobs.len());
    }
    for run in std::mem::take(&mut replay.runs) {
        replay.count(&run);
    }
    replay.outcome
}

/// Returns the queue at a moment at which runs have ended: jobs run on all offers, every project has an account, every
/// third one a quota of node time, and `count` jobs wait.
///
/// # Panics
/// Fewer jobs wait.
pub(crate) fn busy(jobs: &[Job], conditions: &Conditions, count: usize) -> Queue {
    let mut replay = Replay::new(jobs, conditions);
    loop {
        let has_ended = replay.end_runs();
        let has_come = replay.submit();
        replay.refresh();
        if has_ended && replay.queue.now >= WARM_UP {
            break;
        }
        if has_ended || has_come {
            let plan = queue::plan(&replay.queue);
            replay.start(&plan);
            replay.stop(&plan);
        }
        replay.advance();
    }
    let mut queue = replay.queue;
    assert!(queue.waiting.len() >= count, "{} jobs wait", queue.waiting.len());
    queue.waiting.truncate(count);
    for share in queue.projects.iter_mut().step_by(3) {
        let resets_at = queue.now + REST_OF_MONTH;
        share.node_time = Some(NodeTime { used: share.used, max: NODE_TIME, resets_at });
    }
    queue
}

impl<'a> Replay<'a> {
    fn new(jobs: &'a [Job], conditions: &'a Conditions) -> Self {
        let tenants = conditions.limits.len();
        let mut upcoming = vec![VecDeque::new(); tenants];
        for (number, job) in jobs.iter().enumerate() {
            upcoming[job.tenant].push_back(number);
        }
        for own in &mut upcoming {
            own.make_contiguous().sort_by(|&a: &usize, &b| jobs[a].since.total_cmp(&jobs[b].since));
        }
        let share = |(tenant, &max_running): (usize, &Option<u32>)| ProjectShare {
            project: project_id(tenant),
            weight: 1.0,
            used: 0.0,
            max_running,
            node_time: None,
        };
        let queue = Queue {
            now: 0.0,
            waiting: Vec::new(),
            running: Vec::new(),
            offers: conditions.offers.clone(),
            projects: conditions.limits.iter().enumerate().map(share).collect(),
        };
        let outcome = Outcome {
            starts: vec![None; jobs.len()],
            ended: 0,
            trained: vec![0.0; tenants],
            checks: Checks::default(),
        };
        let left = jobs.iter().map(|job| job.seconds).collect();
        Self { jobs, conditions, queue, runs: Vec::new(), upcoming, queued: vec![0; tenants], left, outcome }
    }

    fn step(&mut self, policy: Policy<'_>) {
        let has_ended = self.end_runs();
        let has_come = self.submit();
        if has_ended || has_come {
            self.refresh();
            let plan = policy(&self.queue);
            self.outcome.checks.check(&self.queue, &plan);
            self.start(&plan);
            self.stop(&plan);
        }
        self.advance();
    }

    /// Submits the jobs whose time has come; returns whether there were any.
    fn submit(&mut self) -> bool {
        let before = self.queue.waiting.len();
        for (tenant, upcoming) in self.upcoming.iter_mut().enumerate() {
            while let Some(&number) = upcoming.front() {
                let job = &self.jobs[number];
                let has_come = match self.conditions.backlog {
                    Some(backlog) => self.queued[tenant] < backlog,
                    None => job.since <= self.queue.now,
                };
                if !has_come {
                    break;
                }
                upcoming.pop_front();
                self.queued[tenant] += 1;
                self.queue.waiting.push(waiting(number, job, job.seconds));
            }
        }
        self.queue.waiting.len() > before
    }

    /// Ends the runs whose time has come and requeues those that stop; returns whether there were any.
    fn end_runs(&mut self) -> bool {
        let now = self.queue.now;
        let is_over = |run: &Run| run.end <= now || run.stop.is_some_and(|stop| stop <= now);
        let (over, rest): (Vec<Run>, Vec<Run>) = self.runs.drain(..).partition(is_over);
        self.runs = rest;
        for run in &over {
            self.count(run);
            if run.end <= now {
                self.outcome.ended += 1;
                continue;
            }
            let job = &self.jobs[run.job];
            self.left[run.job] -= (now - run.start - START).max(0.0);
            self.queued[job.tenant] += 1;
            let again = waiting(run.job, job, self.left[run.job]);
            self.queue.waiting.push(WaitingJob { was_preempted: true, ..again });
        }
        !over.is_empty()
    }

    /// Adds the time in which a run trained until now to its tenant's.
    fn count(&mut self, run: &Run) {
        let until = run.end.min(self.queue.now).min(self.conditions.measured);
        self.outcome.trained[self.jobs[run.job].tenant] += (until - run.start - START).max(0.0);
    }

    /// Writes the runs and the free room of the offers into the queue.
    fn refresh(&mut self) {
        let queue = &mut self.queue;
        queue.offers.clone_from(&self.conditions.offers);
        queue.running.clear();
        for run in &self.runs {
            let (job, offer) = (&self.jobs[run.job], &mut queue.offers[run.offer]);
            assert!(offer.free_slots > 0 && offer.free() >= job.need, "{} is overcommitted", offer.name);
            offer.free_slots -= 1;
            offer.reserved = offer.reserved + job.need;
            let elapsed = queue.now - run.start;
            queue.running.push(RunningJob {
                job: job_id(run.job),
                project: project_id(job.tenant),
                priority: job.priority,
                is_preemptible: job.is_preemptible && run.stop.is_none(),
                offer: (offer.provider.clone(), offer.name.clone()),
                memory: job.need,
                ends_at: run.stop.unwrap_or(run.expected_end),
                lost_seconds: START + elapsed.min(START),
            });
        }
    }

    fn start(&mut self, plan: &QueuePlan) {
        let now = self.queue.now;
        let starts: HashMap<JobId, usize> = plan.starts.iter().copied().collect();
        let before = self.queue.waiting.len();
        for job in self.queue.waiting.extract_if(.., |job| starts.contains_key(&job.job)) {
            let number = job_index(job.job);
            self.queued[self.jobs[number].tenant] -= 1;
            self.outcome.starts[number].get_or_insert(now);
            self.runs.push(Run {
                job: number,
                offer: starts[&job.job],
                start: now,
                end: now + START + self.left[number],
                expected_end: now + job.seconds,
                stop: None,
            });
        }
        let started = before - self.queue.waiting.len();
        assert_eq!(started, plan.starts.len(), "a plan starts a job twice, or one that does not wait");
    }

    fn stop(&mut self, plan: &QueuePlan) {
        for &(stopped, _) in &plan.preemptions {
            let run = self.runs.iter_mut().find(|run| job_id(run.job) == stopped);
            let stop = run.map(|run| run.stop.replace(self.queue.now + 2.0 * STEP));
            assert_eq!(stop, Some(None), "a plan stops a job twice, or one that does not run");
        }
    }

    /// Moves the clock, and what the tenants have used.
    fn advance(&mut self) {
        for share in &mut self.queue.projects {
            share.used *= (-STEP / queue::HALF_LIFE_SECONDS).exp2();
        }
        for run in &self.runs {
            self.queue.projects[self.jobs[run.job].tenant].used += queue::decayed_use(0.0, STEP, STEP);
        }
        self.queue.now += STEP;
    }
}
