//! Canaries: versions that answer a share of an alias's requests.

use std::{fmt::Display, ops::RangeInclusive};

use attune_domain::traffic::canary::{AbortRule, COMPARED_QUANTILE, MAX_CANARY_PERCENT, MIN_PERCENT, Observed};
use attune_store::adapters::adapter_canary::{Canary, Share};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// The request body for starting or changing a canary.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCanary {
    /// A version of the adapter: its number, its ID or its model name.
    #[schema(example = "3")]
    pub version: String,
    /// The share of the alias's requests that the version answers, in percent, from 1 to 99.
    #[schema(minimum = 1, maximum = 99)]
    pub percent: i64,
    /// The rule by which the platform aborts the canary.
    #[serde(default)]
    pub abort: NewAbortRule,
}

/// The rule by which the platform aborts a canary, in a request.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAbortRule {
    /// The largest share of the canary's requests that may fail, from 0 to 1. Requests that are at fault themselves,
    /// and those refused for a lack of capacity, do not count. Defaults to 0.05.
    pub max_error_rate: Option<f64>,
    /// The largest ratio, from 1 to 1000, of the 95th percentile of the canary's time to the first token to that of the
    /// stable version since the canary began. Defaults to 2.
    pub max_latency_ratio: Option<f64>,
    /// The number of requests, from 1 to 1000000, that a version needs for a verdict. Defaults to 50.
    pub min_requests: Option<i64>,
}

impl NewCanary {
    /// Returns the share and the rule.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a number is out of its range.
    pub fn share(&self) -> Result<Share, ApiError> {
        let percent = whole("percent", self.percent, MIN_PERCENT..=MAX_CANARY_PERCENT)?;
        Ok(Share { percent, rule: self.abort.checked()? })
    }
}

impl NewAbortRule {
    fn checked(&self) -> Result<AbortRule, ApiError> {
        let default = AbortRule::default();
        let ((low, high), (fewest, most)) = (AbortRule::LATENCY_RATIOS, AbortRule::REQUESTS);
        let rate = self.max_error_rate.unwrap_or(default.max_error_rate);
        let ratio = self.max_latency_ratio.unwrap_or(default.max_latency_ratio);
        let requests = self.min_requests.unwrap_or(default.min_requests.into());
        Ok(AbortRule {
            max_error_rate: within("abort.max_error_rate", rate, 0.0..=1.0)?,
            max_latency_ratio: within("abort.max_latency_ratio", ratio, low..=high)?,
            min_requests: whole("abort.min_requests", requests, fewest..=most)?,
        })
    }
}

fn within<T: PartialOrd + Display>(param: &str, value: T, range: RangeInclusive<T>) -> Result<T, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(out_of_range(param, &value, &range))
}

/// Returns a whole number, if it is in the range.
///
/// # Errors
/// [`ApiError::Invalid`]: it is not.
pub(super) fn whole<T>(param: &str, value: i64, range: RangeInclusive<T>) -> Result<T, ApiError>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    let fits = T::try_from(value).ok().filter(|fits| range.contains(fits));
    fits.ok_or_else(|| out_of_range(param, &value, &range))
}

fn out_of_range(param: &str, value: &impl Display, range: &RangeInclusive<impl Display>) -> ApiError {
    let (low, high) = (range.start(), range.end());
    ApiError::invalid(param, format!("Invalid '{param}': {value} is not from {low} to {high}."))
}

/// The rule by which the platform aborts a canary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct AbortRuleView {
    /// The largest share of the canary's requests that may fail, from 0 to 1.
    pub max_error_rate: f64,
    /// The largest ratio of the 95th percentile of the time to the first token to that of the stable version.
    pub max_latency_ratio: f64,
    /// The number of requests that a version needs for a verdict.
    pub min_requests: u32,
}

impl From<AbortRule> for AbortRuleView {
    fn from(rule: AbortRule) -> Self {
        let AbortRule { max_error_rate, max_latency_ratio, min_requests } = rule;
        Self { max_error_rate, max_latency_ratio, min_requests }
    }
}

/// The requests to an alias that one version answered since the canary began, at most of the last 48 hours.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct ObservedView {
    /// The number of requests.
    pub requests: u64,
    /// The number of those that failed.
    pub errors: u64,
    /// The 95th percentile of the time to the first token, in milliseconds; `null` without requests.
    pub ttft_p95_ms: Option<f64>,
}

impl From<Observed> for ObservedView {
    fn from(observed: Observed) -> Self {
        let ttft_p95_ms = observed.first_token.quantile_ms(COMPARED_QUANTILE);
        Self { requests: observed.requests, errors: observed.errors, ttft_p95_ms }
    }
}

/// A canary: a version that answers a share of an alias's requests, or did so.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CanaryView {
    /// The canary's ID.
    pub id: String,
    /// The object type, always `adapter.canary`.
    pub object: &'static str,
    /// The status: `running`, `promoted` or `aborted`.
    #[schema(example = "running")]
    pub status: &'static str,
    /// The number of the version.
    pub version: i32,
    /// The ID of the version.
    pub adapter_version: String,
    /// The model name of the version.
    pub model: String,
    /// The ID of the version that the alias named when the canary began.
    pub stable_version: String,
    /// The share of the requests, in percent.
    pub percent: u8,
    /// The rule by which the platform aborts it.
    pub abort: AbortRuleView,
    /// The reason why it was aborted; `null` otherwise.
    pub reason: Option<String>,
    /// The requests that the version answered.
    pub observed: ObservedView,
    /// The requests that the stable version answered in the same time.
    pub observed_stable: ObservedView,
    /// The start, in Unix seconds.
    pub started_at: i64,
    /// The end, in Unix seconds; `null` while it runs.
    pub ended_at: Option<i64>,
}

impl CanaryView {
    /// Creates the view of a canary with the requests that its version and the stable version answered.
    #[must_use]
    pub fn new(canary: Canary, observed: Observed, stable: Observed) -> Self {
        Self {
            id: canary.adapter_canary_id.to_string(),
            object: "adapter.canary",
            status: canary.state.into(),
            version: canary.version,
            adapter_version: canary.adapter_version_id.to_string(),
            model: canary.model_name,
            stable_version: canary.stable_version_id.to_string(),
            percent: canary.percent,
            abort: canary.rule.into(),
            reason: canary.reason,
            observed: observed.into(),
            observed_stable: stable.into(),
            started_at: canary.started_at.timestamp(),
            ended_at: canary.ended_at.map(|ended| ended.timestamp()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(percent: i64, abort: NewAbortRule) -> String {
        NewCanary { version: "2".into(), percent, abort }.share().unwrap_err().body().error.message
    }

    #[test]
    fn limit_numbers_of_a_canary_are_refused_beyond_their_bounds() {
        for percent in [i64::MIN, -1, 0, 100, 101, i64::MAX] {
            let message = refused(percent, NewAbortRule::default());
            assert_eq!(message, format!("Invalid 'percent': {percent} is not from 1 to 99."));
        }
        let rule = NewAbortRule { max_error_rate: Some(1.1), ..NewAbortRule::default() };
        assert_eq!(refused(5, rule), "Invalid 'abort.max_error_rate': 1.1 is not from 0 to 1.");
        let rule = NewAbortRule { max_latency_ratio: Some(0.5), ..NewAbortRule::default() };
        assert_eq!(refused(5, rule), "Invalid 'abort.max_latency_ratio': 0.5 is not from 1 to 1000.");
        let rule = NewAbortRule { min_requests: Some(0), ..NewAbortRule::default() };
        assert_eq!(refused(5, rule), "Invalid 'abort.min_requests': 0 is not from 1 to 1000000.");
        for percent in [1, 99] {
            let new = NewCanary { version: "2".into(), percent, abort: NewAbortRule::default() };
            let share = new.share().unwrap();
            assert_eq!((i64::from(share.percent), share.rule), (percent, AbortRule::default()));
        }
    }
}
