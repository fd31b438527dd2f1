//! Prices, caps and budgets: dollars on the wire, millionths of a dollar inside.

use attune_store::tenancy::money::Budget;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// More is no limit.
const MOST_USD: f64 = 1e9;

/// Dollars as millionths, up where it does not come out even, so that a limit above 0 stays above 0.
#[must_use]
pub fn micro_usd(usd: f64) -> i64 {
    (usd * 1e6).ceil() as i64
}

/// Millionths as dollars.
#[must_use]
pub fn usd(micro_usd: i64) -> f64 {
    micro_usd as f64 / 1e6
}

/// What a job may take, as it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ComputeFields {
    /// When it has cost so many dollars it is paused, and goes on when this is raised; `null`: whatever it takes.
    #[schema(exclusive_minimum = 0, maximum = 1000000000)]
    pub max_price_usd: Option<f64>,
}

impl ComputeFields {
    /// The cap in millionths.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: it is not above 0, or no limit any more.
    pub fn checked(&self) -> Result<Option<i64>, ApiError> {
        let Some(asked) = self.max_price_usd else { return Ok(None) };
        if asked > 0.0 && asked <= MOST_USD {
            return Ok(Some(micro_usd(asked)));
        }
        let param = "compute.max_price_usd";
        Err(ApiError::invalid(param, format!("Invalid '{param}': {asked} is not above 0 and at most {MOST_USD}.")))
    }
}

/// What a job may take from now on.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ComputeChange {
    /// When it has cost so many dollars it is paused; `null`: whatever it takes.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(exclusive_minimum = 0, maximum = 1000000000)]
    pub max_price_usd: Option<f64>,
}

impl ComputeChange {
    /// The cap in millionths.
    ///
    /// # Errors
    /// As [`ComputeFields::checked`].
    pub fn checked(&self) -> Result<Option<i64>, ApiError> {
        ComputeFields { max_price_usd: self.max_price_usd }.checked()
    }
}

/// What a job may take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct ComputeView {
    /// When it has cost so many dollars it is paused; `null`: whatever it takes.
    pub max_price_usd: Option<f64>,
}

/// What a job has used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct JobUsage {
    /// Tokens with a loss; each step once, however often it was done again after a loss.
    pub trained_tokens: i64,
    /// For which its runs held machines.
    pub node_seconds: f64,
    /// By the prices of then.
    pub cost_usd: f64,
}

/// A budget to be set.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBudget {
    /// What the project may spend in a calendar month (UTC); `null`: as much as it likes.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(minimum = 0, maximum = 1000000000)]
    pub monthly_usd: Option<f64>,
}

impl NewBudget {
    /// The budget in millionths.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: it is below 0, or no limit any more.
    pub fn checked(&self) -> Result<Option<i64>, ApiError> {
        let Some(asked) = self.monthly_usd else { return Ok(None) };
        if (0.0..=MOST_USD).contains(&asked) {
            return Ok(Some(micro_usd(asked)));
        }
        let message = format!("Invalid 'monthly_usd': {asked} is not from 0 to {MOST_USD}.");
        Err(ApiError::invalid("monthly_usd", message))
    }
}

/// What a project may spend, and what it has spent.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BudgetView {
    /// Always `budget`.
    pub object: &'static str,
    /// Whose.
    pub project_id: String,
    /// In a calendar month (UTC); `null`: as much as it likes.
    pub monthly_usd: Option<f64>,
    /// This month, runs that are at work included.
    pub spent_usd: f64,
    /// The beginning of the month, Unix time in seconds.
    pub since: i64,
}

impl BudgetView {
    /// The budget of a project.
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
        assert_eq!(ComputeFields { max_price_usd: Some(1e-9) }.checked().unwrap(), Some(1));
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 2e9] {
            assert!(ComputeFields { max_price_usd: Some(wrong) }.checked().is_err(), "{wrong}");
        }
        assert_eq!(NewBudget { monthly_usd: Some(0.0) }.checked().unwrap(), Some(0));
        assert!(NewBudget { monthly_usd: Some(f64::NAN) }.checked().is_err());
    }
}
