//! Replicas and deployments.

mod charges;
mod deployment;
mod replica;
mod residency;
