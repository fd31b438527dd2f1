//! The settings of a project in the queue of jobs.

use attune_domain::{id::ProjectId, job::Priority};
use attune_store::tenancy::project_queue::Settings;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// The smallest weight of a project.
pub const LEAST_WEIGHT: f64 = 0.01;

/// The largest weight of a project.
pub const MOST_WEIGHT: f64 = 100.0;

/// The largest accepted maximum of running jobs. A larger one would not limit anything.
pub const MOST_RUNNING_JOBS: u32 = 10_000;

/// The request body for setting a project's share of the machines. An omitted field has its default.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProjectQueue {
    /// The weight: twice the weight is twice the share of the machines. Defaults to 1.
    #[schema(minimum = 0.01, maximum = 100)]
    pub weight: Option<f64>,
    /// The maximum number of jobs that run at the same time; `null` for no maximum, which is the default.
    #[schema(minimum = 1, maximum = 10000)]
    pub max_running_jobs: Option<i64>,
    /// The highest priority that a job of the project may have: `low`, `normal` or `high`. Defaults to `normal`.
    #[schema(value_type = Option<String>, pattern = "^(low|normal|high)$")]
    pub max_priority: Option<Priority>,
}

impl NewProjectQueue {
    /// Returns the settings.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for the first field that is out of its range.
    pub fn checked(&self) -> Result<Settings, ApiError> {
        let default = Settings::default();
        let weight = self.weight.unwrap_or(default.weight);
        if !(LEAST_WEIGHT..=MOST_WEIGHT).contains(&weight) {
            let message = format!("Invalid 'weight': {weight} is not from {LEAST_WEIGHT} to {MOST_WEIGHT}.");
            return Err(ApiError::invalid("weight", message));
        }
        let max_running_jobs = self.max_running_jobs.map(running_jobs).transpose()?;
        Ok(Settings { weight, max_running_jobs, max_priority: self.max_priority.unwrap_or(default.max_priority) })
    }
}

fn running_jobs(asked: i64) -> Result<u32, ApiError> {
    let count = u32::try_from(asked).ok().filter(|count| (1..=MOST_RUNNING_JOBS).contains(count));
    count.ok_or_else(|| {
        let message = format!(
            "Invalid 'max_running_jobs': {asked} is not from 1 to {MOST_RUNNING_JOBS}. Use null for no maximum."
        );
        ApiError::invalid("max_running_jobs", message)
    })
}

/// A project's share of the machines.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ProjectQueueView {
    /// The object type, always `organization.project.queue`.
    pub object: &'static str,
    /// The project's ID.
    pub project_id: String,
    /// The weight: twice the weight is twice the share of the machines.
    pub weight: f64,
    /// The maximum number of jobs that run at the same time; `null` for no maximum.
    pub max_running_jobs: Option<u32>,
    /// The highest priority that a job of the project may have: `low`, `normal` or `high`.
    pub max_priority: &'static str,
}

impl ProjectQueueView {
    /// Creates the view of a project's settings.
    pub fn new(project: ProjectId, settings: Settings) -> Self {
        Self {
            object: "organization.project.queue",
            project_id: project.to_string(),
            weight: settings.weight,
            max_running_jobs: settings.max_running_jobs,
            max_priority: settings.max_priority.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::json_body::from_value;

    fn checked(body: Value) -> Result<Settings, Option<String>> {
        let settings = from_value::<NewProjectQueue>(body).and_then(|new| new.checked());
        settings.map_err(|error| error.body().error.param)
    }

    #[test]
    fn what_is_omitted_has_its_default() {
        assert_eq!(checked(json!({})), Ok(Settings::default()));
        let all = json!({"weight": 2, "max_running_jobs": 3, "max_priority": "high"});
        let settings = Settings { weight: 2.0, max_running_jobs: Some(3), max_priority: Priority::High };
        assert_eq!(checked(all), Ok(settings));
        assert_eq!(checked(json!({"max_running_jobs": null})).unwrap().max_running_jobs, None);
    }

    #[test]
    fn limit_the_share_of_a_project_has_bounds() {
        for weight in [LEAST_WEIGHT, MOST_WEIGHT] {
            assert_eq!(checked(json!({"weight": weight})).unwrap().weight.to_bits(), weight.to_bits());
        }
        for weight in [0.0, -1.0, 0.009, 100.1] {
            assert_eq!(checked(json!({"weight": weight})), Err(Some("weight".into())), "{weight}");
        }
        let most = i64::from(MOST_RUNNING_JOBS);
        assert_eq!(checked(json!({"max_running_jobs": most})).unwrap().max_running_jobs, Some(MOST_RUNNING_JOBS));
        for count in [0, -1, most + 1, i64::MAX] {
            assert_eq!(checked(json!({"max_running_jobs": count})), Err(Some("max_running_jobs".into())), "{count}");
        }
        assert_eq!(checked(json!({"max_priority": "urgent"})), Err(Some("max_priority".into())));
        assert_eq!(checked(json!({"wieght": 1})), Err(Some("wieght".into())));
    }
}
