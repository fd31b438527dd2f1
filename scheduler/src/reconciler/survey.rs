//! The processes of each provider, and the rows that name it.

use std::collections::HashSet;

use attune_domain::id::NodeId;
use attune_process::error_chain::chain;
use attune_store::{
    exports::export_run::{self, ActiveExport},
    replica::{self, Replica},
    runs::{
        node,
        run::{self, ActiveRun},
    },
};
use sqlx::PgConnection;

use crate::{
    app::App,
    error::{ProviderError, SchedulerError},
    providers::provider::{Process, Provider},
};

/// A provider's processes, and the active rows that name it.
pub(super) struct Survey<'a> {
    pub(super) provider: &'a dyn Provider,
    pub(super) processes: Vec<Process>,
    pub(super) runs: Vec<ActiveRun>,
    pub(super) replicas: Vec<Replica>,
    pub(super) exports: Vec<ActiveExport>,
}

impl Survey<'_> {
    /// Returns the process of this handle.
    pub(super) fn process(&self, handle: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.handle == handle)
    }

    /// Adds the ends of launched runs and exports that the provider lists no more, as far as a longer record of it has
    /// them.
    async fn add_recorded(&mut self) {
        let runs = self.runs.iter().filter(|run| run.handle.is_some()).map(|run| run.run_id.to_string());
        let exports = self.exports.iter().filter(|export| export.handle.is_some());
        let launched = runs.chain(exports.map(|export| export.node_id.to_string()));
        let gone: Vec<String> = launched.filter(|handle| self.process(handle).is_none()).collect();
        if gone.is_empty() {
            return;
        }
        match self.provider.recorded(gone).await {
            Ok(recorded) => self.processes.extend(recorded),
            Err(error) => {
                let (provider, error) = (self.provider.name(), chain(&error));
                tracing::warn!(
                    provider,
                    error,
                    "runs and exports that the provider lists no more are lost without their exit status"
                );
            }
        }
    }

    /// Returns whether an active row names the process.
    pub(super) fn is_named(&self, process: &Process) -> bool {
        self.runs.iter().any(|run| run.run_id.to_string() == process.handle)
            || self.replicas.iter().any(|replica| replica.replica_id.to_string() == process.handle)
            || self.exports.iter().any(|export| export.node_id.to_string() == process.handle)
    }
}

/// A provider that could not list its processes.
#[derive(Debug)]
pub(crate) struct Unlisted {
    /// The provider's name.
    pub(crate) provider: String,
    /// The provider's error.
    pub(crate) error: ProviderError,
}

impl Unlisted {
    /// Logs the error.
    pub(super) fn log(&self) {
        let error = chain(&self.error);
        tracing::warn!(provider = self.provider, error, "a provider's runs and replicas are not checked in this pass");
    }
}

/// The processes and the rows of each provider, and the providers without a list of processes.
pub(super) struct Surveyed<'a> {
    pub(super) surveys: Vec<Survey<'a>>,
    pub(super) unlisted: Vec<Unlisted>,
}

/// Returns the processes and the rows of each provider.
pub(super) async fn survey(app: &App) -> Result<Surveyed<'_>, SchedulerError> {
    // List processes first: whatever one reported before it ended is in the rows by then.
    let (mut listed, mut unlisted) = (Vec::new(), Vec::new());
    for (provider, answer) in app.providers.list().await {
        match answer {
            Ok(processes) => listed.push((provider, processes)),
            Err(error) => unlisted.push(Unlisted { provider: provider.name().to_owned(), error }),
        }
    }
    let mut conn = app.single().await?;
    let mut surveys = Vec::new();
    for (provider, processes) in listed {
        let runs = run::active(&mut conn, provider.name()).await?;
        let replicas = replicas_at(&mut conn, provider.name()).await?;
        let exports = export_run::active(&mut conn, provider.name()).await?;
        surveys.push(Survey { provider: provider.as_ref(), processes, runs, replicas, exports });
    }
    // A task that waits for a provider holds no connection.
    drop(conn);
    for survey in &mut surveys {
        survey.add_recorded().await;
    }
    Ok(Surveyed { surveys, unlisted })
}

/// Returns the active replicas on the provider's nodes.
pub(super) async fn replicas_at(conn: &mut PgConnection, provider: &str) -> Result<Vec<Replica>, SchedulerError> {
    let nodes: HashSet<NodeId> = node::active(conn, provider).await?.into_iter().map(|node| node.node_id).collect();
    let replicas = replica::active(conn).await?.into_iter();
    Ok(replicas.filter(|replica| replica.node_id.is_some_and(|id| nodes.contains(&id))).collect())
}
