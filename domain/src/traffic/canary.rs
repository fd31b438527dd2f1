//! Canaries: a version that answers a share of an alias's requests until it is promoted or aborted; the split of
//! requests and the rule that aborts.

use std::fmt;

use crate::traffic::latency::Latencies;

/// The smallest share of a canary or a shadow, in percent.
pub const MIN_PERCENT: u8 = 1;

/// The largest share of a canary, in percent; all requests are a promotion.
pub const MAX_CANARY_PERCENT: u8 = 99;

/// The largest share of a shadow, in percent.
pub const MAX_SHADOW_PERCENT: u8 = 100;

/// The quantile of the time to the first token that is compared.
pub const COMPARED_QUANTILE: f64 = 0.95;

/// The rule by which the platform aborts a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AbortRule {
    /// The largest share of requests that may fail, from 0 to 1.
    pub max_error_rate: f64,
    /// The largest ratio of the 95th percentile of the time to the first token to that of the stable version.
    pub max_latency_ratio: f64,
    /// The number of requests that a version needs for a verdict.
    pub min_requests: u32,
}

impl AbortRule {
    /// The smallest and the largest `max_latency_ratio`.
    pub const LATENCY_RATIOS: (f64, f64) = (1.0, 1000.0);
    /// The smallest and the largest `min_requests`.
    pub const REQUESTS: (u32, u32) = (1, 1_000_000);
}

impl Default for AbortRule {
    fn default() -> Self {
        Self { max_error_rate: 0.05, max_latency_ratio: 2.0, min_requests: 50 }
    }
}

/// The requests of one version that are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The number of requests.
    pub requests: u64,
    /// The number of those that failed.
    pub errors: u64,
    /// The times to the first token.
    pub first_token: Latencies,
}

/// The verdict on a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// The canary continues.
    Continue,
    /// The canary is aborted.
    Abort(AbortReason),
}

/// The reason why the platform aborts a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AbortReason {
    /// Too many requests failed.
    ErrorRate {
        /// The share that failed.
        rate: f64,
        /// The rule's limit.
        limit: f64,
    },
    /// The time to the first token is too long.
    Latency {
        /// The ratio to the stable version.
        ratio: f64,
        /// The rule's limit.
        limit: f64,
    },
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ErrorRate { rate, limit } => {
                write!(f, "The error rate {rate:.4} is above 'max_error_rate', {limit}.")
            }
            Self::Latency { ratio, limit } => write!(
                f,
                "The 95th percentile of the time to the first token is {ratio:.2} times that of the stable version, \
                 above 'max_latency_ratio', {limit}."
            ),
        }
    }
}

/// Returns the verdict on a canary by the requests of both versions since it began. Further rules are added here.
#[must_use]
pub fn verdict(rule: AbortRule, stable: &Observed, canary: &Observed) -> Verdict {
    let reason = error_rate(rule, canary).or_else(|| latency(rule, stable, canary));
    reason.map_or(Verdict::Continue, Verdict::Abort)
}

fn error_rate(rule: AbortRule, canary: &Observed) -> Option<AbortReason> {
    if canary.requests < u64::from(rule.min_requests) {
        return None;
    }
    let (rate, limit) = (canary.errors as f64 / canary.requests.max(1) as f64, rule.max_error_rate);
    (rate > limit).then_some(AbortReason::ErrorRate { rate, limit })
}

fn latency(rule: AbortRule, stable: &Observed, canary: &Observed) -> Option<AbortReason> {
    let is_measured = |observed: &Observed| observed.first_token.count() >= u64::from(rule.min_requests);
    if !is_measured(stable) || !is_measured(canary) {
        return None;
    }
    let p95 = |observed: &Observed| observed.first_token.quantile_ms(COMPARED_QUANTILE);
    let (ratio, limit) = (p95(canary)? / p95(stable)?, rule.max_latency_ratio);
    (ratio > limit).then_some(AbortReason::Latency { ratio, limit })
}

/// Returns whether a request belongs to the share of `percent`. The same `salt` and `key` are always on the same side,
/// and stay in the share when it grows.
#[must_use]
pub fn is_in_share(salt: &str, key: &str, percent: u8) -> bool {
    u128::from(hash(salt, key)) * 100 < u128::from(percent) << 64
}

/// Returns a hash of both texts, with a separator between them: FNV-1a of 64 bits, then `MurmurHash3`'s finalizer,
/// which spreads the last bytes over the high bits. Sources: <https://datatracker.ietf.org/doc/draft-eastlake-fnv/>,
/// `fmix64` in <https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp>.
fn hash(salt: &str, key: &str) -> u64 {
    let bytes = salt.bytes().chain([0]).chain(key.bytes());
    let fnv = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RULE: AbortRule = AbortRule { max_error_rate: 0.1, max_latency_ratio: 1.5, min_requests: 20 };

    fn observed(requests: u64, errors: u64, ms: u64) -> Observed {
        let mut first_token = Latencies::default();
        (0..requests - errors).for_each(|_| first_token.record(Duration::from_millis(ms)));
        Observed { requests, errors, first_token }
    }

    #[test]
    fn a_canary_is_aborted_for_errors_and_for_latency_but_not_before_enough_requests() {
        let stable = observed(100, 0, 100);
        let aborted = |canary: &Observed| verdict(RULE, &stable, canary);
        assert_eq!(aborted(&observed(19, 19, 100)), Verdict::Continue, "too few");
        assert_eq!(aborted(&observed(20, 2, 100)), Verdict::Continue, "the limit itself is allowed");
        assert_eq!(aborted(&observed(20, 3, 100)), Verdict::Abort(AbortReason::ErrorRate { rate: 0.15, limit: 0.1 }));
        assert_eq!(aborted(&observed(30, 0, 120)), Verdict::Continue);
        let Verdict::Abort(AbortReason::Latency { ratio, .. }) = aborted(&observed(30, 0, 300)) else { panic!() };
        assert!((2.4..3.6).contains(&ratio), "{ratio}");
        assert_eq!(verdict(RULE, &observed(5, 0, 1), &observed(30, 0, 300)), Verdict::Continue, "nothing to compare");
    }

    #[test]
    fn a_reason_names_the_limit() {
        let text = AbortReason::ErrorRate { rate: 0.15, limit: 0.1 }.to_string();
        assert_eq!(text, "The error rate 0.1500 is above 'max_error_rate', 0.1.");
    }

    #[test]
    fn a_share_is_as_large_as_stated_and_only_grows() {
        let keys: Vec<String> = (0..20_000).map(|i| format!("req_{i}")).collect();
        for percent in [1_u8, 10, 50, 99] {
            let found = keys.iter().filter(|key| is_in_share("house@prod", key, percent)).count();
            let share = found as f64 / keys.len() as f64 * 100.0;
            // Five standard deviations of a binomial share.
            let wanted = f64::from(percent);
            let bound = 5.0 * (wanted * (100.0 - wanted) / keys.len() as f64).sqrt();
            assert!((share - wanted).abs() < bound, "{share} instead of {wanted}");
        }
        for key in &keys {
            assert!(!is_in_share("a", key, 10) || is_in_share("a", key, 20), "{key} left a share that grew");
            assert!(is_in_share("a", key, 100) && !is_in_share("a", key, 0));
        }
        let both = keys.iter().filter(|key| is_in_share("a", key, 10) && is_in_share("b", key, 10)).count();
        assert!((120..280).contains(&both), "two aliases choose independently: {both}");
    }
}
