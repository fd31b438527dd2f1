//! Dispatch, `queued → provisioning`. The rows are the queue; a message only wakes a pass over it: one snapshot → the
//! plan (`attune_domain::queue`, pure) → its starts, up to 50 in one transaction (nodes, runs and leases), then their
//! launches → stops at a checkpoint for other jobs → the places of the jobs that wait.

/// The claims of the jobs that start.
mod claim;
/// The decision about one job on one offer.
mod decision;
/// The launches of claimed runs.
mod launch;
/// Memory and duration of waiting jobs, computed once.
mod measure;
/// One planning pass.
pub(crate) mod pass;
/// The record of a placement.
mod placed;
/// Human-readable plans.
mod plan_words;
/// The ranking of the offers for each waiting job.
mod ranking;
/// Another decision about a job that no offer can hold.
mod reconsider;
/// The start of the plan's jobs.
mod start;
/// The results of starts.
mod started;
/// The places of the jobs that wait.
mod waits;
/// The rows that a decision needs.
mod work;
