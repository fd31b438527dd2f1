//! Dispatch, `queued → provisioning`. The rows are the queue; a message only wakes a pass over it: one snapshot → the
//! plan (`attune_domain::queue`, pure) → each start in a transaction of its own (node, run and lease), then its launch
//! → stops at a checkpoint for other jobs → the places of the jobs that wait.

/// The decision about one job on one offer.
mod decision;
/// Memory and duration of waiting jobs, computed once.
mod measure;
/// One planning pass.
pub(crate) mod pass;
/// The record of a placement.
mod placed;
/// Human-readable plans.
mod plan_words;
/// The start of one job.
mod start;
/// The rows that a decision needs.
mod work;
