//! The settings of a project in the queue of jobs: its share and its quotas; and the use of these.

use attune_domain::{bytes::Bytes, id::ProjectId, job::Priority, queue::WaitReason};
use attune_store::{
    files::storage::Storage,
    tenancy::{
        money::Budget,
        project_queue::{QuotaUse, Settings},
    },
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::money::usd;
use crate::error::ApiError;

/// The smallest weight of a project.
pub const LEAST_WEIGHT: f64 = 0.01;

/// The largest weight of a project.
pub const MOST_WEIGHT: f64 = 100.0;

/// The largest accepted maximum of running jobs. A larger one would not limit anything.
pub const MOST_RUNNING_JOBS: u32 = 10_000;

/// The largest accepted maximum of node-hours. A larger one would not limit anything.
pub const MOST_NODE_HOURS: f64 = 1e7;

/// The largest accepted maximum of stored bytes: 8 EiB.
pub const MOST_STORED_BYTES: i64 = i64::MAX;

/// The largest accepted maximum of replicas of a project's deployments.
pub const MOST_REPLICAS: u32 = 10_000;

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
    /// The maximum of node-hours that runs use in a calendar month (UTC); `null` for no maximum, which is the default.
    /// When they are used up, or running jobs are expected to use the rest, further jobs wait for the next month;
    /// running jobs are not stopped.
    #[schema(exclusive_minimum = 0, maximum = 10000000)]
    pub max_node_hours: Option<f64>,
    /// The maximum number of bytes that the project stores: files, uploads, base models, adapters and checkpoints;
    /// `null`, the default, for that of the installation, which is never exceeded.
    #[schema(minimum = 1)]
    pub max_stored_bytes: Option<i64>,
    /// The maximum of `max_replicas` of all deployments of the project together; `null`, the default, for 32. Existing
    /// deployments are not changed.
    #[schema(minimum = 0, maximum = 10000)]
    pub max_replicas: Option<i64>,
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
        Ok(Settings {
            weight,
            max_running_jobs: self.max_running_jobs.map(running_jobs).transpose()?,
            max_node_hours: self.max_node_hours.map(node_hours).transpose()?,
            max_stored_bytes: self.max_stored_bytes.map(stored_bytes).transpose()?,
            max_replicas: self.max_replicas.map(replicas).transpose()?,
            max_priority: self.max_priority.unwrap_or(default.max_priority),
        })
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

fn replicas(asked: i64) -> Result<u32, ApiError> {
    u32::try_from(asked).ok().filter(|count| *count <= MOST_REPLICAS).ok_or_else(|| {
        let message = format!("Invalid 'max_replicas': {asked} is not from 0 to {MOST_REPLICAS}. Use null for 32.");
        ApiError::invalid("max_replicas", message)
    })
}

fn node_hours(asked: f64) -> Result<f64, ApiError> {
    if asked > 0.0 && asked <= MOST_NODE_HOURS {
        return Ok(asked);
    }
    let message = format!(
        "Invalid 'max_node_hours': {asked} is not above 0 and at most {MOST_NODE_HOURS}. Use null for no maximum."
    );
    Err(ApiError::invalid("max_node_hours", message))
}

fn stored_bytes(asked: i64) -> Result<Bytes, ApiError> {
    if asked > 0 {
        return Ok(Bytes::from_i64(asked));
    }
    let message = format!(
        "Invalid 'max_stored_bytes': {asked} is not from 1 to {MOST_STORED_BYTES}. Use null for the maximum of the \
         installation."
    );
    Err(ApiError::invalid("max_stored_bytes", message))
}

/// A project's share of the machines, and its quotas.
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
    /// The maximum of node-hours that runs use in a calendar month (UTC); `null` for no maximum.
    pub max_node_hours: Option<f64>,
    /// The maximum number of bytes that the project stores; `null` for that of the installation.
    pub max_stored_bytes: Option<u64>,
    /// The maximum of `max_replicas` of all deployments of the project together; `null` for 32.
    pub max_replicas: Option<u32>,
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
            max_node_hours: settings.max_node_hours,
            max_stored_bytes: settings.max_stored_bytes.map(|bytes| bytes.0),
            max_replicas: settings.max_replicas,
            max_priority: settings.max_priority.name(),
        }
    }
}

/// A project's quotas, and their use.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct QuotasView {
    /// The object type, always `organization.usage.quotas`.
    pub object: &'static str,
    /// The project's ID.
    pub project_id: String,
    /// The number of jobs that hold a machine.
    pub running_jobs: i64,
    /// The maximum number of jobs that run at the same time; `null` for no maximum.
    pub max_running_jobs: Option<u32>,
    /// The node-hours of this month, including runs in progress. Refunds are subtracted.
    pub node_hours: f64,
    /// The maximum of node-hours in a calendar month (UTC); `null` for no maximum.
    pub max_node_hours: Option<f64>,
    /// The number of bytes that the project stores.
    pub stored_bytes: u64,
    /// The maximum number of stored bytes: of the project or of the installation, whichever is smaller.
    pub max_stored_bytes: u64,
    /// The amount spent this month in USD, including runs in progress.
    pub spent_usd: f64,
    /// The budget of a calendar month in USD; `null` for no limit.
    pub monthly_usd: Option<f64>,
    /// The time at which the next month begins, in Unix seconds.
    pub next_month: i64,
}

impl QuotasView {
    /// Creates the view of a project's quotas, from what it uses, spends and stores.
    pub fn new(
        project: ProjectId,
        settings: Settings,
        (used, budget): (QuotaUse, Budget),
        (stored, max_stored): (Storage, Storage),
    ) -> Self {
        Self {
            object: "organization.usage.quotas",
            project_id: project.to_string(),
            running_jobs: used.running_jobs,
            max_running_jobs: settings.max_running_jobs,
            node_hours: used.node_seconds / 3600.0,
            max_node_hours: settings.max_node_hours,
            stored_bytes: stored.bytes.0,
            max_stored_bytes: max_stored.bytes.0,
            spent_usd: usd(budget.spent_micro_usd),
            monthly_usd: budget.monthly_micro_usd.map(usd),
            next_month: used.next_month.timestamp(),
        }
    }

    /// Returns the quota for which a new job would wait.
    pub fn wait_reason(&self) -> Option<WaitReason> {
        let running = u32::try_from(self.running_jobs).unwrap_or(u32::MAX);
        if let Some(max_running) = self.max_running_jobs.filter(|&max| running >= max) {
            return Some(WaitReason::Quota { running, max_running });
        }
        let seconds = |hours: f64| (hours * 3600.0) as u64;
        let max = self.max_node_hours.filter(|&max| self.node_hours >= max)?;
        Some(WaitReason::NodeHours { used: seconds(self.node_hours), expected: 0, max: seconds(max) })
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
        let all = json!({"weight": 2, "max_running_jobs": 3, "max_node_hours": 0.5, "max_stored_bytes": 100,
            "max_replicas": 4, "max_priority": "high"});
        let settings = Settings {
            weight: 2.0,
            max_running_jobs: Some(3),
            max_node_hours: Some(0.5),
            max_stored_bytes: Some(Bytes(100)),
            max_replicas: Some(4),
            max_priority: Priority::High,
        };
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
        assert_eq!(checked(json!({"max_node_hours": MOST_NODE_HOURS})).unwrap().max_node_hours, Some(MOST_NODE_HOURS));
        for hours in [0.0, -1.0, 2.0 * MOST_NODE_HOURS] {
            assert_eq!(checked(json!({"max_node_hours": hours})), Err(Some("max_node_hours".into())), "{hours}");
        }
        let most = checked(json!({"max_stored_bytes": MOST_STORED_BYTES})).unwrap().max_stored_bytes;
        assert_eq!(most, Some(Bytes::from_i64(MOST_STORED_BYTES)));
        for bytes in [0, -1, i64::MIN] {
            assert_eq!(checked(json!({"max_stored_bytes": bytes})), Err(Some("max_stored_bytes".into())), "{bytes}");
        }
        for count in [0, MOST_REPLICAS] {
            assert_eq!(checked(json!({"max_replicas": count})).unwrap().max_replicas, Some(count));
        }
        for count in [-1, i64::from(MOST_REPLICAS) + 1] {
            assert_eq!(checked(json!({"max_replicas": count})), Err(Some("max_replicas".into())), "{count}");
        }
        assert_eq!(checked(json!({"max_priority": "urgent"})), Err(Some("max_priority".into())));
        assert_eq!(checked(json!({"wieght": 1})), Err(Some("wieght".into())));
    }

    #[test]
    fn a_job_waits_for_a_quota_that_is_used_up() {
        let view = |running_jobs, node_seconds| {
            let used = QuotaUse { running_jobs, node_seconds, next_month: chrono::DateTime::UNIX_EPOCH };
            let budget = Budget { monthly_micro_usd: None, spent_micro_usd: 5, since: used.next_month };
            let settings = Settings { max_running_jobs: Some(2), max_node_hours: Some(1.0), ..Settings::default() };
            let storage = |bytes| Storage { bytes: Bytes(bytes), objects: 1 };
            let project = ProjectId::new(uuid::Uuid::from_u128(1));
            QuotasView::new(project, settings, (used, budget), (storage(1), storage(9)))
        };
        assert_eq!(view(1, 3599.0).wait_reason(), None);
        assert_eq!(view(2, 0.0).wait_reason(), Some(WaitReason::Quota { running: 2, max_running: 2 }));
        let used_up = WaitReason::NodeHours { used: 3600, expected: 0, max: 3600 };
        assert_eq!(view(1, 3600.0).wait_reason(), Some(used_up));
    }
}
