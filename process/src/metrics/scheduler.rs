//! Metrics of the scheduler: the queue, placement, repair, webhooks and cleanup.

use super::{http::REQUEST_SECONDS, metric::metrics};

/// The bounds of the times of passes, from 1 ms to 10 minutes.
const PASS_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0];

metrics! {
    /// 1 while this scheduler leads, 0 while it waits for another one.
    SCHEDULER_LEADS: Gauge = "attune_scheduler_leads" [];
    /// The last time that the gauges over rows were read, in Unix time.
    GAUGES_TIMESTAMP: Gauge = "attune_gauges_timestamp_seconds" [];
    /// Waiting jobs, by the offer that is the cheapest with enough memory.
    QUEUE_JOBS: Gauge = "attune_queue_jobs" ["provider", "offer", "priority"];
    /// Time since the oldest waiting job entered the queue.
    QUEUE_OLDEST_WAIT: Gauge = "attune_queue_oldest_wait_seconds" ["priority"];
    /// Jobs that have not ended.
    JOBS: Gauge = "attune_jobs" ["state"];
    /// Requests of the last hour, of the adapter versions with the most.
    ADAPTER_REQUESTS: Gauge = "attune_adapter_requests" ["adapter_version"];
    /// Requests among them that failed.
    ADAPTER_ERRORS: Gauge = "attune_adapter_errors" ["adapter_version"];
    /// Tokens of their prompts or of their answers.
    ADAPTER_TOKENS: Gauge = "attune_adapter_tokens" ["adapter_version", "kind"];
    /// Requests among them by where the replica found the adapter.
    ADAPTER_TIERS: Gauge = "attune_adapter_tier_requests" ["adapter_version", "tier"];
    /// Quantiles of their time to the first token.
    ADAPTER_FIRST_TOKEN: Gauge = "attune_adapter_time_to_first_token_seconds" ["adapter_version", "quantile"];
    /// Quantiles of their mean time between tokens.
    ADAPTER_PER_TOKEN: Gauge = "attune_adapter_time_per_token_seconds" ["adapter_version", "quantile"];
    /// Quantiles of the time that they waited for their first step.
    ADAPTER_QUEUED: Gauge = "attune_adapter_queue_seconds" ["adapter_version", "quantile"];
    /// Jobs that have not ended, of the projects with the most.
    PROJECT_JOBS: Gauge = "attune_project_jobs" ["project", "state"];
    /// Runs that have not ended.
    RUNS: Gauge = "attune_runs" ["state"];
    /// Replicas that have not ended.
    REPLICAS: Gauge = "attune_replicas" ["state"];
    /// Total memory of an offer.
    OFFER_MEMORY: Gauge = "attune_offer_memory_bytes" ["provider", "offer"];
    /// Memory of an offer that runs and replicas have reserved.
    OFFER_RESERVED: Gauge = "attune_offer_reserved_bytes" ["provider", "offer"];
    /// Additional runs that can start on an offer.
    OFFER_SLOTS: Gauge = "attune_offer_free_slots" ["provider", "offer"];
    /// Margin that is added to the predicted peak memory of a run on an offer, relative to it.
    MEMORY_MARGIN: Gauge = "attune_memory_margin_ratio" ["provider", "offer"];
    /// Duration of a planning pass.
    PLAN_SECONDS: Histogram = "attune_plan_seconds" [] in PASS_SECONDS;
    /// Planning passes that ended with an error.
    PLAN_FAILURES: Counter = "attune_plan_failures_total" [];
    /// Starts of a plan.
    JOB_STARTS: Counter = "attune_job_starts_total" ["outcome"];
    /// Launches at a provider.
    LAUNCHES: Counter = "attune_launches_total" ["provider", "program", "outcome"];
    /// Runs that are stopped at a checkpoint for another job.
    PREEMPTIONS: Counter = "attune_preemptions_total" [];
    /// Queue messages that a worker claimed and handled.
    QUEUE_MESSAGES: Counter = "attune_queue_messages_total" ["queue", "outcome"];
    /// Duration of the handling of a queue message.
    QUEUE_MESSAGE_SECONDS: Histogram = "attune_queue_message_seconds" ["queue"] in PASS_SECONDS;
    /// Duration of a reconciler pass.
    RECONCILE_SECONDS: Histogram = "attune_reconcile_seconds" [] in PASS_SECONDS;
    /// Reconciler passes that ended with an error.
    RECONCILE_FAILURES: Counter = "attune_reconcile_failures_total" [];
    /// The end of the last reconciler pass without an error, in Unix time.
    RECONCILE_TIMESTAMP: Gauge = "attune_reconcile_timestamp_seconds" [];
    /// Attempts to deliver an event.
    WEBHOOK_ATTEMPTS: Counter = "attune_webhook_attempts_total" ["outcome"];
    /// Duration of an attempt to deliver an event.
    WEBHOOK_ATTEMPT_SECONDS: Histogram = "attune_webhook_attempt_seconds" [] in REQUEST_SECONDS;
    /// Deliveries that are not settled.
    WEBHOOK_BACKLOG: Gauge = "attune_webhook_backlog" ["state"];
    /// Expired objects and rows that were deleted.
    SWEPT: Counter = "attune_swept_total" ["kind"];
    /// Duration of a sweep.
    SWEEP_SECONDS: Histogram = "attune_sweep_seconds" [] in PASS_SECONDS;
    /// The end of the last sweep, in Unix time.
    SWEEP_TIMESTAMP: Gauge = "attune_sweep_timestamp_seconds" [];
}
