//! Pools of replicas: a pool is a base model in one quantization, and its replicas answer the requests of one
//! deployment's project, or of all projects without a deployment. See docs/SERVING.md.

/// Deployments: the replicas that only one project's requests use.
pub mod deployment;
/// The limits of a project's deployments together.
pub mod deployment_quota;
/// The platform's records of deployments: requests, charges, idle ones.
pub mod deployment_use;
/// The adapters that deployments pin.
pub mod pins;
/// Notifications of changed replicas.
pub mod pool_changes;
/// The load of pools, as the processes that send requests count it.
pub mod pool_load;
/// The state of all pools, for the autoscaler.
pub mod pool_state;
