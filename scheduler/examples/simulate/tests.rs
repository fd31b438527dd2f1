//! The short form of the replay, and the controls of its checks.

use attune_domain::queue::{Queue, QueuePlan, WaitReason};

use super::*;
use crate::{checks::Checks, replay::job_id};

/// A short form of the replay.
fn short() -> Workload {
    workload::mixed(&mut Random::new(SEED), 900, LOAD)
}

#[test]
fn a_short_replay_loses_no_job_and_delays_no_head() {
    let Workload { jobs, .. } = short();
    let outcome = replay(&jobs, &conditions(f64::INFINITY), &queue::plan);
    assert_eq!(outcome.ended, jobs.len());
    assert!(outcome.starts.iter().zip(&jobs).all(|(start, job)| start.is_some_and(|start| start >= job.since)));
    // All training was done once, through all preemptions.
    let (trained, real): (f64, f64) = (outcome.trained.iter().sum(), jobs.iter().map(|job| job.seconds).sum());
    assert!((trained / real - 1.0).abs() < 1e-6, "{trained} of {real}");
    assert_eq!((outcome.checks.head_delays, outcome.checks.preemption_cycles), (0, 0));
}

#[test]
fn a_light_tenant_waits_for_its_own_jobs_when_it_is_alone() {
    let light = workload::light(&short());
    assert!(light.jobs.len() > 20 && light.jobs.iter().all(|job| job.tenant == LIGHT));
    let outcome = planned(&light, &conditions(f64::INFINITY));
    assert_eq!(outcome.ended, light.jobs.len());
    let waits = outcome.waits(&light.jobs, LIGHT, 0.0, f64::INFINITY);
    assert!(percentile(&waits, 0.1) < 60.0 && percentile(&waits, 0.95) > 60.0, "{waits:?}");
}

#[test]
fn a_timed_step_has_running_jobs_accounts_and_limits() {
    let workload = short();
    let queue = busy(&workload::at_once(&workload, 900), &conditions(f64::INFINITY), 400);
    assert_eq!(queue.waiting.len(), 400);
    let slots: usize = workload::pools().iter().map(|pool| pool.free_slots).sum();
    assert!(queue.running.len() < slots && 2 * queue.running.len() > slots, "{} run", queue.running.len());
    assert!(queue.projects.iter().filter(|share| share.used > 0.0).count() > TENANTS / 2);
    assert!(queue.projects.iter().any(|share| share.node_time.is_some() && share.max_running.is_some()));
    assert!(queue::plan(&queue).starts.iter().all(|(job, _)| queue.waiting.iter().any(|waiting| waiting.job == *job)));
}

#[test]
fn saturated_tenants_have_equal_shares() {
    let equal = workload::equal(&mut Random::new(SEED), 300);
    let saturated = Conditions { limits: vec![None; TENANTS], backlog: Some(BACKLOG), ..conditions(SATURATED / 4.0) };
    let outcome = replay(&equal, &saturated, &queue::plan);
    assert!(jain(&outcome.trained) >= 0.9, "{:?}", outcome.trained);
}

/// The control of the check for delays: a packer that knows no reservation.
#[test]
fn a_policy_that_fills_every_hole_is_found_to_delay_heads() {
    let Workload { jobs, .. } = short();
    let greedy = |queue: &Queue| {
        let planned = queue::plan(queue);
        let is_head = |reason: &WaitReason| matches!(reason, WaitReason::Room { .. } | WaitReason::Stopping { .. });
        let head = planned.waits.iter().find(|wait| is_head(&wait.reason)).map(|wait| wait.job);
        let mut plan = clairvoyant::pack(queue, &jobs, |job| job.since);
        plan.starts.retain(|&(job, _)| Some(job) != head);
        QueuePlan { waits: planned.waits, ..plan }
    };
    let outcome = replay(&jobs, &conditions(f64::INFINITY), &greedy);
    assert!(outcome.checks.head_delays > 0);
}

/// The control of the check for cycles.
#[test]
fn a_cycle_of_preemptions_is_found() {
    let queue = Queue { now: 0.0, waiting: vec![], running: vec![], offers: vec![], projects: vec![] };
    let mut checks = Checks::default();
    for (stopped, head, cycles) in [(1, 2, 0), (2, 3, 0), (3, 1, 1)] {
        let preemptions = vec![(job_id(stopped), job_id(head))];
        checks.check(&queue, &QueuePlan { starts: vec![], preemptions, waits: vec![] });
        assert_eq!(checks.preemption_cycles, cycles);
    }
}

#[test]
fn the_figures_are_those_of_their_definitions() {
    assert_eq!([jain(&[2.0, 2.0]), jain(&[4.0, 0.0])], [1.0, 0.5]);
    let numbers: Vec<f64> = (1..=20).map(f64::from).collect();
    assert_eq!([percentile(&numbers, 0.95), percentile(&numbers, 0.5), percentile(&[], 0.5)], [19.0, 10.0, 0.0]);
}
