//! The interface to the machines on which processes run. `local`, `slurm` and `kubernetes` implement it; tests have
//! their own.

use std::time::Duration;

use attune_domain::{
    bytes::Bytes,
    offer::Offer,
    run::process::{EndCause, WaitKind},
    serve::Engine,
};
use futures::future::BoxFuture;
use secrecy::SecretString;

use crate::error::ProviderError;

/// The program of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// `attune-trainer`, for one run.
    Trainer,
    /// `attune-serving`, for one replica.
    Serving,
    /// `attune-serving bridge`, for one replica whose tokens this other engine generates.
    Bridge(Engine),
}

impl Program {
    /// Returns the file name of the program.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Trainer => "attune-trainer",
            Self::Serving | Self::Bridge(_) => "attune-serving",
        }
    }
}

/// The resources that the placement chose for a process.
#[derive(Debug)]
pub(crate) struct Resources {
    /// The provider's name for the offer.
    pub(crate) offer: String,
    /// The reserved memory.
    pub(crate) memory: Bytes,
    /// The number of CPU threads.
    pub(crate) threads: u32,
}

/// A launch. The name is the run's or the replica's ID, and becomes the handle.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The program.
    pub(crate) program: Program,
    /// The run's or the replica's ID.
    pub(crate) name: String,
    /// The token that authenticates the process to the API.
    pub(crate) token: SecretString,
    /// The offer to launch on, and the process's share of it.
    pub(crate) resources: Resources,
}

/// A process that the provider has launched and that was not stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// The handle that [`Provider::launch`] returned.
    pub(crate) handle: String,
    /// The reason why the process has not started yet or is suspended; `None`: it runs or has ended.
    pub(crate) pending: Option<Wait>,
    /// The end of the process, if it has ended; the provider keeps it until [`Provider::stop`].
    pub(crate) ended: Option<Ended>,
}

/// The reason why a process has not started yet, or is suspended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// The kind: each change of it is an event of the job.
    pub(crate) kind: WaitKind,
    /// The reason, which tenants may read.
    pub(crate) message: String,
}

impl Wait {
    /// Creates a reason.
    pub(crate) fn new(kind: WaitKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The exit message, which tenants may read.
    pub(crate) message: String,
    /// The cause of the end.
    pub(crate) cause: EndCause,
}

impl Ended {
    /// Creates an end of the program.
    pub(crate) fn program(message: impl Into<String>) -> Self {
        Self::new(EndCause::Program, message)
    }

    /// Creates an end.
    pub(crate) fn new(cause: EndCause, message: impl Into<String>) -> Self {
        Self { message: message.into(), cause }
    }
}

/// Launches and stops processes. Has no access to jobs or rows.
pub(crate) trait Provider: Send + Sync {
    /// Returns the name stored in `node.provider`, and named by the provider's offers.
    fn name(&self) -> &str;

    /// Returns whether its processes continue when the scheduler stops. The next scheduler then adopts them.
    fn outlives_scheduler(&self) -> bool {
        false
    }

    /// Returns the time after which a query for offers or processes is abandoned.
    fn answer_limit(&self) -> Duration {
        Duration::from_secs(25)
    }

    /// Returns the offers that are known without a query. They are used while the provider has not answered yet.
    fn configured_offers(&self) -> Vec<Offer> {
        Vec::new()
    }

    /// Returns the reason why its replicas cannot have an engine; `None`: they can.
    fn engine_refusal(&self, engine: Engine) -> Option<String> {
        let name = self.name();
        (engine != Engine::Attune).then(|| format!("{name} starts no {}: only Kubernetes does", engine.in_words()))
    }

    /// Returns the offers, without reservations subtracted.
    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>>;

    /// Starts a process and returns its handle.
    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>>;

    /// Returns all processes that were launched and not stopped.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>>;

    /// Returns those of the processes, which [`Provider::list`] has no more, whose end the provider has in a longer
    /// record. The default is a provider without such a record.
    fn recorded(&self, _handles: Vec<String>) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Stops a process if it runs, and forgets it. An unknown handle is no error.
    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>>;
}
