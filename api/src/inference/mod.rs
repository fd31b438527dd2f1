//! Completions: the model of a request, its replica, generation and metering.

/// A whole answer of a model.
pub mod answer;
/// One request to a replica, and its answer.
pub mod generation;
/// What answers use.
pub mod metering;
/// Places for heavy work, shared out among projects.
pub mod places;
/// Requests that wait for the same replica.
pub mod replica_waiters;
/// The replica that answers for a base.
pub mod replicas;
/// The model that a request names, ready to be asked.
pub mod resolve;
