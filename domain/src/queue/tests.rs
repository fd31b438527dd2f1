//! Properties of every plan, by an independent computation of the earliest room.

mod cases;
mod replay;

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, option, prelude::*};
use uuid::Uuid;

use super::*;
use crate::{
    bytes::Bytes,
    id::{JobId, ProjectId},
    offer::Offer,
};

const PROJECTS: u128 = 4;

fn job_id(number: u128) -> JobId {
    JobId::new(Uuid::from_u128(number))
}

fn project_id(number: u128) -> ProjectId {
    ProjectId::new(Uuid::from_u128(number))
}

fn offer(name: usize, memory: u64, free_slots: usize) -> Offer {
    Offer { free_slots, ..Offer::cpu("test", name.to_string(), Bytes(memory), 1) }
}

fn name(offer: &Offer) -> (String, String) {
    (offer.provider.clone(), offer.name.clone())
}

/// Any waiting job, without its ID.
fn waiting() -> impl Strategy<Value = WaitingJob> {
    let numbers = (0..PROJECTS, 0..3_i32, -100.0..0.0_f64, 1_u64..120, 1.0..500.0_f64, any::<bool>());
    numbers.prop_map(|(project, priority, since, need, seconds, was_preempted)| WaitingJob {
        job: job_id(0),
        project: project_id(project),
        priority,
        since,
        need: Bytes(need),
        seconds,
        was_preempted,
        offers: None,
    })
}

/// Any run, without its ID and its offer, and the number of an offer.
fn running() -> impl Strategy<Value = (RunningJob, usize)> {
    let numbers = (0..PROJECTS, 0..3_i32, any::<bool>(), 1_u64..60, -50.0..500.0_f64, 0.0..100.0_f64, 0_usize..4);
    numbers.prop_map(|(project, priority, is_preemptible, memory, ends_at, lost_seconds, offer)| {
        let run = RunningJob {
            job: job_id(0),
            project: project_id(project),
            priority,
            is_preemptible,
            offer: (String::new(), String::new()),
            memory: Bytes(memory),
            ends_at,
            lost_seconds,
        };
        (run, offer)
    })
}

/// Places each run on its offer if it fits there.
fn place(queue: &mut Queue, runs: Vec<(RunningJob, usize)>) {
    for (number, (run, place)) in (1000..).zip(runs) {
        let count = queue.offers.len();
        let offer = &mut queue.offers[place % count];
        if offer.free_slots > 0 && offer.free() >= run.memory {
            offer.free_slots -= 1;
            offer.reserved = offer.reserved + run.memory;
            queue.running.push(RunningJob { job: job_id(number), offer: name(offer), ..run });
        }
    }
}

/// Any queue at the time 0 whose runs fit on their offers; replicas hold some memory, too.
fn queues() -> impl Strategy<Value = Queue> {
    let offers = vec((10_u64..100, 1_usize..5, 0_u64..30, 0_u64..3), 1..4);
    let node_time = option::of((0.0..1000.0_f64, 0.0..3000.0_f64));
    let shares = vec((1.0..4.0_f64, 0.0..3000.0_f64, option::of(0_u32..5), node_time), PROJECTS as usize);
    (offers, vec(running(), 0..14), vec(waiting(), 0..30), shares).prop_map(|(offers, runs, waiting, shares)| {
        let offers = offers.into_iter().enumerate().map(|(number, (memory, slots, replicas, price))| Offer {
            reserved: Bytes(replicas.min(memory)),
            micro_usd_per_hour: price,
            ..offer(number, memory, slots)
        });
        let projects = (0..).zip(shares).map(|(number, (weight, used, max_running, node_time))| ProjectShare {
            project: project_id(number),
            weight,
            used,
            max_running,
            node_time: node_time.map(|(used, max)| NodeTime { used, max, resets_at: 300.0 }),
        });
        let waiting = (1..).zip(waiting).map(|(number, job)| WaitingJob { job: job_id(number), ..job });
        let mut queue = Queue {
            now: 0.0,
            waiting: waiting.collect(),
            running: Vec::new(),
            offers: offers.collect(),
            projects: projects.collect(),
        };
        place(&mut queue, runs);
        queue
    })
}

/// A run for [`earliest`]: its offer, its memory and its end.
type Held = (usize, Bytes, f64);

/// Returns the runs of a queue once a plan's preemptions are requested.
fn held(queue: &Queue, plan: &QueuePlan) -> Vec<Held> {
    let place = |run: &RunningJob| queue.offers.iter().position(|offer| name(offer) == run.offer).unwrap();
    let end = |run: &RunningJob| match plan.preemptions.iter().any(|&(stopped, _)| stopped == run.job) {
        true => seconds::end(run.ends_at, queue.now).min(queue.now + STOP_SECONDS),
        false => seconds::end(run.ends_at, queue.now),
    };
    queue.running.iter().map(|run| (place(run), run.memory, end(run))).collect()
}

/// Returns the earliest time with room for a run, next to these runs: by trying all times.
fn earliest(queue: &Queue, held: &[Held], need: Bytes) -> Option<f64> {
    let mut times: Vec<f64> = held.iter().map(|&(_, _, end)| end).chain([queue.now]).collect();
    times.sort_by(f64::total_cmp);
    let has_room = |time: f64, place: usize, offer: &Offer| {
        let ran: Vec<_> = queue.running.iter().filter(|run| run.offer == name(offer)).collect();
        let replicas = offer.reserved.saturating_sub(ran.iter().map(|run| run.memory).sum());
        let still: Vec<_> = held.iter().filter(|&&(on, _, end)| on == place && end > time).collect();
        let used: Bytes = still.iter().map(|&&(_, memory, _)| memory).sum();
        still.len() < offer.free_slots + ran.len() && replicas + used + need <= offer.memory
    };
    times.into_iter().find(|&time| queue.offers.iter().enumerate().any(|(place, offer)| has_room(time, place, offer)))
}

/// Returns the starts of a plan as runs, of the jobs that `included` selects.
fn started(queue: &Queue, plan: &QueuePlan, included: impl Fn(JobId) -> bool) -> Vec<Held> {
    let jobs: BTreeMap<JobId, &WaitingJob> = queue.waiting.iter().map(|job| (job.job, job)).collect();
    let starts = plan.starts.iter().filter(|&&(job, _)| included(job));
    starts.map(|&(job, offer)| (offer, jobs[&job].need, queue.now + jobs[&job].seconds)).collect()
}

/// Returns whether a job waits for a limit of its project.
fn is_limit(reason: &WaitReason) -> bool {
    matches!(reason, WaitReason::Quota { .. } | WaitReason::NodeHours { .. })
}

/// Returns the head of a queue under a plan: the first job in order that waits for room and whose start is expected.
fn head<'a>(queue: &'a Queue, plan: &QueuePlan) -> Option<&'a WaitingJob> {
    let waits = |job: JobId| plan.waits.iter().find(|wait| wait.job == job);
    order(queue)
        .into_iter()
        .map(|index| &queue.waiting[index])
        .find(|job| waits(job.job).is_some_and(|wait| !is_limit(&wait.reason) && wait.estimated_start.is_some()))
}

proptest! {
    #[test]
    fn each_job_starts_or_waits_once_with_a_position(queue in queues()) {
        let plan = plan(&queue);
        let planned: Vec<JobId> =
            plan.starts.iter().map(|&(job, _)| job).chain(plan.waits.iter().map(|wait| wait.job)).collect();
        let given: BTreeSet<JobId> = queue.waiting.iter().map(|job| job.job).collect();
        prop_assert_eq!(planned.len(), given.len());
        prop_assert_eq!(planned.into_iter().collect::<BTreeSet<_>>(), given);
        for (ahead, wait) in plan.waits.iter().enumerate() {
            prop_assert_eq!(wait.position as usize, ahead + 1);
            prop_assert!(wait.estimated_start.is_none_or(|at| at >= queue.now));
            if let WaitReason::Ahead { jobs } = wait.reason {
                prop_assert!(jobs > 0 && jobs == ahead);
            }
            if wait.reason.is_final() {
                prop_assert_eq!(wait.estimated_start, None);
            }
        }
    }

    #[test]
    fn starts_exceed_no_memory_no_slots_and_no_limit(queue in queues()) {
        let plan = plan(&queue);
        let all = started(&queue, &plan, |_| true);
        for (place, offer) in queue.offers.iter().enumerate() {
            let here: Vec<_> = all.iter().filter(|&&(on, _, _)| on == place).collect();
            prop_assert!(here.len() <= offer.free_slots);
            prop_assert!(here.iter().map(|&&(_, need, _)| need).sum::<Bytes>() <= offer.free());
        }
        let project: BTreeMap<JobId, ProjectId> = queue.waiting.iter().map(|job| (job.job, job.project)).collect();
        for share in &queue.projects {
            let ran = queue.running.iter().filter(|run| run.project == share.project).count();
            let new = plan.starts.iter().filter(|(job, _)| project[job] == share.project).count();
            prop_assert!(new == 0 || share.max_running.is_none_or(|max| ran + new <= max as usize));
            if let Some(NodeTime { used, max, resets_at }) = share.node_time {
                let own = |job: &JobId| project[job] == share.project;
                let runs = queue.running.iter().filter(|run| run.project == share.project);
                let runs = runs.map(|run| seconds::end(run.ends_at, queue.now));
                let mut ends: Vec<f64> = runs.collect();
                ends.extend(plan.starts.iter().zip(&all).filter(|((job, _), _)| own(job)).map(|(_, &(_, _, end))| end));
                // The last start may exceed the maximum, by its own rest: nothing was known to be used up before.
                ends.truncate(ends.len() - usize::from(new > 0));
                let before: f64 = ends.into_iter().map(|end| end.min(resets_at) - queue.now).sum();
                prop_assert!(new == 0 || used + before < max + 1e-6);
            }
        }
    }

    /// By the expected ends, the head starts no later with the jobs that overtake it than without them.
    #[test]
    fn backfill_never_delays_the_head(queue in queues()) {
        let plan = plan(&queue);
        if let Some(head) = head(&queue, &plan) {
            let ordered: Vec<JobId> = order(&queue).into_iter().map(|index| queue.waiting[index].job).collect();
            let place = |job: JobId| ordered.iter().position(|&other| other == job);
            let runs = held(&queue, &plan);
            let ahead = started(&queue, &plan, |job| place(job) < place(head.job));
            let without = earliest(&queue, &[runs.clone(), ahead].concat(), head.need);
            let with = earliest(&queue, &[runs, started(&queue, &plan, |_| true)].concat(), head.need);
            prop_assert!(with.is_some() && with <= without, "{:?} instead of {:?}", with, without);
            let expected = plan.waits.iter().find(|wait| wait.job == head.job).and_then(|wait| wait.estimated_start);
            prop_assert_eq!(expected, without);
        }
    }

    /// Only preemptible runs are stopped, for the head alone, which then has room: runs of lower priority in its own
    /// project, or of projects far above their shares.
    #[test]
    fn preemption_stops_what_it_may_and_starts_the_head(queue in queues()) {
        let plan = plan(&queue);
        let shares = Shares::of(&queue);
        for (stopped, waiting) in &plan.preemptions {
            let run = queue.running.iter().find(|run| run.job == *stopped).unwrap();
            let head = head(&queue, &plan).unwrap();
            prop_assert_eq!(head.job, *waiting);
            prop_assert!(run.is_preemptible && !head.was_preempted);
            if run.project == head.project {
                prop_assert!(run.priority < head.priority);
            } else {
                prop_assert!(shares.is_far_above(shares.index(run.project), 0.0));
                prop_assert!(shares.is_within(shares.index(head.project), head.seconds));
            }
            let runs = [held(&queue, &plan), started(&queue, &plan, |_| true)].concat();
            prop_assert!(earliest(&queue, &runs, head.need).is_some_and(|at| at <= queue.now + STOP_SECONDS));
        }
    }
}
