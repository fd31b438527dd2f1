//! Metrics of serving processes.

use super::metric::metrics;

/// The bounds of the times to the first token, from 10 ms to 2 minutes.
const FIRST_TOKEN_SECONDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// The bounds of the times of forward passes, from 1 ms to 10 s.
const FORWARD_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The bounds of the numbers of sequences.
const SEQUENCES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

metrics! {
    /// Tokens of prompts that the decoder processed.
    PROMPT_TOKENS: Counter = "attune_prompt_tokens_total" [];
    /// Generated tokens.
    GENERATED_TOKENS: Counter = "attune_generated_tokens_total" [];
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
    /// Memory reserved for keys and values.
    KV_CACHE_BYTES: Gauge = "attune_kv_cache_bytes" [];
    /// The limit of the memory for keys and values.
    KV_CACHE_BYTES_MAX: Gauge = "attune_kv_cache_bytes_max" [];
}
