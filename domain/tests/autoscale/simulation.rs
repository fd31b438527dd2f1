//! Simulated loads. `make pool-test` prints the figures.

use attune_domain::autoscale::Settings;
use serde_json::json;

use super::pool::{Decided, reversals, simulate};

pub(super) const SETTINGS: Settings =
    Settings { min_replicas: 0, max_replicas: 32, target_concurrency: 4, cooldown_seconds: 120 };

/// The bar of the reaction to a doubled load, in seconds.
pub(super) const REACTION_BAR: f64 = 6.0;

/// The bar of changes of direction in ten minutes of a steady load.
pub(super) const REVERSALS_BAR: f64 = 1.0;

/// Prints a figure, which is at most its bar.
pub(super) fn figure(name: &str, value: f64, bar: f64) {
    println!("{}", json!({"figure": name, "value": value, "bar": bar, "at_most": true}));
    assert!(value <= bar, "{name}: {value} is above {bar}");
}

#[test]
fn a_doubled_load_is_answered_within_seconds() {
    let mut slowest: f64 = 0.0;
    for (seed, load) in [24.0, 32.0, 40.0].into_iter().cycle().take(9).enumerate() {
        let doubled = |at: f64| if at < 400.0 { load } else { 2.0 * load };
        let decisions = simulate(&SETTINGS, 430, seed as u64, doubled);
        let before = decisions.iter().rev().find(|decided| decided.at <= 400.0).map_or(0, |decided| decided.replicas);
        let more = decisions.iter().find(|decided| decided.at > 400.0 && decided.replicas > before);
        slowest = slowest.max(more.map_or(f64::INFINITY, |decided| decided.at - 400.0));
    }
    figure("pool_reaction_seconds", slowest, REACTION_BAR);
}

#[test]
fn a_steady_noisy_load_changes_the_direction_rarely() {
    let mut most: f64 = 0.0;
    for (seed, load) in [3.0, 6.0, 11.0, 20.0].into_iter().enumerate() {
        let decisions = simulate(&SETTINGS, 4200, 100 + seed as u64, |_| load);
        // The first ten minutes find the number.
        let settled: Vec<Decided> = decisions.into_iter().filter(|decided| decided.at > 600.0).collect();
        most = most.max(f64::from(reversals(&settled)) / 6.0);
    }
    figure("pool_reversals_per_10_min", most, REVERSALS_BAR);
}

#[test]
fn a_pool_ends_after_its_cooldown_and_starts_again() {
    let bursts = |at: f64| if at % 900.0 < 120.0 { 10.0 } else { 0.0 };
    let decisions = simulate(&SETTINGS, 1800, 7, bursts);
    let at = |second: f64| decisions.iter().find(|decided| decided.at >= second).map(|decided| decided.replicas);
    assert!(at(100.0) >= Some(3), "{:?}", at(100.0));
    assert!(at(200.0) >= Some(1), "the cooldown has not passed");
    assert_eq!(at(280.0), Some(0));
    assert_eq!(at(890.0), Some(0));
    assert!(at(1000.0) >= Some(3), "{:?}", at(1000.0));
}

#[test]
fn a_day_is_followed_up_and_down() {
    // A day of 40 minutes, from 2 to 42 requests.
    let day = |at: f64| 22.0 - 20.0 * (at / 2400.0 * std::f64::consts::TAU).cos();
    let decisions = simulate(&SETTINGS, 4800, 11, day);
    let capacity = |decided: &Decided| f64::from(decided.replicas * SETTINGS.target_concurrency);
    let settled = decisions.iter().filter(|decided| decided.at > 120.0);
    let overloaded = settled.filter(|decided| decided.requests > 2.0 * capacity(decided)).count();
    assert!(overloaded < 50, "{overloaded} seconds");
    let most = decisions.iter().map(|decided| decided.replicas).max();
    let night = decisions.iter().filter(|decided| (2280.0..2520.0).contains(&decided.at));
    let least = night.map(|decided| decided.replicas).min();
    assert!(most >= Some(11) && most <= Some(20) && least <= Some(6), "{most:?} {least:?}");
}
