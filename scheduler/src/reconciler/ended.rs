//! Lost runs, and replicas that have failed or are idle: their rows end, then their processes are stopped.

use attune_domain::{job::JobState, run::process::EndCause};
use attune_process::{error_chain::chain, failpoint::FailPoint};
use attune_store::{
    jobs::loss::{self, Blame, Loss},
    replica::{self, Replica, ReplicaState, ServedBase},
    runs::run::ActiveRun,
};
use futures::future::join_all;

use super::survey::{Survey, replicas_at};
use crate::{
    app::App,
    error::SchedulerError,
    gauges,
    liveness::Hearing,
    providers::provider::{Ended, Process, Provider},
};

/// Seconds without a request after which a replica may be evicted for a waiting job or replica.
const YIELD_SECONDS: f64 = 20.0;

/// Seconds after which a replica that drains is ended with the requests that it still has.
const MOST_DRAIN_SECONDS: f64 = 600.0;

/// The processes to stop.
#[derive(Default)]
pub(super) struct Stops<'a>(Vec<(&'a dyn Provider, String)>);

impl<'a> Stops<'a> {
    /// Adds a process.
    pub(super) fn add(&mut self, provider: &'a dyn Provider, handle: String) {
        self.0.push((provider, handle));
    }

    /// Stops all at the same time. A process that its provider does not stop has no row, so that a later pass stops it.
    pub(super) async fn run(self) {
        let stop = |(provider, handle): (&'a dyn Provider, String)| async move {
            if let Err(error) = provider.stop(&handle).await {
                let (provider, error) = (provider.name(), chain(&error));
                tracing::warn!(provider, handle, error, "a process could not be stopped; retrying later");
            }
        };
        join_all(self.0.into_iter().map(stop)).await;
    }
}

/// Ends the provider's lost runs, its lost replicas, and those that drain for too long.
pub(super) async fn end_lost<'a>(
    app: &App,
    survey: &Survey<'a>,
    hearing: &Hearing,
    stops: &mut Stops<'a>,
) -> Result<(), SchedulerError> {
    for run in &survey.runs {
        let process = survey.process(&run.run_id.to_string());
        let is_known_after_restart = survey.provider.outlives_scheduler();
        if let Some(loss) = loss_of(app, hearing, run, (process, is_known_after_restart)) {
            lose(app, run, &loss).await?;
            stops.add(survey.provider, run.run_id.to_string());
        }
    }
    for replica in &survey.replicas {
        let process = survey.process(&replica.replica_id.to_string());
        if let Some(reason) = replica_failure_reason(hearing, replica, process) {
            end_replica(app, replica, Some(&reason)).await?;
            stops.add(survey.provider, replica.replica_id.to_string());
        } else if replica.draining_seconds.is_some_and(|seconds| seconds > MOST_DRAIN_SECONDS) {
            end_replica(app, replica, None).await?;
            stops.add(survey.provider, replica.replica_id.to_string());
        }
    }
    Ok(())
}

/// Returns the loss if the run is lost.
fn loss_of(
    app: &App,
    hearing: &Hearing,
    run: &ActiveRun,
    (process, is_known_after_restart): (Option<&Process>, bool),
) -> Option<Loss> {
    let job = Blame::Job { max_attempts: app.leases.max_attempts };
    match process {
        // Its row was committed, and its launch did not follow.
        None if run.handle.is_none() => {
            Some(Loss::new("The scheduler ended before the trainer was launched", Blame::Nobody))
        }
        None if is_known_after_restart => {
            Some(Loss::new("The provider has no record of the trainer any more", Blame::Circumstances))
        }
        // Unknown only after a restart of the scheduler, which is not the job's fault.
        None => Some(Loss::new("The trainer ended with the scheduler that started it", Blame::Nobody)),
        Some(Process { ended: Some(ended), .. }) => {
            let blame = match ended.cause {
                EndCause::OutOfMemory => Blame::Memory,
                // The trainer may have ended because its reports could not be delivered.
                cause if cause.may_be_the_jobs() && hearing.covers(run.silent_seconds) => job,
                _ => Blame::Circumstances,
            };
            Some(Loss { cause: Some(ended.cause), ..Loss::new(&*ended.message, blame) })
        }
        Some(Process { pending: Some(_), .. }) => {
            let is_to_end = matches!(run.job_state, JobState::Cancelling | JobState::Pausing);
            is_to_end.then(|| Loss::new("its trainer was waiting at the provider", Blame::Nobody))
        }
        Some(_) if hearing.is_stale(run.silent_seconds) => {
            Some(Loss::new(format!("The trainer has not reported for {:.0} s", run.silent_seconds), job))
        }
        // It reports, but does not stop.
        Some(_)
            if matches!(run.job_state, JobState::Cancelling | JobState::Pausing)
                && hearing.is_stale(run.unchanged_seconds / 2.0) =>
        {
            Some(Loss::new("the trainer did not stop and was killed", Blame::Nobody))
        }
        Some(_) => None,
    }
}

fn replica_failure_reason(hearing: &Hearing, replica: &Replica, process: Option<&Process>) -> Option<String> {
    match process {
        None => Some("the serving process ended with the scheduler that started it".into()),
        Some(Process { ended: Some(Ended { message, .. }), .. }) => Some(message.clone()),
        Some(Process { pending: Some(_), .. }) => None,
        Some(_) if hearing.is_stale(replica.silent_seconds) => {
            Some(format!("the serving process has not reported for {:.0} s", replica.silent_seconds))
        }
        Some(_) => None,
    }
}

/// Ends the row of a lost run. The caller stops the process afterwards: from now on the lease is stale, whatever the
/// process still reports.
pub(super) async fn lose(app: &App, run: &ActiveRun, loss: &Loss) -> Result<(), SchedulerError> {
    tracing::warn!(job.id = %run.job_id, run.id = %run.run_id, "a run is lost: {}", loss.reason);
    let mut tx = app.begin().await?;
    let state = loss::lost(&mut tx, run.run_id, loss).await?;
    tx.commit_at(FailPoint::ReconcileLose).await?;
    gauges::lost(loss.blame, state);
    Ok(())
}

/// Ends the row of a replica. The caller stops the process afterwards.
pub(super) async fn end_replica(app: &App, replica: &Replica, error: Option<&str>) -> Result<(), SchedulerError> {
    tracing::warn!(replica.id = %replica.replica_id, error, "ending a replica");
    let mut tx = app.begin().await?;
    replica::end(&mut tx, replica.replica_id, error).await?;
    Ok(tx.commit_at(FailPoint::ReconcileEndReplica).await?)
}

fn is_idle(replica: &Replica, seconds: f64) -> bool {
    replica.state == ReplicaState::Ready && replica.idle_seconds > seconds
}

/// Ends the row of a replica if it is still idle. Returns whether it was; the caller then stops the process.
async fn end_idle(app: &App, replica: &Replica, idle_seconds: f64) -> Result<bool, SchedulerError> {
    let mut tx = app.begin().await?;
    let ended = replica::end_if_idle(&mut tx, replica.replica_id, idle_seconds).await?;
    tx.commit_at(FailPoint::ReconcileEndReplica).await?;
    if ended {
        tracing::info!(replica.id = %replica.replica_id, "stopping an idle replica");
    }
    Ok(ended)
}

/// Stops idle replicas to free memory for a waiting job or replica. The caller holds `placing`.
///
/// # Errors
/// [`SchedulerError`]: the caller's next attempt tries again.
pub(crate) async fn stop_idle_replicas(app: &App) -> Result<(), SchedulerError> {
    stop_idle(app, YIELD_SECONDS, |_| true).await
}

/// Ends all replicas of a pool that was not used for `idle_seconds`.
///
/// # Errors
/// As [`stop_idle_replicas`].
pub(crate) async fn stop_idle_pool(app: &App, base: ServedBase, idle_seconds: f64) -> Result<(), SchedulerError> {
    let _placing = app.placing.lock().await;
    stop_idle(app, idle_seconds, |replica| replica.base == base).await
}

async fn stop_idle(
    app: &App,
    idle_seconds: f64,
    is_concerned: impl Fn(&Replica) -> bool,
) -> Result<(), SchedulerError> {
    let mut stops = Stops::default();
    for provider in app.providers.all() {
        let replicas = replicas_at(&mut *app.single().await?, provider.name()).await?;
        for replica in replicas.iter().filter(|replica| is_concerned(replica) && is_idle(replica, idle_seconds)) {
            if end_idle(app, replica, idle_seconds).await? {
                stops.add(provider.as_ref(), replica.replica_id.to_string());
            }
        }
    }
    stops.run().await;
    Ok(())
}
