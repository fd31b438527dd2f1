//! Runs and replicas whose processes wait at their provider, such as jobs in the queue of a cluster. They cannot
//! report, so their leases begin again in each pass of the reconciler; a job shows the reason of its run.

use attune_process::failpoint::FailPoint;
use attune_store::{
    replica::Replica,
    runs::{pending, run::ActiveRun},
};

use crate::{app::App, error::SchedulerError, providers::provider::Process};

/// Stores which of the provider's runs and replicas wait, and which wait no longer.
///
/// # Errors
/// [`SchedulerError::Store`].
pub(crate) async fn note(
    app: &App,
    processes: &[Process],
    (runs, replicas): (&[ActiveRun], &[Replica]),
) -> Result<(), SchedulerError> {
    let wait = |handle: String| {
        let process = processes.iter().find(|process| process.handle == handle)?;
        process.pending.as_ref()
    };
    let mut started = Vec::new();
    for run in runs {
        match wait(run.run_id.to_string()) {
            Some(wait) => {
                let mut tx = app.begin().await?;
                pending::run(&mut tx, run.run_id, wait.kind, &wait.message).await?;
                tx.commit_at(FailPoint::ReconcilePending).await?;
            }
            None => started.push((run.job_id, run.run_id)),
        }
    }
    if !started.is_empty() {
        pending::started(&mut *app.single().await?, &started).await?;
    }
    for replica in replicas.iter().filter(|replica| wait(replica.replica_id.to_string()).is_some()) {
        let mut tx = app.begin().await?;
        pending::replica(&mut tx, replica.replica_id).await?;
        tx.commit_at(FailPoint::ReconcilePending).await?;
    }
    Ok(())
}
