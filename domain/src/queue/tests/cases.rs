//! One small case per rule.

use std::sync::Arc;

use super::*;
use crate::{
    memory::{Margin, with_margin},
    offer::{ComputeLimits, OfferDevice, Ranking, Refusal, Slowness, Terms},
};

fn job(number: u128, project: u128, need: u64, seconds: f64) -> WaitingJob {
    let (job, project, need) = (job_id(number), project_id(project), Bytes(need));
    WaitingJob { job, project, priority: 0, since: 0.0, need, seconds, was_preempted: false, offers: None }
}

/// A run on the first offer.
fn run(number: u128, project: u128, memory: u64, ends_at: f64) -> RunningJob {
    RunningJob {
        job: job_id(number),
        project: project_id(project),
        priority: 0,
        is_preemptible: true,
        offer: name(&offer(0, 0, 0)),
        memory: Bytes(memory),
        ends_at,
        lost_seconds: 10.0,
    }
}

/// A queue on one offer of 100 bytes and 4 slots.
fn queue(waiting: &[WaitingJob], running: &[RunningJob]) -> Queue {
    let offer = offer(0, 100, 4 - running.len());
    let reserved = running.iter().map(|run| run.memory).sum();
    Queue {
        now: 0.0,
        waiting: waiting.to_vec(),
        running: running.to_vec(),
        offers: vec![Offer { reserved, ..offer }],
        projects: Vec::new(),
    }
}

/// A queue in which project 1 holds all memory, with one large and two small runs, and project 2 waits.
fn held_by_one_project() -> Queue {
    let small = |number| RunningJob { lost_seconds: 5.0, ..run(number, 1, 20, 100.0) };
    queue(&[job(1, 2, 60, 100.0)], &[run(11, 1, 60, 5000.0), small(12), small(13)])
}

#[test]
fn each_offer_has_its_own_margin() {
    let with = |number, memory, percent| Offer { margin: Margin::measured(percent), ..offer(number, memory, 2) };
    let offers = vec![with(0, 1190, 20), with(1, 1200, 20), with(2, 2200, 10)];
    let need = with_margin(Bytes(1000));
    let jobs: Vec<_> = (1..=3).map(|number| job(number, 1, need.0, 100.0)).collect();
    let mut queue = Queue { offers, ..queue(&jobs, &[]) };
    // It needs 1200 bytes on the first two: one job fits on the second and, with 1100 bytes each, two on the third.
    let mut offers: Vec<usize> = plan(&queue).starts.into_iter().map(|(_, offer)| offer).collect();
    offers.sort_unstable();
    assert_eq!(offers, [1, 2, 2]);
    queue.offers.truncate(1);
    let waits = plan(&queue).waits;
    let refusals = vec![Refusal::TooSmall { offer: "0".into(), short_by: Bytes(10) }];
    assert_eq!(waits[0].reason, WaitReason::NoOffer { need, refusals });
    // A run that ends frees what it reserved.
    let mut queue = Queue { offers: vec![Offer { reserved: Bytes(600), ..with(0, 1200, 20) }], ..queue };
    queue.running = vec![run(9, 2, 600, 50.0)];
    assert_eq!(plan(&queue).waits[0].estimated_start, Some(50.0));
}

#[test]
fn a_job_overtakes_the_head_only_if_it_ends_before_or_needs_other_memory() {
    let head = WaitingJob { priority: 1, ..job(1, 1, 80, 100.0) };
    let too_long = WaitingJob { since: 1.0, ..job(2, 1, 30, 101.0) };
    let short = WaitingJob { since: 2.0, ..job(3, 1, 30, 100.0) };
    let spare = WaitingJob { since: 3.0, ..job(4, 1, 20, 900.0) };
    let queue = queue(&[spare, short, too_long, head], &[run(9, 2, 50, 100.0)]);
    let plan = plan(&queue);
    assert_eq!(plan.starts, [(job_id(3), 0), (job_id(4), 0)]);
    let room = WaitReason::Room { offer: "0".into(), need: Bytes(80), free: Bytes(0), free_slots: 1 };
    assert_eq!(plan.waits[0], Wait { job: job_id(1), position: 1, reason: room, estimated_start: Some(100.0) });
    let reason = WaitReason::Ahead { jobs: 1 };
    assert_eq!(plan.waits[1], Wait { job: job_id(2), position: 2, reason, estimated_start: Some(200.0) });
}

#[test]
fn a_project_at_its_limit_waits_and_delays_no_other_project() {
    let mut queue = queue(&[job(1, 1, 10, 50.0), job(2, 1, 10, 50.0), job(3, 2, 10, 50.0)], &[run(9, 1, 10, 70.0)]);
    queue.projects =
        vec![ProjectShare { project: project_id(1), weight: 9.0, used: 0.0, max_running: Some(1), node_time: None }];
    let plan = plan(&queue);
    assert_eq!(plan.starts, [(job_id(3), 0)]);
    let expected: Vec<_> = plan.waits.iter().map(|wait| wait.estimated_start).collect();
    assert_eq!(expected, [Some(70.0), Some(120.0)]);
    assert!(plan.waits.iter().all(|wait| wait.reason == WaitReason::Quota { running: 1, max_running: 1 }));
}

/// The share of project 1, with node time of 1000 seconds a month that ends at 5000.
fn limited(used: f64) -> Vec<ProjectShare> {
    let node_time = Some(NodeTime { used, max: 1000.0, resets_at: 5000.0 });
    vec![ProjectShare { project: project_id(1), weight: 1.0, used: 0.0, max_running: None, node_time }]
}

#[test]
fn a_project_without_node_time_waits_for_the_next_month_and_delays_no_other_project() {
    let mut queue = queue(&[job(1, 1, 10, 50.0), job(2, 2, 10, 50.0)], &[run(9, 1, 10, 70.0)]);
    queue.projects = limited(1000.0);
    let plan = plan(&queue);
    assert_eq!(plan.starts, [(job_id(2), 0)]);
    let reason = WaitReason::NodeHours { used: 1000, expected: 70, max: 1000 };
    assert_eq!(plan.waits, [Wait { job: job_id(1), position: 1, reason, estimated_start: Some(5000.0) }]);
    assert!(plan.preemptions.is_empty(), "running jobs are not stopped");
}

#[test]
fn the_expected_rest_of_the_jobs_that_run_and_start_counts_as_used() {
    // 300 are used, 300 are expected of the run, and 350 of the first job: the second one may use the rest.
    let jobs = [job(1, 1, 10, 350.0), job(2, 1, 10, 350.0), job(3, 1, 10, 350.0)];
    let mut queue = queue(&jobs, &[run(9, 1, 10, 300.0)]);
    queue.projects = limited(300.0);
    let plan = plan(&queue);
    assert_eq!(plan.starts, [(job_id(1), 0), (job_id(2), 0)]);
    let reason = WaitReason::NodeHours { used: 300, expected: 1000, max: 1000 };
    assert_eq!(plan.waits, [Wait { job: job_id(3), position: 1, reason, estimated_start: Some(5000.0) }]);
}

#[test]
fn a_job_of_the_heads_project_leaves_the_head_its_node_time() {
    let head = WaitingJob { priority: 1, ..job(1, 1, 80, 500.0) };
    let queue_with = |seconds: f64| {
        let mut queue = queue(&[head.clone(), job(2, 1, 10, seconds)], &[run(9, 2, 50, 700.0)]);
        queue.projects = limited(300.0);
        queue
    };
    let short = plan(&queue_with(200.0));
    assert_eq!((short.starts, short.waits[0].estimated_start), (vec![(job_id(2), 0)], Some(700.0)));
    let long = plan(&queue_with(300.0));
    assert!(long.starts.is_empty());
    assert_eq!((&long.waits[1].reason, long.waits[1].estimated_start), (&WaitReason::Ahead { jobs: 1 }, Some(700.0)));
}

#[test]
fn a_job_that_no_offer_can_hold_is_last_and_has_the_refusals() {
    let plan = plan(&queue(&[job(1, 1, 101, 50.0), job(2, 1, 10, 50.0)], &[]));
    assert_eq!(plan.starts, [(job_id(2), 0)]);
    assert!(plan.waits[0].reason.is_final());
    assert!(plan.waits[0].reason.to_string().ends_with("0 has 1 B too little memory"));
}

/// Ranks the offers of a queue for a job of 100 seconds.
fn ranked(queue: &Queue, limits: &ComputeLimits, slowness: &[Slowness]) -> Option<Arc<Ranking>> {
    Some(Arc::new(Ranking::of(&queue.offers, Terms { limits, seconds: 100.0, slowness, now: queue.now })))
}

#[test]
fn a_job_starts_where_it_costs_least_and_ends_as_early_as_that_offer_allows() {
    let mut queue = queue(&[job(1, 1, 60, 100.0), job(2, 1, 100, 100.0)], &[]);
    queue.offers = vec![
        Offer { micro_usd_per_hour: 1000, ..offer(0, 100, 4) },
        Offer { micro_usd_per_hour: 3000, ..offer(1, 100, 4) },
    ];
    let slow = Slowness { provider: "test".into(), offer: "1".into(), factor: 0.25 };
    let offers = ranked(&queue, &ComputeLimits::default(), &[slow]);
    queue.waiting.iter_mut().for_each(|job| job.offers.clone_from(&offers));
    queue.offers[0].reserved = Bytes(50);
    let plan = plan(&queue);
    assert_eq!(plan.starts, [(job_id(1), 1)]);
    assert_eq!(plan.waits[0].estimated_start, Some(25.0));
}

#[test]
fn a_job_never_starts_on_an_offer_that_its_limits_refuse() {
    let mut queue = queue(&[job(1, 1, 10, 100.0), job(2, 1, 10, 100.0)], &[]);
    queue.offers[0].micro_usd_per_hour = 1000;
    let cheap = ComputeLimits { max_micro_usd_per_hour: Some(999), ..ComputeLimits::default() };
    queue.waiting[0].offers = ranked(&queue, &cheap, &[]);
    let plan = plan(&queue);
    assert_eq!(plan.starts, [(job_id(2), 0)]);
    let [wait] = &plan.waits[..] else { panic!("not waiting") };
    assert!(wait.reason.is_final());
    assert_eq!(
        wait.reason.to_string(),
        "No machine can run the job: 0 costs 0.001000 USD per hour, above compute.max_usd_per_hour, 0.000999"
    );
}

#[test]
fn an_offer_whose_device_is_not_in_this_build_holds_no_job() {
    let mut queue = queue(&[job(1, 1, 10, 100.0)], &[]);
    queue.offers[0].device = OfferDevice::Cuda { product: "NVIDIA L4".into(), count: 1, memory: Bytes(100) };
    let plan = plan(&queue);
    assert!(plan.starts.is_empty() && plan.waits[0].reason.is_final(), "{plan:?}");
}

#[test]
fn without_offers_jobs_wait_with_a_reason_that_may_change() {
    let mut queue = queue(&[job(1, 1, 1, 50.0)], &[]);
    queue.offers.clear();
    let plan = plan(&queue);
    let [wait] = &plan.waits[..] else { panic!("not waiting") };
    assert!(!wait.reason.is_final() && wait.reason.to_string().contains("no provider offers a machine"));
}

#[test]
fn memory_that_replicas_hold_gives_no_reservation() {
    let mut queue = queue(&[job(1, 1, 60, 50.0), job(2, 1, 10, 50.0)], &[]);
    queue.offers[0].reserved = Bytes(50);
    let plan = plan(&queue);
    assert_eq!(plan.starts, [(job_id(2), 0)]);
    assert_eq!(plan.waits[0].estimated_start, None);
    assert!(matches!(plan.waits[0].reason, WaitReason::Room { .. }), "{:?}", plan.waits[0]);
}

#[test]
fn a_project_below_its_share_stops_the_run_that_loses_least() {
    let plan = plan(&held_by_one_project());
    // The two small runs together free too little: with the large one, neither is needed.
    assert_eq!(plan.preemptions, [(job_id(11), job_id(1))]);
    assert_eq!(plan.waits[0].reason, WaitReason::Stopping { runs: 1 });
    assert_eq!(plan.waits[0].estimated_start, Some(STOP_SECONDS));
}

#[test]
fn a_job_stops_no_run_that_is_not_preemptible_or_ends_soon_nor_any_after_it_was_stopped() {
    let none = |change: fn(&mut Queue)| {
        let mut queue = held_by_one_project();
        change(&mut queue);
        assert!(plan(&queue).preemptions.is_empty());
    };
    none(|queue| queue.waiting[0].was_preempted = true);
    none(|queue| queue.running.iter_mut().for_each(|run| run.is_preemptible = false));
    none(|queue| queue.running[0].ends_at = STOP_SECONDS);
    // The waiting job's project has used more than its share.
    none(|queue| {
        let (project, used) = (project_id(2), 50_000.0);
        queue.projects = vec![ProjectShare { project, weight: 1.0, used, max_running: None, node_time: None }];
    });
}

#[test]
fn within_a_project_only_a_higher_priority_stops_a_run() {
    let mut queue = held_by_one_project();
    queue.waiting[0].project = project_id(1);
    assert!(plan(&queue).preemptions.is_empty());
    queue.waiting[0].priority = 1;
    assert_eq!(plan(&queue).preemptions, [(job_id(11), job_id(1))]);
}

#[test]
fn a_late_run_is_expected_to_need_as_long_as_it_is_late() {
    let plan = plan(&queue(&[job(1, 1, 80, 50.0)], &[run(9, 1, 50, -30.0)]));
    assert_eq!(plan.waits[0].estimated_start, Some(30.0));
}
