//! The traffic of an adapter's versions.

use attune_domain::traffic::latency::Latencies;
use attune_store::adapters::adapter_traffic::VersionTraffic;
use serde::Serialize;
use utoipa::ToSchema;

/// The traffic of an adapter's versions in a time.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdapterMetricsView {
    /// The object type, always `adapter.metrics`.
    pub object: &'static str,
    /// The adapter's name.
    pub adapter: String,
    /// The time before now that the traffic is of: `hour` or `day`.
    #[schema(example = "hour")]
    pub window: &'static str,
    /// The traffic of each version that has any, newest version first.
    pub data: Vec<VersionMetricsView>,
}

/// The traffic of a version.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct VersionMetricsView {
    /// The number of the version.
    pub version: i32,
    /// The ID of the version.
    pub adapter_version: String,
    /// The model name of the version.
    pub model: String,
    /// The number of requests, those of batches included.
    pub requests: u64,
    /// The number of requests that failed for a reason other than the request itself or a lack of capacity.
    pub errors: u64,
    /// The number of prompt tokens.
    pub input_tokens: u64,
    /// The number of generated tokens.
    pub output_tokens: u64,
    /// The number of requests by where the serving process found the adapter.
    pub tiers: TiersView,
    /// The time from sending the request to a serving process that is ready to the first token, in milliseconds.
    pub ttft_ms: QuantilesView,
    /// The mean time between the tokens of an answer, in milliseconds.
    pub tpot_ms: QuantilesView,
    /// The time that a request waited in the serving process for its first step, in milliseconds.
    pub queue_ms: QuantilesView,
    /// The cost per million tokens: the price of the nodes' time of the serving processes of the version's base model,
    /// in its quantization, divided by all tokens of all adapters that they served. `null`: nothing was served.
    pub usd_per_million_tokens: Option<f64>,
}

/// Numbers of requests by where the serving process found the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct TiersView {
    /// In its memory.
    pub memory: u64,
    /// In the node's disk cache.
    pub disk: u64,
    /// In the object store.
    pub store: u64,
}

/// Quantiles of a distribution; each is off by less than 19 %. `null` without requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct QuantilesView {
    /// The median.
    pub p50: Option<f64>,
    /// The 95th percentile.
    pub p95: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
}

impl From<&Latencies> for QuantilesView {
    fn from(times: &Latencies) -> Self {
        Self { p50: times.quantile_ms(0.5), p95: times.quantile_ms(0.95), p99: times.quantile_ms(0.99) }
    }
}

impl From<VersionTraffic> for VersionMetricsView {
    fn from(version: VersionTraffic) -> Self {
        let traffic = version.traffic;
        Self {
            version: version.version,
            adapter_version: version.adapter_version_id.to_string(),
            model: version.model_name,
            requests: traffic.requests,
            errors: traffic.errors,
            input_tokens: traffic.input_tokens,
            output_tokens: traffic.output_tokens,
            tiers: TiersView { memory: traffic.from_memory, disk: traffic.from_disk, store: traffic.from_store },
            ttft_ms: (&traffic.first_token).into(),
            tpot_ms: (&traffic.per_token).into(),
            queue_ms: (&traffic.queued).into(),
            usd_per_million_tokens: version.micro_usd_per_million_tokens.map(|cost| cost / 1e6),
        }
    }
}
