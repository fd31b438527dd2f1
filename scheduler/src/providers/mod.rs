//! Providers: the places where runs and replicas are started.

/// The local provider: this machine.
pub(crate) mod local;
/// The logs of its processes.
pub(crate) mod logs;
/// Evidence that a process of the local provider ran out of memory.
pub(crate) mod oom;
/// The `Provider` trait.
pub(crate) mod provider;
/// The registry of the configured providers.
pub(crate) mod registry;
/// The Slurm provider: jobs of a Slurm cluster.
pub(crate) mod slurm;
