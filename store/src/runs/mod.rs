//! Runs: one attempt of a job on a node, and the offers and nodes of providers.

/// Memory that is reserved with a provider.
pub mod node;
/// What providers offer, and how fast it is.
pub mod offer;
/// What a trainer's report changes.
pub mod report;
/// The metrics of a job, step by step.
pub mod results;
/// Attempts at a job, from the claim to the end.
pub mod run;
/// Content that a run may name in its reports.
pub mod run_blob;
/// Everything that a trainer is told, put together from the rows.
pub mod run_spec;
