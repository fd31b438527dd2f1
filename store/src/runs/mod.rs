//! Runs: one attempt of a job on a node, and the offers and nodes of providers.

/// Nodes: memory reserved with a provider.
pub mod node;
/// Providers' offers and their throughput.
pub mod offer;
/// Processes that a provider has not started yet.
pub mod pending;
/// The placement of a run: its offer, and the others.
pub mod placement;
/// Trainers' reports.
pub mod report;
/// The metrics file of a job, step by step.
pub mod results;
/// Runs: attempts at a job, from the claim to the end.
pub mod run;
/// Content that a run may name in its reports.
pub mod run_blob;
/// The task of a run, built from the rows.
pub mod run_spec;
