//! Where processes run: the one small door to the world outside. Today `local`, which is also what tests use.

use attune_domain::offer::Offer;
use futures::future::BoxFuture;
use secrecy::SecretString;

use crate::error::ProviderError;

/// What is to be launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// `attune-trainer`, for one run.
    Trainer,
    /// `attune-serving`, for one replica.
    Serving,
}

/// A launch. The name is the run's or the replica's id, and becomes the handle.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Which program.
    pub(crate) program: Program,
    /// The id.
    pub(crate) name: String,
    /// What it shows to the api.
    pub(crate) token: SecretString,
    /// Processor threads.
    pub(crate) threads: u32,
}

/// A process that the provider knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// What [`Provider::launch`] called it.
    pub(crate) handle: String,
    /// How it ended, in words, if it has; the provider keeps it until [`Provider::stop`].
    pub(crate) ended: Option<String>,
}

/// Starts processes and ends them. Knows no job and no row.
pub(crate) trait Provider: Send + Sync {
    /// `node.provider`.
    fn name(&self) -> &'static str;

    /// What can be had when nothing is reserved.
    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>>;

    /// Starts a process and returns its handle.
    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>>;

    /// All processes that were launched and not stopped.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>>;

    /// Ends a process if it runs, and forgets it. One that is not known is no error.
    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>>;
}
