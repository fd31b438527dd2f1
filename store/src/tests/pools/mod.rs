//! Replicas and deployments.

mod deployment;
mod replica;
mod residency;
