//! Providers: the places where runs and replicas are started.

/// This machine as a provider.
pub(crate) mod local;
/// The logs of its processes.
pub(crate) mod logs;
/// Where processes run.
pub(crate) mod provider;
