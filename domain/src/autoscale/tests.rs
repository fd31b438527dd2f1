//! Single decisions. Those over simulated pools are in `domain/tests/autoscale`.

use super::*;

const SETTINGS: Settings = Settings { min_replicas: 0, max_replicas: 16, target_concurrency: 4, cooldown_seconds: 120 };

/// Returns a sample for each second with these requests, and the decision at the last one.
fn decided(settings: &Settings, load: &[(u32, f64)], replicas: Replicas) -> Decision {
    let requests = load.iter().flat_map(|&(seconds, requests)| (0..seconds).map(move |_| requests));
    let samples: Vec<Sample> =
        requests.enumerate().map(|(at, requests)| Sample { at: at as f64, requests, ready: replicas.ready }).collect();
    decide(settings, &samples, replicas)
}

fn ready(count: u32) -> Replicas {
    Replicas { current: count, ready: count, idle_seconds: 0.0 }
}

#[test]
fn the_stable_window_decides_without_cause_for_panic() {
    let decision = decided(&SETTINGS, &[(300, 10.0)], ready(3));
    assert_eq!(decision, Decision { replicas: 3, mode: Mode::Stable, reason: Reason::Load });
    let decision = decided(&SETTINGS, &[(300, 12.5)], ready(3));
    assert_eq!((decision.replicas, decision.mode), (4, Mode::Stable));
}

#[test]
fn a_doubled_load_is_answered_in_seconds_and_the_number_then_stays_for_a_window() {
    let decision = decided(&SETTINGS, &[(300, 11.0), (2, 22.0)], ready(3));
    assert_eq!((decision.replicas, decision.mode), (3, Mode::Stable), "a moment is not enough");
    let decision = decided(&SETTINGS, &[(300, 11.0), (3, 22.0)], ready(3));
    assert_eq!(decision, Decision { replicas: 6, mode: Mode::Panic, reason: Reason::Load });
    let more = Replicas { current: 7, ready: 3, idle_seconds: 0.0 };
    let decision = decided(&SETTINGS, &[(300, 11.0), (3, 22.0), (30, 2.0)], more);
    assert_eq!(decision, Decision { replicas: 7, mode: Mode::Panic, reason: Reason::Stabilizing });
}

#[test]
fn one_decision_adds_at_most_four_replicas_or_as_many_as_are_ready() {
    let decision = decided(&SETTINGS, &[(60, 60.0)], ready(1));
    assert_eq!((decision.replicas, decision.reason), (5, Reason::Step));
    let loading = Replicas { current: 5, ready: 1, idle_seconds: 0.0 };
    assert_eq!(decided(&SETTINGS, &[(60, 60.0)], loading).replicas, 5, "no more while these load");
    assert_eq!(decided(&SETTINGS, &[(60, 60.0)], ready(6)).replicas, 12);
}

#[test]
fn a_lower_load_needs_five_minutes_and_at_most_halves_the_number() {
    let decision = decided(&SETTINGS, &[(60, 40.0), (200, 8.0)], ready(10));
    assert_eq!((decision.replicas, decision.reason), (10, Reason::Stabilizing));
    let decision = decided(&SETTINGS, &[(320, 8.0)], ready(10));
    assert_eq!((decision.replicas, decision.reason), (5, Reason::Step));
    let decision = decided(&SETTINGS, &[(320, 8.0)], ready(5));
    assert_eq!((decision.replicas, decision.reason), (3, Reason::Load));
    // Two replicas could hold it at the target, but then any noise would start a third one again.
    assert_eq!(decided(&SETTINGS, &[(320, 8.0)], ready(3)).replicas, 3);
    let decision = decided(&SETTINGS, &[(20, 1.0)], ready(3));
    assert_eq!((decision.replicas, decision.reason), (3, Reason::Stabilizing), "a new autoscaler knows too little");
}

#[test]
fn bursts_that_recur_keep_the_replicas_that_they_need() {
    let mut load = [(48, 2.0), (12, 16.0)].repeat(5);
    load.push((48, 2.0));
    // The busiest minute needs two replicas, but the next burst would start the others again.
    let decision = decided(&SETTINGS, &load, ready(4));
    assert_eq!((decision.replicas, decision.mode, decision.reason), (4, Mode::Stable, Reason::Stabilizing));
    load.push((300, 2.0));
    assert_eq!(decided(&SETTINGS, &load, ready(4)).replicas, 2, "they have ended");
}

#[test]
fn the_last_replica_ends_after_the_cooldown_and_the_minimum_stays() {
    let idle = |idle_seconds| Replicas { current: 1, ready: 1, idle_seconds };
    let quiet = [(30, 1.0), (119, 0.0)];
    assert_eq!(decided(&SETTINGS, &quiet, idle(119.0)).reason, Reason::Cooldown);
    let ended = decided(&SETTINGS, &quiet, idle(120.0));
    assert_eq!(ended, Decision { replicas: 0, mode: Mode::Stable, reason: Reason::Idle });
    let kept = decided(&Settings { min_replicas: 1, ..SETTINGS }, &quiet, idle(1e6));
    assert_eq!((kept.replicas, kept.reason), (1, Reason::Minimum));
    let none = Replicas { current: 0, ready: 0, idle_seconds: f64::INFINITY };
    assert_eq!(decide(&SETTINGS, &[], none).replicas, 0);
    let started = decided(&Settings { min_replicas: 2, ..SETTINGS }, &[(1, 0.0)], none);
    assert_eq!((started.replicas, started.reason), (2, Reason::Minimum));
}

#[test]
fn the_maximum_holds() {
    let decision = decided(&Settings { max_replicas: 2, ..SETTINGS }, &[(60, 60.0)], ready(2));
    assert_eq!((decision.replicas, decision.reason), (2, Reason::Maximum));
    let smaller = decided(&Settings { max_replicas: 2, ..SETTINGS }, &[(60, 60.0)], ready(6));
    assert_eq!(smaller.replicas, 2, "a lowered maximum takes effect");
}
