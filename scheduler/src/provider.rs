//! Where processes run: the one small door to the world outside. Today `local`, which is also what tests use.

use attune_domain::bytes::Bytes;
use futures::future::BoxFuture;
use secrecy::SecretString;

use crate::error::ProviderError;

/// A kind of machine that can be had, and how much of it is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// What the provider calls it.
    pub(crate) name: String,
    /// All of its memory.
    pub(crate) memory: Bytes,
    /// What others hold of it at the moment.
    pub(crate) reserved: Bytes,
    /// How many more runs it takes at the moment.
    pub(crate) free_slots: usize,
    /// Processor threads.
    pub(crate) threads: u32,
    /// Millionths of a dollar for an hour; 0: one's own machine.
    pub(crate) micro_usd_per_hour: u64,
}

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
