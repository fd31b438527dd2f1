//! A simulated pool: requests arrive and are served, and replicas start with a delay.

use std::collections::VecDeque;

use attune_domain::autoscale::{KEPT_SECONDS, Replicas, Sample, Settings, decide};

use super::random::Random;

/// The step of the virtual clock, in seconds.
const STEP: f64 = 0.1;

/// The requests that a replica serves concurrently; more wait.
const SLOTS: usize = 16;

/// The seconds that a replica needs to start.
const COLD_START: f64 = 5.0;

/// The mean duration of a request, in seconds.
pub(super) const MEAN_SECONDS: f64 = 2.0;

/// A decision, and the load that it was based on.
pub(super) struct Decided {
    /// The time of the decision, in seconds.
    pub(super) at: f64,
    /// The wanted number of replicas.
    pub(super) replicas: u32,
    /// The mean requests of the second before.
    pub(super) requests: f64,
}

/// A recorded request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Request {
    /// The time of its arrival, in seconds.
    pub(super) at: f64,
    /// The time from its start to the end of its answer, in seconds.
    pub(super) seconds: f64,
}

/// The state of the pool.
#[derive(Default)]
struct Pool {
    /// The time at which each replica is ready.
    ready_at: Vec<f64>,
    /// The end of each request in progress.
    ends: Vec<f64>,
    /// The duration of each request that waits; `None`: sampled at its start.
    waiting: VecDeque<Option<f64>>,
    last_request: f64,
}

impl Pool {
    fn ready(&self, now: f64) -> usize {
        self.ready_at.iter().filter(|at| **at <= now).count()
    }

    /// Ends, admits and starts requests.
    fn serve(&mut self, now: f64, random: &mut Random) {
        self.ends.retain(|end| *end > now);
        if !self.waiting.is_empty() && self.ready_at.is_empty() {
            self.ready_at.push(now + COLD_START); // the request itself starts the first replica
        }
        while self.ends.len() < self.ready(now) * SLOTS {
            let Some(seconds) = self.waiting.pop_front() else { break };
            self.ends.push(now + seconds.unwrap_or_else(|| random.exponential(MEAN_SECONDS)));
        }
        if self.requests() > 0 {
            self.last_request = now;
        }
    }

    fn requests(&self) -> usize {
        self.ends.len() + self.waiting.len()
    }

    fn resize(&mut self, replicas: u32, now: f64) {
        let replicas = replicas as usize;
        self.ready_at.sort_by(f64::total_cmp);
        self.ready_at.truncate(replicas);
        self.ready_at.resize(replicas, now + COLD_START);
    }
}

/// Simulates a pool for `seconds`, under a load whose mean requests in progress are a function of the time, with
/// Poisson arrivals. Returns a decision for each second.
pub(super) fn simulate(settings: &Settings, seconds: u32, seed: u64, load: impl Fn(f64) -> f64) -> Vec<Decided> {
    run(settings, seconds, seed, |now, pool, random| {
        // A Poisson number of arrivals: exponential gaps that fit into the step.
        let rate = load(now) / MEAN_SECONDS;
        let mut gap = if rate > 0.0 { random.exponential(1.0 / rate) } else { STEP };
        while gap < STEP {
            pool.waiting.push_back(None);
            gap += random.exponential(1.0 / rate);
        }
    })
}

/// Simulates a pool for `seconds`, under recorded requests, ordered by their arrival. Returns a decision for each
/// second.
pub(super) fn replay(settings: &Settings, seconds: u32, requests: &[Request]) -> Vec<Decided> {
    let mut rest = requests.iter().peekable();
    run(settings, seconds, 0, |now, pool, _| {
        while let Some(request) = rest.next_if(|request| request.at < now + STEP) {
            pool.waiting.push_back(Some(request.seconds));
        }
    })
}

/// Runs the simulation. `arrive` adds the requests that arrive in the step from a time on.
fn run(
    settings: &Settings,
    seconds: u32,
    seed: u64,
    mut arrive: impl FnMut(f64, &mut Pool, &mut Random),
) -> Vec<Decided> {
    let (mut pool, mut random) = (Pool::default(), Random(seed));
    let (mut samples, mut decisions): (Vec<Sample>, Vec<Decided>) = (Vec::new(), Vec::new());
    for second in 0..seconds {
        let mut area = 0.0;
        let steps = (1.0 / STEP).round() as u32;
        for step in 0..steps {
            let now = f64::from(second) + f64::from(step) * STEP;
            arrive(now, &mut pool, &mut random);
            pool.serve(now, &mut random);
            area += pool.requests() as f64 * STEP;
        }
        let now = f64::from(second) + 1.0;
        let ready = pool.ready(now) as u32;
        samples.push(Sample { at: now, requests: area, ready });
        samples.retain(|sample| now - sample.at <= KEPT_SECONDS);
        let current = pool.ready_at.len() as u32;
        let replicas = Replicas { current, ready, idle_seconds: now - pool.last_request };
        let decision = decide(settings, &samples, replicas);
        pool.resize(decision.replicas, now);
        decisions.push(Decided { at: now, replicas: decision.replicas, requests: area });
    }
    decisions
}

/// Returns the number of times that the number of replicas changed in the direction opposite to its last change.
pub(super) fn reversals(decisions: &[Decided]) -> u32 {
    let changes = decisions.windows(2).map(|pair| i64::from(pair[1].replicas) - i64::from(pair[0].replicas));
    let signs: Vec<i64> = changes.filter(|change| *change != 0).map(i64::signum).collect();
    signs.windows(2).filter(|pair| pair[0] != pair[1]).count() as u32
}
