//! Providers: the places where runs and replicas are started.

/// The local provider: this machine.
pub(crate) mod local;
/// The logs of its processes.
pub(crate) mod logs;
/// The `Provider` trait.
pub(crate) mod provider;
/// The registry of the configured providers.
pub(crate) mod registry;
