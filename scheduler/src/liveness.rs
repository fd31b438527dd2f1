//! Since when silence means something. A run or a replica is silent when it hangs; but also while the api is away, while
//! the database stands still, and while this process itself did. Nobody is given up for such a silence: after it, whoever
//! lives has a whole lease to report.

use std::time::{Duration, Instant};

/// How long the api may take to answer whether it is up.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Asks the api, at the address to which trainers and replicas report.
#[derive(Debug, Clone)]
pub(crate) struct ApiProbe {
    client: reqwest::Client,
    url: String,
}

impl ApiProbe {
    /// Asks at `api_url`.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub(crate) fn new(api_url: &str) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWERS_WITHIN).build()?;
        Ok(Self { client, url: format!("{}/healthz", api_url.trim_end_matches('/')) })
    }

    /// Whether reports could reach it now.
    pub(crate) async fn answers(&self) -> bool {
        self.client.get(&self.url).send().await.is_ok_and(|answer| answer.status().is_success())
    }
}

/// Remembers since when everybody could have been heard without a break.
#[derive(Debug)]
pub(crate) struct Hearing {
    lease: Duration,
    /// A longer time between two passes is a break.
    tolerance: Duration,
    since: Instant,
    last_pass: Instant,
    is_broken: bool,
}

impl Hearing {
    /// Begins at `now`. `lease` is for how long a run or a replica may be silent; passes come every `period`.
    pub(crate) fn new(lease: Duration, period: Duration, now: Instant) -> Self {
        Self { lease, tolerance: (lease / 3).max(2 * period), since: now, last_pass: now, is_broken: false }
    }

    /// Notes a pass that has read the rows at `now`, and whether the api answered just before.
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
                "reports could not be taken for a while; nobody is given up before a whole lease has passed after it"
            );
        }
    }

    /// Whether somebody silent for so long is given up: everybody could have been heard for a whole lease.
    pub(crate) fn is_stale(&self, silent_seconds: f64) -> bool {
        silent_seconds > self.lease.as_secs_f64() && self.last_pass.duration_since(self.since) > self.lease
    }

    /// Whether reports could be taken all the time since the last one came.
    pub(crate) fn covers(&self, silent_seconds: f64) -> bool {
        self.last_pass.duration_since(self.since).as_secs_f64() >= silent_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(45);
    const PERIOD: Duration = Duration::from_secs(2);

    /// A scheduler that has made passes for `seconds`, and the moment of the last.
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
    fn silence_of_a_lease_is_judged_and_its_cause_is_the_runs() {
        let (hearing, _) = heard_for(60);
        assert!(hearing.is_stale(46.0) && hearing.covers(46.0));
        assert!(!hearing.is_stale(44.0));
    }

    #[test]
    fn attack_a29_after_a_pause_of_its_own_or_of_the_database_a_lease_passes_before_anybody_is_judged() {
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
    fn attack_a13_while_the_api_is_away_nobody_is_judged() {
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
