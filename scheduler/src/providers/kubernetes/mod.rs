//! The Kubernetes provider: each run and each replica is a Job of a cluster. See docs/KUBERNETES.md.

/// The connection to the API server, with limits.
mod cluster;
/// The parts of the containers of a pod.
mod container;
/// The kinds of nodes that are in the cluster.
mod discovery;
/// The containers of another engine.
mod engine;
/// Errors.
pub(crate) mod error;
/// The Job of a launch.
mod job;
/// The state of a Job as that of a process.
mod job_status;
/// Names and labels of objects.
mod names;
/// The offers.
mod offers;
/// The pod of a Job.
mod pod;
/// The state of a pod as that of a process.
mod pod_status;
/// The `Provider` implementation.
pub(crate) mod provider;
/// The choice of nodes for a pod.
mod scheduling;
/// The Secret of a Job.
mod secret;
/// The Jobs, pods and nodes as the last watch reported them.
mod store;
/// The parts of all objects of a provider.
mod template;
/// Tests with a scripted API server.
#[cfg(test)]
mod tests;
/// Lists and watches one kind of object.
mod watch;
