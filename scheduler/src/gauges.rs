//! The publication of the scheduler's metrics, and the gauges over rows, which the leader reads at an interval.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use attune_domain::{
    bytes::Bytes,
    id::ProjectId,
    job::{JobState, Priority},
    offer::Offer,
};
use attune_inbound::Publisher;
use attune_process::{
    error_chain::chain,
    metrics::{
        GAUGES_TIMESTAMP, Gauge, JOBS, MEMORY_MARGIN, OFFER_MEMORY, OFFER_RESERVED, OFFER_SLOTS, PROJECT_JOBS,
        QUEUE_JOBS, QUEUE_OLDEST_WAIT, REPLICAS, RUNS, RUNS_LOST, SCHEDULER_LEADS, WEBHOOK_BACKLOG,
    },
};
use attune_store::{
    adapters::adapter_traffic,
    db,
    gauges::{self, Count, Gauges, Waiting},
    jobs::loss::Blame,
    runs::offer,
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{adapter_gauges, app::App, config::MetricsConfig, error::SchedulerError};

/// The interval between two readings of the rows.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// The `provider` and the `offer` of jobs that no published offer holds.
const NONE: &str = "none";

/// Publishes metrics where that is configured. This process does not lead yet.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) async fn publish(config: MetricsConfig, pool: &PgPool) -> Result<()> {
    SCHEDULER_LEADS.set([], 0.0);
    let Some(address) = config.listen else { return Ok(()) };
    let publisher = Publisher { program: "attune-scheduler", version: env!("CARGO_PKG_VERSION") };
    let pool = pool.clone();
    let published = attune_inbound::publish_metrics(publisher, address, move || db::publish_pool(&pool)).await;
    published.map(drop).with_context(|| format!("metrics.listen: cannot listen on {address}"))
}

/// Reads the rows until `stop`. This process leads.
pub(crate) async fn read(app: App, config: MetricsConfig, stop: CancellationToken) {
    SCHEDULER_LEADS.set([], 1.0);
    while !stop.is_cancelled() {
        match once(&app, config).await {
            Ok(()) => GAUGES_TIMESTAMP.set_to_now(),
            Err(error) => tracing::warn!(error = chain(&error), "the rows could not be counted; retrying later"),
        }
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(READ_INTERVAL) => {} }
    }
    SCHEDULER_LEADS.set([], 0.0);
}

/// Counts a lost run, once it is committed; `None`: the run had ended meanwhile.
pub(crate) fn lost(blame: Blame, job: Option<JobState>) {
    let cause = match blame {
        Blame::Job { .. } => "job",
        Blame::Circumstances => "circumstances",
        Blame::Memory => "memory",
        Blame::Nobody => "platform",
    };
    if let Some(state) = job {
        RUNS_LOST.inc([cause, state.name()]);
    }
}

async fn once(app: &App, config: MetricsConfig) -> Result<(), SchedulerError> {
    let mut conn = app.single().await?;
    let offers = offer::list(&mut conn).await?;
    let rows = gauges::read(&mut conn, config.projects).await?;
    let adapters = adapter_traffic::busiest(&mut conn, config.adapters).await?;
    drop(conn);
    adapter_gauges::set(&adapters);
    set_queue(&rows.waiting, &offers);
    set_offers(&offers);
    set_counts(&rows);
    Ok(())
}

/// Sets the gauges of the waiting jobs: their number by offer and priority, and the age of the oldest by priority.
fn set_queue(waiting: &[Waiting], offers: &[Offer]) {
    let (mut jobs, mut oldest) = (BTreeMap::<_, f64>::new(), BTreeMap::new());
    for priority in [Priority::Low, Priority::Normal, Priority::High] {
        oldest.insert(priority.name(), 0.0);
    }
    for group in waiting {
        let (provider, offer) = destination(group.need, offers);
        *jobs.entry([provider, offer, group.priority.name()]).or_default() += group.jobs as f64;
        let age = oldest.entry(group.priority.name()).or_insert(0.0);
        *age = group.oldest_seconds.max(*age);
    }
    QUEUE_JOBS.replace(&jobs.into_iter().collect::<Vec<_>>());
    QUEUE_OLDEST_WAIT.replace(&oldest.into_iter().map(|(priority, age)| ([priority], age)).collect::<Vec<_>>());
}

/// Returns the names of the provider and of the cheapest offer with enough memory, idle or not.
fn destination(need: Option<Bytes>, offers: &[Offer]) -> (&str, &str) {
    let holds = |offer: &&Offer| need.is_some_and(|need| offer.is_large_enough(need));
    let offer = offers.iter().filter(holds).min_by_key(|offer| offer.preference());
    offer.map_or((NONE, NONE), |offer| (offer.provider.as_str(), offer.name.as_str()))
}

fn set_offers(offers: &[Offer]) {
    let by_offer = |value: fn(&Offer) -> f64| -> Vec<_> {
        offers.iter().map(|offer| ([&offer.provider, &offer.name], value(offer))).collect()
    };
    OFFER_MEMORY.replace(&by_offer(|offer| offer.memory.0 as f64));
    OFFER_RESERVED.replace(&by_offer(|offer| offer.reserved.0 as f64));
    OFFER_SLOTS.replace(&by_offer(|offer| offer.free_slots as f64));
    MEMORY_MARGIN.replace(&by_offer(|offer| offer.margin.percent as f64 / 100.0));
}

fn set_counts(rows: &Gauges) {
    set_states(&JOBS, &rows.jobs);
    set_states(&RUNS, &rows.runs);
    set_states(&REPLICAS, &rows.replicas);
    let by_project =
        |(project, Count { state, count }): &(ProjectId, Count)| ([project.to_string(), state.clone()], *count as f64);
    PROJECT_JOBS.replace(&rows.projects.iter().map(by_project).collect::<Vec<_>>());
    WEBHOOK_BACKLOG.set(["due"], rows.deliveries_due as f64);
    WEBHOOK_BACKLOG.set(["later"], rows.deliveries_later as f64);
}

fn set_states(gauge: &Gauge<1>, counts: &[Count]) {
    gauge.replace(&counts.iter().map(|count| ([&count.state], count.count as f64)).collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use attune_process::metrics::render;

    use super::*;

    fn offer(name: &str, mib: u64, micro_usd_per_hour: u64) -> Offer {
        let (reserved, idle) = (Bytes::mib(1), Offer::cpu("local", name, Bytes::mib(mib), 2));
        Offer { reserved, free_slots: 3, micro_usd_per_hour, ..idle }
    }

    #[test]
    fn waiting_jobs_are_counted_by_the_offer_that_they_would_take() {
        let offers = [offer("dear", 400, 9), offer("small", 100, 1), offer("large", 300, 1)];
        let group = |priority, mib: Option<u64>, jobs, oldest_seconds| Waiting {
            priority,
            need: mib.map(Bytes::mib),
            jobs,
            oldest_seconds,
        };
        let waiting = [
            group(Priority::Normal, Some(50), 2, 5.0),
            group(Priority::Normal, Some(100), 3, 9.0),
            group(Priority::High, Some(350), 1, 2.0),
            group(Priority::Normal, Some(500), 4, 1.0),
            group(Priority::Normal, None, 5, 1.0),
        ];
        set_queue(&waiting, &offers);
        set_offers(&offers);
        let text = render();
        for line in [
            r#"attune_queue_jobs{provider="local",offer="small",priority="normal"} 5.0"#,
            r#"attune_queue_jobs{provider="local",offer="dear",priority="high"} 1.0"#,
            r#"attune_queue_jobs{provider="none",offer="none",priority="normal"} 9.0"#,
            r#"attune_queue_oldest_wait_seconds{priority="normal"} 9.0"#,
            r#"attune_queue_oldest_wait_seconds{priority="low"} 0.0"#,
            r#"attune_offer_memory_bytes{provider="local",offer="small"} 104857600.0"#,
            r#"attune_offer_free_slots{provider="local",offer="large"} 3.0"#,
            r#"attune_memory_margin_ratio{provider="local",offer="large"} 0.18"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        set_queue(&[], &offers);
        assert!(!render().contains("attune_queue_jobs{"), "no job waits any more");
    }
}
