//! `make simulate`: replays a workload with a virtual clock through the planner that the scheduler uses, and prints its
//! fairness, its utilisation and its cost. Everything but the time of a planning step depends on the seed alone.

mod checks;
mod clairvoyant;
mod figures;
mod random;
mod replay;
#[cfg(test)]
mod tests;
mod workload;

use std::time::Instant;

use attune_domain::queue;

use crate::{
    figures::{at_least, at_most, jain, percentile},
    random::Random,
    replay::{Conditions, Outcome, busy, replay},
    workload::{LIGHT, TENANTS, Workload},
};

const SEED: u64 = 13;

/// The number of jobs of the mixed workload.
const JOBS: usize = 15_000;

/// The submitted node-seconds over those of all slots in the same time.
const LOAD: f64 = 1.1;

/// The number of jobs of each tenant under saturation: more than it can run.
const JOBS_PER_TENANT: usize = 1000;

/// The number of waiting jobs of each tenant under saturation.
const BACKLOG: usize = 20;

/// The measured time under saturation, in seconds.
const SATURATED: f64 = 4.0 * 86_400.0;

/// The number of waiting jobs of the timed step.
const DEEP: usize = 10_000;

/// The number of jobs that have started or ended before the timed step, at most.
const STARTED: usize = 2000;

/// The number of timed steps.
const STEPS: usize = 20;

fn main() {
    let mut random = Random::new(SEED);
    let workload = workload::mixed(&mut random, JOBS, LOAD);
    let flood_at = workload.span / 4.0;
    let flooded = workload::flooded(&mut random, &workload, flood_at);
    let equal = workload::equal(&mut random, JOBS_PER_TENANT);
    println!("{JOBS} jobs of {TENANTS} tenants in {:.0} hours, seed {SEED}", workload.span / 3600.0);

    let conditions = conditions(workload.span);
    let light = workload::light(&workload);
    let alone = planned(&light, &conditions);
    let usual = planned(&workload, &conditions);
    let with_flood = planned(&flooded, &conditions);
    figures::print_waits(&workload, flood_at, [&usual, &with_flood]);
    let p95 =
        |outcome: &Outcome, of: &Workload| percentile(&outcome.waits(&of.jobs, LIGHT, flood_at, workload.span), 0.95);
    let (p95_alone, p95_flooded) = (p95(&alone, &light), p95(&with_flood, &workload));
    println!("The light tenant alone: p95 {p95_alone:.0}");

    let free = Conditions { limits: vec![None; TENANTS], ..conditions.clone() };
    let packed = clairvoyant::node_seconds(&workload.jobs, &free);
    let trained: f64 = usual.trained.iter().sum();
    println!("\nNode-hours: planned {:.0}, by the clairvoyant packer {:.0}", trained / 3600.0, packed / 3600.0);

    let saturated = Conditions { backlog: Some(BACKLOG), measured: SATURATED, ..free };
    let shares = replay(&equal, &saturated, &queue::plan);
    figures::print_shares(&shares);

    let checks = [&alone, &usual, &with_flood, &shares].map(|outcome| &outcome.checks);
    println!("\nPreemptions: {}", checks.iter().map(|checks| checks.preemptions).sum::<usize>());
    at_most("light_tenant_p95_wait_ratio", p95_flooded / p95_alone, 1.5);
    at_least("jain_index", jain(&shares.trained), 0.95);
    at_least("utilisation_of_clairvoyant", trained / packed, 0.85);
    at_most("planning_step_ms", step_ms(&workload, &conditions), 50.0);
    at_most("head_delays", checks.iter().map(|checks| checks.head_delays).sum::<usize>() as f64, 0.0);
    at_most("preemption_cycles", checks.iter().map(|checks| checks.preemption_cycles).sum::<usize>() as f64, 0.0);
}

fn conditions(measured: f64) -> Conditions {
    Conditions { offers: workload::pools(), limits: workload::limits(), backlog: None, measured }
}

/// Replays a workload through the planner, until all jobs have ended.
fn planned(workload: &Workload, conditions: &Conditions) -> Outcome {
    replay(&workload.jobs, conditions, &queue::plan)
}

/// Returns the 95th percentile of the time of a planning step with many waiting jobs, next to running ones, in
/// milliseconds.
fn step_ms(workload: &Workload, conditions: &Conditions) -> f64 {
    let queue = busy(&workload::at_once(workload, DEEP + STARTED), conditions, DEEP);
    println!("A step plans {} waiting and {} running jobs", queue.waiting.len(), queue.running.len());
    let timed = |_| {
        let begin = Instant::now();
        let plan = queue::plan(&queue);
        let elapsed = begin.elapsed();
        assert_eq!(plan.starts.len() + plan.waits.len(), queue.waiting.len(), "a plan covers all waiting jobs");
        elapsed.as_secs_f64() * 1000.0
    };
    let mut times: Vec<f64> = (0..STEPS).map(timed).collect();
    times.sort_by(f64::total_cmp);
    percentile(&times, 0.95)
}
