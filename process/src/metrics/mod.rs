//! Metrics in Prometheus' format, one table for all programs: see docs/METRICS.md. Each is a static with its name, its
//! labels and its help text; a program publishes those that it has set.
//!
//! Label values are program constants, names of the configuration, or names of routes, and never text that a caller
//! chose; IDs only where the configuration bounds their number. So the number of series is bounded.

/// Counters, gauges and histograms.
mod metric;

/// Metrics of the HTTP servers.
mod http;

/// Metrics of the process.
mod process;

/// Metrics of the queue and of its repair.
mod scheduler;

/// Metrics of serving processes.
mod serving;

/// Metrics of the database and of the object store.
mod storage;

/// Metrics of runs.
mod training;

use std::sync::OnceLock;

use prometheus_client::{encoding::text::encode, registry::Registry};

pub use self::{
    http::*,
    metric::{About, Counter, Gauge, Held, Histogram, Metric},
    process::*,
    scheduler::*,
    serving::*,
    storage::*,
    training::*,
};

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns all metrics of all programs.
pub fn all() -> impl Iterator<Item = &'static dyn Metric> {
    [process::ALL, http::ALL, storage::ALL, training::ALL, scheduler::ALL, serving::ALL].into_iter().flatten().copied()
}

/// Returns the values of all metrics that are set, in the OpenMetrics text format.
#[must_use]
pub fn render() -> String {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    let registry = REGISTRY.get_or_init(|| {
        let mut registry = Registry::default();
        all().for_each(|metric| metric.register(&mut registry));
        registry
    });
    process::sample();
    let mut text = String::new();
    let _replacing = metric::while_none_is_replaced();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, registry);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_their_kind() {
        let names: BTreeSet<_> = all().map(Metric::name).collect();
        assert_eq!(names.len(), all().count());
        for metric in all() {
            assert_eq!(metric.name().ends_with("_total"), metric.kind() == "counter", "{}", metric.name());
            assert!(!metric.help().is_empty() && !metric.help().ends_with('.'), "{}", metric.name());
        }
    }

    #[test]
    fn a_scrape_has_the_process_and_what_was_set() {
        start("attune-test", "1.2.3");
        QUEUE_MESSAGES.inc(["a\"queue", "ok"]);
        QUEUE_MESSAGES.inc(["a\"queue", "ok"]);
        PLAN_SECONDS.observe([], 0.2);
        let text = render();
        for line in [
            "# TYPE attune_queue_messages counter",
            r#"attune_queue_messages_total{queue="a\"queue",outcome="ok"} 2.0"#,
            "attune_plan_seconds_count 1",
            r#"attune_build_info{program="attune-test",version="1.2.3"} 1.0"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_threads"] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
            assert!(value.is_some_and(|value| value >= 1.0), "{name}: {value:?}");
        }
        assert!(!text.contains("attune_sweep_seconds"), "a metric that was never set is not published");
    }

    #[test]
    fn replaced_values_are_all_there_is() {
        RUNS.replace(&[(["launching"], 2.0), (["running"], 1.0)]);
        RUNS.replace(&[(["running"], 5.0)]);
        let text = render();
        assert!(text.contains("attune_runs{state=\"running\"} 5.0") && !text.contains("state=\"launching\""), "{text}");
    }
}
