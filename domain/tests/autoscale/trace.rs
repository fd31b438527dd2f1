//! A recorded load: requests of an open loop with bursts, as a replica answered them (`scripts/record-trace`).

use super::{
    pool::{Decided, Request, replay, reversals},
    simulation::{REACTION_BAR, REVERSALS_BAR, SETTINGS, figure},
};

const TRACE: &str = include_str!("../../testdata/requests.trace");

/// The length of the trace, in seconds, after which it is repeated.
const SECONDS: f64 = 180.0;

/// The load over the capacity from which on more replicas are overdue.
const OVERLOAD: f64 = 1.25;

fn recorded() -> Vec<Request> {
    let lines = TRACE.lines().filter(|line| !line.starts_with('#'));
    let seconds = |text: &str| text.parse::<f64>().unwrap() / 1000.0;
    let requests = lines.map(|line| line.split_once(' ').unwrap());
    requests.map(|(at, took)| Request { at: seconds(at), seconds: seconds(took) }).collect()
}

/// Returns the trace of several tenants, each at another time of it, repeated for `seconds`. From `doubled` on, each
/// request comes twice.
fn tenants(count: u32, seconds: f64, doubled: f64) -> Vec<Request> {
    let trace = recorded();
    let mut all = Vec::new();
    for tenant in 0..count {
        let offset = SECONDS * f64::from(tenant) / f64::from(count);
        for round in 0..(seconds / SECONDS).ceil() as u32 {
            for request in &trace {
                let at = (request.at + offset) % SECONDS + SECONDS * f64::from(round);
                let times = if at >= doubled { 2 } else { 1 };
                all.extend(std::iter::repeat_n(Request { at, ..*request }, times));
            }
        }
    }
    all.sort_by(|a, b| a.at.total_cmp(&b.at));
    all
}

/// Returns the longest time for which the load was above the capacity of the replicas that were wanted.
fn longest_overload(decisions: &[Decided]) -> f64 {
    let (mut longest, mut since): (f64, Option<f64>) = (0.0, None);
    for decided in decisions {
        let capacity = f64::from(decided.replicas.max(1) * SETTINGS.target_concurrency);
        if decided.requests < OVERLOAD * capacity {
            since = None;
        } else {
            longest = longest.max(decided.at - *since.get_or_insert(decided.at - 1.0));
        }
    }
    longest
}

#[test]
fn recorded_bursts_change_the_direction_rarely() {
    let mut most: f64 = 0.0;
    for count in [1, 2, 4] {
        let decisions = replay(&SETTINGS, 3600, &tenants(count, 3600.0, f64::INFINITY));
        let settled: Vec<Decided> = decisions.into_iter().filter(|decided| decided.at > 600.0).collect();
        assert!(settled.iter().all(|decided| decided.replicas > 0), "there are always requests");
        most = most.max(f64::from(reversals(&settled)) / 5.0);
    }
    figure("pool_trace_reversals_per_10_min", most, REVERSALS_BAR);
}

#[test]
fn a_recorded_load_that_doubles_is_answered_within_seconds() {
    let mut longest: f64 = 0.0;
    for count in [4, 8, 12] {
        let decisions = replay(&SETTINGS, 720, &tenants(count, 720.0, 620.0));
        let most = |from: f64, until: f64| {
            let within = decisions.iter().filter(|decided| decided.at > from && decided.at <= until);
            within.map(|decided| decided.replicas).max().unwrap_or(0)
        };
        assert!(most(620.0, 720.0) > most(300.0, 620.0), "{count} tenants");
        longest = longest.max(longest_overload(&decisions));
    }
    figure("pool_trace_overload_seconds", longest, REACTION_BAR);
}
