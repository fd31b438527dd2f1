//! The decision.

use super::{
    sample::Sample,
    terms::{Decision, Mode, Reason, Replicas, Settings},
    window::{STABLE_SECONDS, calm_replicas, mean, panic_load},
};

/// The minutes for which a lower load is awaited.
const STABILIZATION_MINUTES: u32 = 5;

/// The part of the target that the remaining replicas of a smaller pool may have.
const DOWN_UTILIZATION: f64 = 0.7;

/// The replicas that one decision may add to any number of ready ones.
const LEAST_STEP: u32 = 4;

/// Decides the number of replicas. `samples` are ordered by time; the last one is of now.
#[must_use]
pub fn decide(settings: &Settings, samples: &[Sample], replicas: Replicas) -> Decision {
    let target = f64::from(settings.target_concurrency.max(1));
    let now = samples.last().map_or(0.0, |last| last.at);
    let stable = mean(samples, now, (0.0, STABLE_SECONDS)).unwrap_or(0.0);
    let peak = panic_load(samples, target);
    let mode = if peak.is_some() { Mode::Panic } else { Mode::Stable };
    let needed = count(peak.map_or(stable, |peak| peak.max(stable)) / target);
    let is_quiet = samples.last().is_none_or(|last| last.requests <= 0.0);
    let (number, reason) = if is_quiet && replicas.idle_seconds >= f64::from(settings.cooldown_seconds) {
        (0, Reason::Idle)
    } else if stable <= 0.0 && replicas.current <= 1 {
        (replicas.current, Reason::Cooldown)
    } else if needed >= replicas.current {
        upward(needed, replicas)
    } else if peak.is_some() {
        (replicas.current, Reason::Stabilizing)
    } else {
        downward(samples, target, replicas)
    };
    let (replicas, reason) = if number < settings.min_replicas {
        (settings.min_replicas, Reason::Minimum)
    } else if number > settings.max_replicas.max(settings.min_replicas) {
        (settings.max_replicas.max(settings.min_replicas), Reason::Maximum)
    } else {
        (number, reason)
    };
    Decision { replicas, mode, reason }
}

/// Limits an increase. The limit counts ready replicas, so that no further ones start while those of the last decision
/// load their base.
fn upward(needed: u32, replicas: Replicas) -> (u32, Reason) {
    let most = (2 * replicas.ready).max(replicas.ready + LEAST_STEP).max(replicas.current);
    if needed > most { (most, Reason::Step) } else { (needed, Reason::Load) }
}

/// Returns the number that the busiest of the last minutes needs, and that their bursts need, at least half of the
/// current one. Without samples of all these minutes, the number stays.
fn downward(samples: &[Sample], target: f64, replicas: Replicas) -> (u32, Reason) {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return (replicas.current, Reason::Stabilizing);
    };
    let window = f64::from(STABILIZATION_MINUTES) * STABLE_SECONDS;
    if last.at - first.at < window - STABLE_SECONDS / 2.0 {
        return (replicas.current, Reason::Stabilizing);
    }
    let minutes = (0..STABILIZATION_MINUTES)
        .map(f64::from)
        .filter_map(|minute| mean(samples, last.at, (minute * STABLE_SECONDS, (minute + 1.0) * STABLE_SECONDS)));
    let busiest = minutes.fold(0.0, f64::max);
    let calm = calm_replicas(samples, target, window);
    let (needed, half) = (count(calm.max(busiest / (target * DOWN_UTILIZATION))).max(1), replicas.current.div_ceil(2));
    if needed >= replicas.current {
        (replicas.current, Reason::Stabilizing)
    } else if needed < half {
        (half, Reason::Step)
    } else {
        (needed, Reason::Load)
    }
}

/// Rounds a load in replicas up. A mean of sums may exceed a whole number by a rounding error.
fn count(load: f64) -> u32 {
    (load - 1e-9).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}
