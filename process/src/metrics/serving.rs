//! Metrics of serving processes.

use super::metric::metrics;

/// The bounds of the times to the first token, from 10 ms to 2 minutes.
const FIRST_TOKEN_SECONDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// The bounds of the times of forward passes, from 1 ms to 10 s.
const FORWARD_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The bounds of the times of loads, from 5 ms to a minute.
const LOAD_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// The bounds of the numbers of sequences.
const SEQUENCES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

metrics! {
    /// Tokens of prompts that the decoder processed.
    PROMPT_TOKENS: Counter = "attune_prompt_tokens_total" [];
    /// Generated tokens.
    GENERATED_TOKENS: Counter = "attune_generated_tokens_total" [];
    /// Tokens of drafts that the decoder verified, by source: earlier text or a draft model.
    DRAFT_TOKENS: Counter = "attune_draft_tokens_total" ["source"];
    /// Tokens of drafts that became generated tokens, by source.
    ACCEPTED_DRAFT_TOKENS: Counter = "attune_accepted_draft_tokens_total" ["source"];
    /// Duration of a step of the draft model.
    DRAFT_STEP_TIME: Histogram = "attune_draft_step_seconds" [] in FORWARD_SECONDS;
    /// Time from a request's arrival at the engine to its first token.
    FIRST_TOKEN: Histogram = "attune_time_to_first_token_seconds" [] in FIRST_TOKEN_SECONDS;
    /// Sequences in a forward pass.
    BATCH_SIZE: Histogram = "attune_batch_size" [] in SEQUENCES;
    /// Duration of a forward pass, with sampling.
    FORWARD_TIME: Histogram = "attune_forward_seconds" [] in FORWARD_SECONDS;
    /// Requests without a slot.
    SEQUENCES_WAITING: Gauge = "attune_sequences_waiting" [];
    /// Requests with a slot.
    SEQUENCES_RUNNING: Gauge = "attune_sequences_running" [];
    /// Adapters in memory.
    ADAPTERS_LOADED: Gauge = "attune_adapters_loaded" [];
    /// Memory reserved for adapters.
    ADAPTER_BYTES: Gauge = "attune_adapter_bytes" [];
    /// The limit of the memory for adapters.
    ADAPTER_BYTES_MAX: Gauge = "attune_adapter_bytes_max" [];
    /// Adapters of the disk cache, as of its last listing.
    ADAPTER_DISK_BYTES: Gauge = "attune_adapter_disk_bytes" [];
    /// The limit of the adapters in the disk cache.
    ADAPTER_DISK_BYTES_MAX: Gauge = "attune_adapter_disk_bytes_max" [];
    /// Uses of an adapter, by where it was found.
    ADAPTER_LEASES: Counter = "attune_adapter_leases_total" ["tier"];
    /// Duration of a load that succeeded, by where the adapter was found; without waiting for memory.
    ADAPTER_LOAD_TIME: Histogram = "attune_adapter_load_seconds" ["tier"] in LOAD_SECONDS;
    /// Loads that failed, by reason.
    ADAPTER_LOAD_FAILURES: Counter = "attune_adapter_load_failures_total" ["reason"];
    /// Adapters that were evicted for others, by where.
    ADAPTER_EVICTIONS: Counter = "attune_adapter_evictions_total" ["tier"];
    /// Memory reserved for keys and values.
    KV_CACHE_BYTES: Gauge = "attune_kv_cache_bytes" [];
    /// The limit of the memory for keys and values.
    KV_CACHE_BYTES_MAX: Gauge = "attune_kv_cache_bytes_max" [];
}
