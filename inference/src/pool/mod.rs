//! The pools of replicas, as this process sees them.

/// The choice among the ready replicas of a pool.
pub mod balancer;
/// The signal that a replica has a new state.
pub mod changes;
/// The requests of each pool in this process.
pub mod loads;
