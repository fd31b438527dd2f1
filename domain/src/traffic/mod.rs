//! The traffic of adapter versions, and the canaries that are evaluated by it.

/// Canaries of aliases: the split of requests, and the rule that aborts.
pub mod canary;
/// Distributions of times.
pub mod latency;
