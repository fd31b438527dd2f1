//! The gauges of adapter versions' traffic.

use attune_domain::traffic::latency::Latencies;
use attune_process::metrics::{
    ADAPTER_ERRORS, ADAPTER_FIRST_TOKEN, ADAPTER_PER_TOKEN, ADAPTER_QUEUED, ADAPTER_REQUESTS, ADAPTER_TIERS,
    ADAPTER_TOKENS, Gauge,
};
use attune_store::adapters::adapter_traffic::{Traffic, VersionTraffic};

/// The published quantiles, with their labels.
const QUANTILES: [(&str, f64); 3] = [("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99)];

/// Replaces the gauges by the traffic of these versions.
pub(crate) fn set(versions: &[VersionTraffic]) {
    let counts = |value: fn(&Traffic) -> u64| -> Vec<_> {
        versions
            .iter()
            .map(|version| ([version.adapter_version_id.to_string()], value(&version.traffic) as f64))
            .collect()
    };
    ADAPTER_REQUESTS.replace(&counts(|traffic| traffic.requests));
    ADAPTER_ERRORS.replace(&counts(|traffic| traffic.errors));
    parts(&ADAPTER_TOKENS, versions, |traffic| {
        vec![("input", traffic.input_tokens), ("output", traffic.output_tokens)]
    });
    parts(&ADAPTER_TIERS, versions, |traffic| {
        vec![("memory", traffic.from_memory), ("disk", traffic.from_disk), ("store", traffic.from_store)]
    });
    quantiles(&ADAPTER_FIRST_TOKEN, versions, |traffic| &traffic.first_token);
    quantiles(&ADAPTER_PER_TOKEN, versions, |traffic| &traffic.per_token);
    quantiles(&ADAPTER_QUEUED, versions, |traffic| &traffic.queued);
}

fn parts(gauge: &Gauge<2>, versions: &[VersionTraffic], of: fn(&Traffic) -> Vec<(&'static str, u64)>) {
    let series = versions.iter().flat_map(|version| {
        let id = version.adapter_version_id.to_string();
        let parts = of(&version.traffic).into_iter();
        parts.map(move |(part, count)| ([id.clone(), part.to_owned()], count as f64))
    });
    gauge.replace(&series.collect::<Vec<_>>());
}

fn quantiles(gauge: &Gauge<2>, versions: &[VersionTraffic], of: fn(&Traffic) -> &Latencies) {
    let series = versions.iter().flat_map(|version| {
        let (id, times) = (version.adapter_version_id.to_string(), of(&version.traffic));
        QUANTILES
            .into_iter()
            .filter_map(move |(label, q)| Some(([id.clone(), label.to_owned()], times.quantile_ms(q)? / 1000.0)))
    });
    gauge.replace(&series.collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use attune_domain::id::AdapterVersionId;
    use attune_process::metrics::render;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_the_given_versions_are_published() {
        let mut first_token = Latencies::default();
        first_token.record(Duration::from_millis(100));
        let traffic = Traffic { requests: 7, output_tokens: 5, from_disk: 2, first_token, ..Traffic::default() };
        let version = VersionTraffic {
            adapter_version_id: AdapterVersionId::new(Uuid::from_u128(7)),
            version: 1,
            model_name: "ft:tiny".into(),
            traffic,
            micro_usd_per_million_tokens: None,
        };
        let id = version.adapter_version_id.to_string();
        set(&[version]);
        let text = render();
        for line in [
            format!("attune_adapter_requests{{adapter_version=\"{id}\"}} 7.0"),
            format!("attune_adapter_tokens{{adapter_version=\"{id}\",kind=\"output\"}} 5.0"),
            format!("attune_adapter_tier_requests{{adapter_version=\"{id}\",tier=\"disk\"}} 2.0"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(
            text.contains("attune_adapter_time_to_first_token_seconds{")
                && !text.contains("attune_adapter_queue_seconds{")
        );
        set(&[]);
        assert!(!render().contains(&id));
    }
}
