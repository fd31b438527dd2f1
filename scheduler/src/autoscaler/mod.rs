//! The autoscaler: samples the load of each pool every second, decides its number of replicas
//! (`attune_domain::autoscale`, pure), and starts or drains replicas. It also charges deployments for their
//! replicas.

/// The charges of deployments, and their notifications.
mod charge;
/// The loop, and one pass of it.
pub(crate) mod pass;
/// The change of a pool.
mod resize;
/// The samples of pools.
pub(crate) mod samples;
