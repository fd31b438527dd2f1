//! Providers: the places where runs and replicas are started.

/// The Kubernetes provider: Jobs of a Kubernetes cluster.
pub(crate) mod kubernetes;
/// Time limits of a provider's calls.
pub(crate) mod limited;
/// The local provider: this machine.
pub(crate) mod local;
/// The logs of its processes.
pub(crate) mod logs;
/// The offers of all providers.
pub(crate) mod market;
/// Evidence that a process of the local provider ran out of memory.
pub(crate) mod oom;
/// The `Provider` trait.
pub(crate) mod provider;
/// The registry of the configured providers.
pub(crate) mod registry;
/// The slots of an offer of a cluster.
pub(crate) mod slots;
/// The Slurm provider: jobs of a Slurm cluster.
pub(crate) mod slurm;
