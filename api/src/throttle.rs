//! How often a key may ask, and how many tokens it may have: two buckets per key, told in OpenAI's headers.
//!
//! A bucket holds a minute's allowance and fills evenly. A request takes one; the tokens of an answer are taken when they
//! are known, so the bucket may go below nothing, and the next request waits until it is above it again. The buckets are
//! this process's own: with several api processes behind a balancer, each allows its share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use attune_domain::access::Actor;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use crate::{app::App, caller::Caller, config::RateLimits, error::ApiError};

/// So many keys are remembered before those whose buckets are full again are let go.
const REMEMBERED: usize = 10_000;

tokio::task_local! {
    static ALLOWANCE: Allowance;
}

/// From which the tokens of a request's answers are taken.
#[derive(Debug, Clone)]
pub struct Allowance {
    rates: Arc<Rates>,
    key: Uuid,
}

impl Allowance {
    /// That of the request that is being answered; `None`: nobody limits it.
    pub fn of_request() -> Option<Self> {
        ALLOWANCE.try_with(Clone::clone).ok()
    }

    /// Takes tokens off the key's allowance.
    pub fn charge(&self, tokens: u64) {
        self.rates.charge(self.key, tokens);
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Requests of any kind.
    Requests,
    /// Tokens, of prompts and of answers.
    Tokens,
}

impl Counted {
    /// OpenAI's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// How a key stands with one of its allowances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// What.
    pub counted: Counted,
    /// A minute's allowance.
    pub limit: u32,
    /// What is left of it; below nothing after a long answer.
    pub left: f64,
}

impl Standing {
    /// Seconds until there are `wanted`.
    fn seconds_until(&self, wanted: f64) -> f64 {
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

/// All keys' buckets.
#[derive(Debug)]
pub struct Rates {
    limits: RateLimits,
    keys: Mutex<HashMap<Uuid, Buckets>>,
}

impl Rates {
    /// Full ones.
    pub fn new(limits: RateLimits) -> Self {
        Self { limits, keys: Mutex::new(HashMap::new()) }
    }

    /// Whether anything is limited.
    const fn limits_any(&self) -> bool {
        self.limits.requests_per_minute > 0 || self.limits.tokens_per_minute > 0
    }

    /// Takes one request of `key`'s, if it may make one, and says how it stands.
    ///
    /// # Errors
    /// [`ApiError::RateLimited`]: the allowance that is used up, and when there is some again.
    fn admit(&self, key: Uuid, now: Instant) -> Result<Vec<Standing>, ApiError> {
        let mut keys = self.keys();
        let buckets = self.filled(&mut keys, key, now);
        for standing in self.standings(*buckets) {
            let wanted = if standing.counted == Counted::Requests { 1.0 } else { f64::MIN_POSITIVE };
            if standing.left < wanted {
                return Err(refusal(standing, wanted));
            }
        }
        buckets.requests.left -= 1.0;
        Ok(self.standings(*buckets))
    }

    /// Takes the tokens of an answer.
    pub fn charge(&self, key: Uuid, tokens: u64) {
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
            // A bucket that has had a minute is full, and a full one is as good as none.
            keys.retain(|_, buckets| now.saturating_duration_since(buckets.requests.at).as_secs() < 60);
        }
        let full = Buckets { requests: Bucket::full(requests, now), tokens: Bucket::full(tokens, now) };
        let buckets = keys.entry(key).or_insert(full);
        buckets.requests.fill(requests, now);
        buckets.tokens.fill(tokens, now);
        buckets
    }

    fn standings(&self, buckets: Buckets) -> Vec<Standing> {
        let all = [
            (Counted::Requests, self.limits.requests_per_minute, buckets.requests.left),
            (Counted::Tokens, self.limits.tokens_per_minute, buckets.tokens.left),
        ];
        let limited = all.into_iter().filter(|(_, limit, _)| *limit > 0);
        limited.map(|(counted, limit, left)| Standing { counted, limit, left }).collect()
    }
}

fn refusal(standing: Standing, wanted: f64) -> ApiError {
    let seconds = standing.seconds_until(wanted).ceil().max(1.0) as u64;
    let (what, limit) = (standing.counted.name(), standing.limit);
    let message = format!(
        "Rate limit reached for {what} per minute: the limit is {limit}, and it is used up. Please try again in {seconds} s."
    );
    ApiError::RateLimited { counted: standing.counted, message, retry_after_seconds: seconds }
}

/// Counts a request, refuses it if its key has had its share, and says in the answer what is left.
pub async fn limit(State(app): State<App>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().filter(|_| app.rates.limits_any());
    let key = caller.map(|caller| match caller.0.actor {
        Actor::ApiKey(id) => id.uuid(),
        Actor::Person(id) => id.uuid(),
    });
    let Some(key) = key else { return next.run(request).await };
    match app.rates.admit(key, Instant::now()) {
        Ok(standings) => {
            let allowance = Allowance { rates: Arc::clone(&app.rates), key };
            let mut response = ALLOWANCE.scope(allowance, next.run(request)).await;
            tell(response.headers_mut(), &standings);
            response
        }
        Err(refused) => {
            let now = app.rates.standings(*app.rates.filled(&mut app.rates.keys(), key, Instant::now()));
            let mut response = refused.into_response();
            tell(response.headers_mut(), &now);
            response
        }
    }
}

/// OpenAI's headers. Source: OpenAI's guide to rate limits, "Rate limits in headers".
fn tell(headers: &mut HeaderMap, standings: &[Standing]) {
    for standing in standings {
        let name = standing.counted.name();
        let full_in = duration(standing.seconds_until(f64::from(standing.limit)));
        for (kind, value) in [
            ("limit", standing.limit.to_string()),
            ("remaining", (standing.left.max(0.0) as u64).to_string()),
            ("reset", full_in),
        ] {
            let header = HeaderName::try_from(format!("x-ratelimit-{kind}-{name}"));
            if let (Ok(header), Ok(value)) = (header, HeaderValue::try_from(value)) {
                headers.insert(header, value);
            }
        }
    }
}

/// As OpenAI writes it: `1m2s`, `1s`, `6ms`.
fn duration(seconds: f64) -> String {
    let ms = (seconds * 1000.0).ceil() as u64;
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", ms.div_ceil(1000)),
        _ => {
            let whole = ms.div_ceil(1000);
            format!("{}m{}s", whole / 60, whole % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rates(requests_per_minute: u32, tokens_per_minute: u32) -> Rates {
        Rates::new(RateLimits { requests_per_minute, tokens_per_minute })
    }

    #[test]
    fn a_minute_has_its_requests_and_no_more() {
        let (rates, key, now) = (rates(60, 0), Uuid::new_v4(), Instant::now());
        for _ in 0..60 {
            rates.admit(key, now).unwrap();
        }
        let refused = rates.admit(key, now).unwrap_err();
        assert!(matches!(refused, ApiError::RateLimited { retry_after_seconds: 1, .. }), "{refused:?}");
        rates.admit(Uuid::new_v4(), now).unwrap();
        let second = now + Duration::from_secs(1);
        let left = rates.admit(key, second).unwrap()[0];
        assert_eq!((left.limit, left.left.round()), (60, 0.0));
        assert!(rates.admit(key, second).is_err());
    }

    #[test]
    fn tokens_are_taken_when_they_are_known() {
        let (rates, key, now) = (rates(0, 600), Uuid::new_v4(), Instant::now());
        rates.admit(key, now).unwrap();
        rates.charge(key, 900);
        let Err(ApiError::RateLimited { counted, retry_after_seconds, .. }) = rates.admit(key, Instant::now()) else {
            panic!("admitted")
        };
        assert_eq!((counted, retry_after_seconds), (Counted::Tokens, 30));
        rates.admit(key, now + Duration::from_secs(40)).unwrap();
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let rates = rates(0, 0);
        assert!(!rates.limits_any());
        assert!(rates.admit(Uuid::new_v4(), Instant::now()).unwrap().is_empty());
    }

    #[test]
    fn the_headers_are_openais() {
        let mut headers = HeaderMap::new();
        tell(&mut headers, &[Standing { counted: Counted::Tokens, limit: 600, left: 590.5 }]);
        assert_eq!(headers["x-ratelimit-limit-tokens"], "600");
        assert_eq!(headers["x-ratelimit-remaining-tokens"], "590");
        assert_eq!(headers["x-ratelimit-reset-tokens"], "950ms");
        assert_eq!([duration(0.0), duration(1.0), duration(61.5)], ["0ms", "1s", "1m2s"]);
    }
}
