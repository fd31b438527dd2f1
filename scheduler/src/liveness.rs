//! Detection of lost runs and replicas. Missing heartbeats mean that a process hangs, but also that the API was
//! unavailable, that the database stalled, or that this process did. None is declared lost for the latter: after such
//! an outage, every live process has a whole lease to report.

use std::time::{Duration, Instant};

/// The timeout of a health check of the API.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A health check of the API, at the address to which trainers and replicas report.
#[derive(Debug, Clone)]
pub(crate) struct ApiProbe {
    client: reqwest::Client,
    url: String,
}

impl ApiProbe {
    /// Creates a probe of `api_url`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub(crate) fn new(api_url: &str) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWERS_WITHIN).build()?;
        Ok(Self { client, url: format!("{}/healthz", api_url.trim_end_matches('/')) })
    }

    /// Returns whether the API can receive reports now.
    pub(crate) async fn answers(&self) -> bool {
        self.client.get(&self.url).send().await.is_ok_and(|answer| answer.status().is_success())
    }
}

/// The time since which reports could arrive without interruption.
#[derive(Debug)]
pub(crate) struct Hearing {
    lease: Duration,
    /// The longest time between two passes that is not an interruption.
    tolerance: Duration,
    since: Instant,
    last_pass: Instant,
    is_broken: bool,
}

impl Hearing {
    /// Starts at `now`. `lease` is the longest time without a heartbeat; passes run every `period`.
    pub(crate) fn new(lease: Duration, period: Duration, now: Instant) -> Self {
        Self { lease, tolerance: (lease / 3).max(2 * period), since: now, last_pass: now, is_broken: false }
    }

    /// Records a pass that read the rows at `now`, and whether the API answered just before.
    pub(crate) fn note(&mut self, api_answers: bool, now: Instant) {
        let late = now.saturating_duration_since(self.last_pass);
        let was_broken = std::mem::replace(&mut self.is_broken, !api_answers || late > self.tolerance);
        self.last_pass = now;
        if self.is_broken {
            self.since = now;
        }
        if self.is_broken && !was_broken {
            tracing::warn!(
                api_answers,
                late_ms = late.as_millis() as u64,
                "reports could not arrive for a while; no run or replica is declared lost for a whole lease"
            );
        }
    }

    /// Returns whether a process without heartbeats for this long is lost: reports could arrive for a whole lease.
    pub(crate) fn is_stale(&self, silent_seconds: f64) -> bool {
        silent_seconds > self.lease.as_secs_f64() && self.last_pass.duration_since(self.since) > self.lease
    }

    /// Returns whether reports could arrive the whole time since the last one did.
    pub(crate) fn covers(&self, silent_seconds: f64) -> bool {
        self.last_pass.duration_since(self.since).as_secs_f64() >= silent_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(45);
    const PERIOD: Duration = Duration::from_secs(2);

    /// Returns a scheduler's state after passes for `seconds`, and the time of the last pass.
    fn heard_for(seconds: u64) -> (Hearing, Instant) {
        let mut now = Instant::now();
        let mut hearing = Hearing::new(LEASE, PERIOD, now);
        for _ in 0..seconds.div_ceil(2) {
            now += PERIOD;
            hearing.note(true, now);
        }
        (hearing, now)
    }

    #[test]
    fn a_lease_without_heartbeats_is_checked_and_its_cause_is_the_runs() {
        let (hearing, _) = heard_for(60);
        assert!(hearing.is_stale(46.0) && hearing.covers(46.0));
        assert!(!hearing.is_stale(44.0));
    }

    #[test]
    fn attack_a29_after_a_pause_of_its_own_or_of_the_database_a_lease_passes_before_any_run_is_checked() {
        let (mut hearing, mut now) = heard_for(600);
        now += Duration::from_secs(65);
        hearing.note(true, now);
        assert!(!hearing.is_stale(72.0) && !hearing.covers(66.0));
        for _ in 0..22 {
            now += PERIOD;
            hearing.note(true, now);
        }
        assert!(!hearing.is_stale(110.0), "44 s after the pause");
        now += PERIOD;
        hearing.note(true, now);
        assert!(hearing.is_stale(112.0), "46 s after the pause, and no report yet");
    }

    #[test]
    fn attack_a13_while_the_api_is_away_no_run_is_checked() {
        let (mut hearing, mut now) = heard_for(600);
        for _ in 0..100 {
            now += PERIOD + ANSWERS_WITHIN;
            hearing.note(false, now);
            assert!(!hearing.is_stale(700.0) && !hearing.covers(1.0));
        }
    }

    #[test]
    fn a_short_break_changes_nothing() {
        let (mut hearing, now) = heard_for(60);
        hearing.note(true, now + Duration::from_secs(14));
        assert!(hearing.is_stale(46.0));
    }
}
