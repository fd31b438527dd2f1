//! Runs: one attempt of a job on a node, and the offers and nodes of providers.

/// The margins of offers, by their past runs.
pub mod margins;
/// Nodes: memory reserved with a provider.
pub mod node;
/// Providers' offers and their reservations.
pub mod offer;
/// The figures of a run's end.
pub mod outcome;
/// Earlier runs, from which the rates of others are predicted.
pub mod past_runs;
/// Processes that a provider has not started yet.
pub mod pending;
/// The placement of a run: its offer, and the others.
pub mod placement;
/// The configured providers.
pub mod provider;
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
