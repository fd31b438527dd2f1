//! The settings of the harness, from the environment; `scripts/faults` sets them.

use std::time::SystemTime;

/// Returns the seed of the schedule, `FAULTS_SEED`; by default one of the clock.
pub(crate) fn seed() -> u64 {
    let of_clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    number("FAULTS_SEED").unwrap_or_else(of_clock)
}

/// Returns the number of kills of the long form, `FAULTS_KILLS`; `None`: the short form.
pub(crate) fn kills() -> Option<usize> {
    number("FAULTS_KILLS").and_then(|kills| usize::try_from(kills).ok())
}

/// Returns whether the programs are built with the feature `failpoints`: `FAULTS_FAILPOINTS` is 1.
pub(crate) fn has_fail_points() -> bool {
    number("FAULTS_FAILPOINTS") == Some(1)
}

#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
