//! Deployments in responses.

use attune_store::pools::deployment::Deployment;
use serde::Serialize;
use utoipa::ToSchema;

/// A deployment.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DeploymentView {
    /// The deployment's ID.
    #[schema(example = "deploy_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `deployment`.
    #[schema(example = "deployment")]
    pub object: &'static str,
    /// The label.
    pub name: String,
    /// The name of the base model.
    pub model: String,
    /// The quantization of the base.
    pub quantization: String,
    /// The program that generates the tokens: `attune`, `vllm` or `lorax`.
    pub engine: &'static str,
    /// The devices that the replicas may use: `auto`, `cpu` or `cuda`.
    pub device: &'static str,
    /// The name of the base model that proposes tokens; `null`: none.
    pub draft_model: Option<String>,
    /// The number type of keys and values in memory: `auto` or `int8`.
    pub kv_cache_dtype: &'static str,
    /// The IDs of the fine-tuned models that replicas keep in memory. Deleted ones are not listed.
    pub pinned_adapters: Vec<String>,
    /// The replicas that run all the time.
    pub min_replicas: u32,
    /// The maximum number of replicas.
    pub max_replicas: u32,
    /// The requests per replica that the autoscaler aims at; `null`: the installation's.
    pub target_concurrency: Option<u32>,
    /// The seconds without a request after which the replicas beyond the minimum are stopped; `null`: the
    /// installation's.
    pub cooldown_seconds: Option<u32>,
    /// The deployment's replicas, which only requests of its project use.
    pub replicas: ReplicaCounts,
    /// True while the deployment has no replicas, because the project's budget is spent. Requests use the replicas that
    /// projects without a deployment share.
    pub suspended: bool,
    /// True if the deployment keeps replicas, and the project sent no request to them for a day.
    pub idle: bool,
    /// The time of the project's last request, in Unix seconds, to the minute; `null`: there was none.
    pub last_request_at: Option<i64>,
    /// The hours of its replicas that were charged, from the reservation of each machine to its release.
    pub replica_hours: f64,
    /// The sum of the charges, in US dollars.
    pub cost_usd: f64,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
}

/// The number of replicas, by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReplicaCounts {
    /// Waiting for a machine, or loading the base.
    pub starting: i64,
    /// Serving requests.
    pub ready: i64,
    /// Completing their last requests.
    pub draining: i64,
}

impl From<Deployment> for DeploymentView {
    fn from(deployment: Deployment) -> Self {
        let Deployment { bounds, replicas, .. } = deployment;
        Self {
            id: deployment.deployment_id.to_string(),
            object: "deployment",
            name: bounds.name,
            model: deployment.model,
            quantization: deployment.base.quantization.name().to_owned(),
            engine: deployment.kind.engine.name(),
            device: deployment.kind.device.name(),
            draft_model: deployment.draft_model,
            kv_cache_dtype: deployment.kind.kv_cache_dtype.name(),
            pinned_adapters: bounds.pinned_adapters.iter().map(ToString::to_string).collect(),
            min_replicas: bounds.min_replicas,
            max_replicas: bounds.max_replicas,
            target_concurrency: bounds.target_concurrency,
            cooldown_seconds: bounds.cooldown_seconds,
            replicas: ReplicaCounts { starting: replicas.starting, ready: replicas.ready, draining: replicas.draining },
            suspended: deployment.is_suspended,
            idle: deployment.is_idle,
            last_request_at: deployment.last_request_at.map(|at| at.timestamp()),
            replica_hours: deployment.node_ms as f64 / 3_600_000.0,
            cost_usd: deployment.micro_usd as f64 / 1e6,
            created_at: deployment.created_at.timestamp(),
        }
    }
}
