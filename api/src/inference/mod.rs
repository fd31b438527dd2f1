//! Completions: the model of a request, its replica, generation and metering.

/// A complete answer of a model.
pub mod answer;
/// One request to a replica, and its answer.
pub mod generation;
/// The usage of answers.
pub mod metering;
/// Slots for expensive work, shared among projects.
pub mod places;
/// Requests that wait for the same replica.
pub mod replica_waiters;
/// The replica that serves a base model.
pub mod replicas;
/// The resolution of a request's model.
pub mod resolve;
