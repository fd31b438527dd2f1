//! Prices, price caps and budgets: dollars in the API, millionths of a dollar inside the platform.

use attune_domain::{job::Priority, offer::ComputeLimits};
use attune_store::{jobs::job::Job, tenancy::money::Budget};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::compute_limits::{DeviceField, LimitFields};
use crate::error::ApiError;

/// The largest accepted limit, in USD. A larger one would not limit anything.
const MOST_USD: f64 = 1e9;

/// Converts dollars to millionths of a dollar. Rounds up, so that a limit above 0 stays above 0.
#[must_use]
pub fn micro_usd(usd: f64) -> i64 {
    (usd * 1e6).ceil() as i64
}

/// Converts millionths of a dollar to dollars.
#[must_use]
pub fn usd(micro_usd: i64) -> f64 {
    micro_usd as f64 / 1e6
}

/// Limits on a job's cost and machine, and its place in the queue, in the request to create it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ComputeFields {
    /// The price cap in USD. The job is paused when it has cost this much, and resumes when the cap is raised; `null`
    /// for no cap.
    #[schema(exclusive_minimum = 0, maximum = 1000000000)]
    pub max_price_usd: Option<f64>,
    /// The priority among the jobs of the project: `low`, `normal` or `high`. Defaults to `normal`. It must not be
    /// above the project's `max_priority`, which is `normal` unless an administrator has changed it.
    #[schema(value_type = Option<String>, pattern = "^(low|normal|high)$", example = "normal")]
    pub priority: Option<Priority>,
    /// `true` if the job may be stopped at a checkpoint for another job, and be queued again. Defaults to `false`.
    pub preemptible: Option<bool>,
    /// The maximum price of an hour of the machine, in USD; `null` for no maximum.
    #[schema(minimum = 0, maximum = 1000000000)]
    pub max_usd_per_hour: Option<f64>,
    /// The maximum predicted cost of the machine for the whole job, in USD: a machine on which the job would cost more
    /// is not used, and without another one the job fails before it starts; `null` for no maximum.
    #[schema(minimum = 0, maximum = 1000000000)]
    pub max_usd: Option<f64>,
    /// The time by which the job is predicted to end, in Unix seconds: a machine on which it would end later is not
    /// used, and without another one the job fails before it starts; `null` for no deadline.
    pub deadline: Option<i64>,
    /// `true` if the machine may be a spot machine, which its provider may reclaim at any time. Defaults to `false`.
    pub spot: Option<bool>,
    /// The allowed regions, by their providers' names; by default, any.
    #[schema(max_items = 20)]
    pub regions: Option<Vec<String>>,
    /// The allowed devices: `auto` (the default), `cpu`, `cuda`, or a list of GPU products, such as
    /// `["NVIDIA-L40S"]`.
    pub device: Option<DeviceField>,
}

impl ComputeFields {
    /// Returns the cap in millionths of a dollar.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the cap is not above 0, or is above the largest limit.
    pub fn checked(&self) -> Result<Option<i64>, ApiError> {
        let Some(asked) = self.max_price_usd else { return Ok(None) };
        if asked > 0.0 && asked <= MOST_USD {
            return Ok(Some(micro_usd(asked)));
        }
        let param = "compute.max_price_usd";
        Err(ApiError::invalid(param, format!("Invalid '{param}': {asked} is not above 0 and at most {MOST_USD}.")))
    }
}

impl ComputeFields {
    /// Returns the limits on the machine at a time in Unix seconds.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for the first invalid field.
    pub fn limits(&self, now: i64) -> Result<ComputeLimits, ApiError> {
        let fields = LimitFields {
            max_usd_per_hour: self.max_usd_per_hour,
            max_usd: self.max_usd,
            deadline: self.deadline,
            spot: self.spot,
            regions: self.regions.as_deref(),
            device: self.device.as_ref(),
        };
        fields.checked(now)
    }
}

/// Limits on a job's cost, in the request to change it.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ComputeChange {
    /// The price cap in USD. The job is paused when it has cost this much; `null` for no cap.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(exclusive_minimum = 0, maximum = 1000000000)]
    pub max_price_usd: Option<f64>,
}

impl ComputeChange {
    /// Returns the cap in millionths of a dollar.
    ///
    /// # Errors
    /// As for [`ComputeFields::checked`].
    pub fn checked(&self) -> Result<Option<i64>, ApiError> {
        ComputeFields { max_price_usd: self.max_price_usd, ..ComputeFields::default() }.checked()
    }
}

/// Limits on a job's cost and machine, and its place in the queue.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ComputeView {
    /// The price cap in USD. The job is paused when it has cost this much; `null` for no cap.
    pub max_price_usd: Option<f64>,
    /// The priority among the jobs of the project: `low`, `normal` or `high`.
    pub priority: &'static str,
    /// `true` if the job may be stopped at a checkpoint for another job, and be queued again.
    pub preemptible: bool,
    /// The maximum price of an hour of the machine, in USD; `null` for no maximum.
    pub max_usd_per_hour: Option<f64>,
    /// The maximum predicted cost of the machine for the whole job, in USD; `null` for no maximum.
    pub max_usd: Option<f64>,
    /// The time by which the job is predicted to end, in Unix seconds; `null` for no deadline.
    pub deadline: Option<i64>,
    /// `true` if the machine may be a spot machine.
    pub spot: bool,
    /// The allowed regions; empty for any.
    pub regions: Vec<String>,
    /// The allowed devices: `auto`, `cpu`, `cuda`, or a list of GPU products.
    pub device: DeviceField,
}

impl ComputeView {
    /// Creates the view of a job's limits and its place in the queue.
    pub fn new(job: &Job) -> Self {
        let limits = &job.limits;
        Self {
            max_price_usd: job.max_micro_usd.map(usd),
            priority: job.priority.name(),
            preemptible: job.preemptible,
            max_usd_per_hour: limits.max_micro_usd_per_hour.map(|most| most as f64 / 1e6),
            max_usd: limits.max_micro_usd.map(|most| most as f64 / 1e6),
            deadline: limits.deadline,
            spot: limits.spot,
            regions: limits.regions.clone(),
            device: DeviceField::from(&limits.device),
        }
    }
}

/// The usage of a job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct JobUsage {
    /// The number of tokens with a loss. Each step counts once, however often it was repeated after a loss of the run.
    pub trained_tokens: i64,
    /// The time for which the job's runs held nodes, in seconds.
    pub node_seconds: f64,
    /// The cost in USD, at the prices in force at the time.
    pub cost_usd: f64,
}

/// The request body for setting a budget.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBudget {
    /// The maximum that the project may spend in a calendar month (UTC), in USD; `null` for no limit.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(minimum = 0, maximum = 1000000000)]
    pub monthly_usd: Option<f64>,
}

impl NewBudget {
    /// Returns the budget in millionths of a dollar.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the budget is below 0, or above the largest limit.
    pub fn checked(&self) -> Result<Option<i64>, ApiError> {
        let Some(asked) = self.monthly_usd else { return Ok(None) };
        if (0.0..=MOST_USD).contains(&asked) {
            return Ok(Some(micro_usd(asked)));
        }
        let message = format!("Invalid 'monthly_usd': {asked} is not from 0 to {MOST_USD}.");
        Err(ApiError::invalid("monthly_usd", message))
    }
}

/// A project's budget and its spending.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BudgetView {
    /// The object type, always `budget`.
    pub object: &'static str,
    /// The project's ID.
    pub project_id: String,
    /// The maximum that the project may spend in a calendar month (UTC), in USD; `null` for no limit.
    pub monthly_usd: Option<f64>,
    /// The amount spent this month in USD, including runs in progress.
    pub spent_usd: f64,
    /// The beginning of the month, in Unix seconds.
    pub since: i64,
}

impl BudgetView {
    /// Creates the view of a project's budget.
    pub fn new(project_id: String, budget: Budget) -> Self {
        Self {
            object: "budget",
            project_id,
            monthly_usd: budget.monthly_micro_usd.map(usd),
            spent_usd: usd(budget.spent_micro_usd),
            since: budget.since.timestamp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_above_nothing_stays_above_nothing() {
        let asked = |usd| ComputeFields { max_price_usd: Some(usd), ..ComputeFields::default() };
        assert_eq!(asked(1e-9).checked().unwrap(), Some(1));
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 2e9] {
            assert!(asked(wrong).checked().is_err(), "{wrong}");
        }
        assert_eq!(NewBudget { monthly_usd: Some(0.0) }.checked().unwrap(), Some(0));
        assert!(NewBudget { monthly_usd: Some(f64::NAN) }.checked().is_err());
    }
}
