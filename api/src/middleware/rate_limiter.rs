//! Rate limits by token buckets: two buckets per key, one for its requests and one for its tokens.
//!
//! A bucket holds a minute's allowance and refills evenly. A request takes one; the tokens of an answer are taken when
//! they are known, so a bucket may go below zero, and requests are refused until it is above zero again. The buckets
//! belong to this process: with several API processes behind a load balancer, each allows the configured rate.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use attune_process::metrics::HTTP_RATE_LIMITED;
use uuid::Uuid;

use crate::{
    config::RateLimits,
    error::{ApiError, LimitKind},
};

/// The number of keys that are stored before those whose buckets are full again are dropped.
const REMEMBERED: usize = 10_000;

/// A key's state under one of its limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateStatus {
    /// The quantity that is limited.
    pub kind: LimitKind,
    /// A minute's allowance.
    pub limit: u32,
    /// The rest of it; negative after a long answer.
    pub left: f64,
}

impl RateStatus {
    /// Returns the seconds until `wanted` are left.
    pub(crate) fn seconds_until(&self, wanted: f64) -> f64 {
        ((wanted - self.left).max(0.0)) * 60.0 / f64::from(self.limit)
    }
}

/// One key's allowance of one kind.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    const fn full(limit: u32, now: Instant) -> Self {
        Self { left: limit as f64, at: now }
    }

    fn fill(&mut self, limit: u32, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(limit) / 60.0;
        self.left = (self.left + gained).min(f64::from(limit));
        self.at = now;
    }
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    requests: Bucket,
    tokens: Bucket,
}

/// The allowance that the tokens of a request's answers are charged to.
#[derive(Debug, Clone)]
pub struct Allowance {
    limiter: Arc<RateLimiter>,
    key: Uuid,
}

impl Allowance {
    /// Creates the allowance of a key.
    pub fn new(limiter: Arc<RateLimiter>, key: Uuid) -> Self {
        Self { limiter, key }
    }

    /// Charges tokens to the key's allowance.
    pub fn charge(&self, tokens: u64) {
        self.limiter.charge(self.key, tokens);
    }
}

/// The buckets of all keys.
#[derive(Debug)]
pub struct RateLimiter {
    limits: RateLimits,
    keys: Mutex<HashMap<Uuid, Buckets>>,
}

impl RateLimiter {
    /// Creates a limiter whose buckets are full.
    pub fn new(limits: RateLimits) -> Self {
        Self { limits, keys: Mutex::new(HashMap::new()) }
    }

    /// Returns whether anything is limited.
    pub(crate) const fn limits_any(&self) -> bool {
        self.limits.requests_per_minute > 0 || self.limits.tokens_per_minute > 0
    }

    /// Takes one request off the key's allowance, if one is left, and returns the state after it.
    ///
    /// # Errors
    /// [`ApiError::RateLimited`]: the allowance that is used up, and when to retry.
    pub(crate) fn admit(&self, key: Uuid, now: Instant) -> Result<Vec<RateStatus>, ApiError> {
        let mut keys = self.keys();
        let buckets = self.filled(&mut keys, key, now);
        for status in self.statuses_of(*buckets) {
            let wanted = if status.kind == LimitKind::Requests { 1.0 } else { f64::MIN_POSITIVE };
            if status.left < wanted {
                return Err(refusal(status, wanted));
            }
        }
        buckets.requests.left -= 1.0;
        Ok(self.statuses_of(*buckets))
    }

    /// Returns the key's state under each limit, and takes nothing.
    pub(crate) fn statuses(&self, key: Uuid, now: Instant) -> Vec<RateStatus> {
        let mut keys = self.keys();
        let buckets = *self.filled(&mut keys, key, now);
        self.statuses_of(buckets)
    }

    /// Takes the tokens of an answer.
    fn charge(&self, key: Uuid, tokens: u64) {
        if self.limits.tokens_per_minute > 0 {
            let mut keys = self.keys();
            self.filled(&mut keys, key, Instant::now()).tokens.left -= tokens as f64;
        }
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<Uuid, Buckets>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn filled<'a>(&self, keys: &'a mut HashMap<Uuid, Buckets>, key: Uuid, now: Instant) -> &'a mut Buckets {
        let limits = &self.limits;
        let (requests, tokens) = (limits.requests_per_minute, limits.tokens_per_minute);
        if keys.len() >= REMEMBERED && !keys.contains_key(&key) {
            // A bucket is full after a minute, and a full bucket need not be stored.
            keys.retain(|_, buckets| now.saturating_duration_since(buckets.requests.at).as_secs() < 60);
        }
        let full = Buckets { requests: Bucket::full(requests, now), tokens: Bucket::full(tokens, now) };
        let buckets = keys.entry(key).or_insert(full);
        buckets.requests.fill(requests, now);
        buckets.tokens.fill(tokens, now);
        buckets
    }

    fn statuses_of(&self, buckets: Buckets) -> Vec<RateStatus> {
        let all = [
            (LimitKind::Requests, self.limits.requests_per_minute, buckets.requests.left),
            (LimitKind::Tokens, self.limits.tokens_per_minute, buckets.tokens.left),
        ];
        let limited = all.into_iter().filter(|(_, limit, _)| *limit > 0);
        limited.map(|(kind, limit, left)| RateStatus { kind, limit, left }).collect()
    }
}

fn refusal(status: RateStatus, wanted: f64) -> ApiError {
    let seconds = status.seconds_until(wanted).ceil().max(1.0) as u64;
    let (what, limit) = (status.kind.name(), status.limit);
    HTTP_RATE_LIMITED.inc([what]);
    let message = format!(
        "Rate limit reached for {what} per minute: the limit is {limit}, and it is used up. Please try again in \
         {seconds} s."
    );
    ApiError::RateLimited { kind: status.kind, message, retry_after_seconds: seconds }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limiter(requests_per_minute: u32, tokens_per_minute: u32) -> RateLimiter {
        RateLimiter::new(RateLimits { requests_per_minute, tokens_per_minute })
    }

    #[test]
    fn a_minute_has_its_requests_and_no_more() {
        let (limiter, key, now) = (limiter(60, 0), Uuid::new_v4(), Instant::now());
        for _ in 0..60 {
            limiter.admit(key, now).unwrap();
        }
        let refused = limiter.admit(key, now).unwrap_err();
        assert!(matches!(refused, ApiError::RateLimited { retry_after_seconds: 1, .. }), "{refused:?}");
        limiter.admit(Uuid::new_v4(), now).unwrap();
        let second = now + Duration::from_secs(1);
        let left = limiter.admit(key, second).unwrap()[0];
        assert_eq!((left.limit, left.left.round()), (60, 0.0));
        assert!(limiter.admit(key, second).is_err());
    }

    #[test]
    fn tokens_are_taken_when_they_are_known() {
        let (limiter, key, now) = (limiter(0, 600), Uuid::new_v4(), Instant::now());
        limiter.admit(key, now).unwrap();
        limiter.charge(key, 900);
        let Err(ApiError::RateLimited { kind, retry_after_seconds, .. }) = limiter.admit(key, Instant::now()) else {
            panic!("admitted")
        };
        assert_eq!((kind, retry_after_seconds), (LimitKind::Tokens, 30));
        limiter.admit(key, now + Duration::from_secs(40)).unwrap();
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let limiter = limiter(0, 0);
        assert!(!limiter.limits_any());
        assert!(limiter.admit(Uuid::new_v4(), Instant::now()).unwrap().is_empty());
    }
}
