//! Means over windows of samples.

use super::sample::Sample;

/// The seconds of the stable window: Knative's default.
pub(super) const STABLE_SECONDS: f64 = 60.0;

/// The seconds of the panic window.
pub(super) const PANIC_SECONDS: f64 = 3.0;

/// The load over the capacity from which on there is panic, whatever the load was before: Knative's default.
const PANIC_THRESHOLD: f64 = 2.0;

/// The load over the capacity below which there is no panic, whatever the load was before.
const PANIC_LEAST: f64 = 1.1;

/// The standard deviations of a Poisson count by which a load is clearly above the load before.
const DEVIATIONS: f64 = 3.0;

/// Returns the mean requests between `from` and `to` seconds before `now`, the latter included; `None`: there is no
/// sample.
pub(super) fn mean(samples: &[Sample], now: f64, (from, to): (f64, f64)) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u32);
    // The newest samples are the last ones.
    for sample in samples.iter().rev() {
        let age = now - sample.at;
        if age >= to {
            break;
        }
        if age >= from {
            (sum, count) = (sum + sample.requests, count + 1);
        }
    }
    (count > 0).then(|| sum / f64::from(count))
}

/// Returns the highest load of the panic window in the last stable window at which there was cause for panic; `None`:
/// there was none.
pub(super) fn panic_load(samples: &[Sample], target: f64) -> Option<f64> {
    let now = samples.last()?.at;
    let causes = (1..=samples.len()).rev().map(|count| &samples[..count]);
    let recent = causes.take_while(|until| until.last().is_some_and(|last| now - last.at < STABLE_SECONDS));
    recent.filter_map(|until| cause(until, target)).max_by(f64::total_cmp)
}

/// Returns the number of replicas with which no panic window of the last `seconds` would be cause for panic by its
/// load.
pub(super) fn calm_replicas(samples: &[Sample], target: f64, seconds: f64) -> f64 {
    let now = samples.last().map_or(0.0, |last| last.at);
    let all = (1..=samples.len()).rev().map(|count| &samples[..count]);
    let recent = all.take_while(|until| until.last().is_some_and(|last| now - last.at < seconds));
    let highest = recent.filter_map(|until| mean(until, until.last()?.at, (0.0, PANIC_SECONDS))).fold(0.0, f64::max);
    highest / (PANIC_LEAST * target)
}

/// Returns the mean of the panic window that ends with these samples if it is cause for panic.
fn cause(samples: &[Sample], target: f64) -> Option<f64> {
    let last = samples.last()?;
    let load = mean(samples, last.at, (0.0, PANIC_SECONDS))?;
    let before = mean(samples, last.at, (PANIC_SECONDS, PANIC_SECONDS + STABLE_SECONDS)).unwrap_or(0.0);
    let capacity = f64::from(last.ready.max(1)) * target;
    let is_sudden = load > PANIC_LEAST * capacity && load >= before + DEVIATIONS * before.sqrt();
    (load >= PANIC_THRESHOLD * capacity || is_sudden).then_some(load)
}
