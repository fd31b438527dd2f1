//! The reconciler, the only path that repairs. It takes no input, runs on a signal and on a timer, and compares the
//! rows, the processes that the provider knows, and the database's clock.
//!
//! - a run whose process has ended, or that stopped reporting while reports could arrive: its job is queued again, or
//!   fails after too many attempts
//! - a job that is being cancelled or paused and whose trainer does not stop: its trainer is killed
//! - a process that no active row names: stopped; a node likewise: released
//! - a job or a replica whose message was lost: the message is sent again
//! - a replica without requests for a while: stopped
//! - a job that was paused for lack of funds that are available again: queued again

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use attune_domain::job::JobState;
use attune_store::{
    jobs::{
        job,
        loss::{self, Blame, Loss},
        validation,
    },
    queue::{self, DispatchJob, EnsureReplica, ValidateJob},
    replica::{self, Replica, ReplicaState},
    runs::{
        node, offer,
        run::{self, ActiveRun},
    },
    tenancy::money,
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    error::{SchedulerError, chain},
    liveness::Hearing,
    providers::provider::Process,
};

/// The interval between two passes without a notification.
const PASS: Duration = Duration::from_secs(2);

/// The interval at which the provider's offers are published.
const SAY: Duration = Duration::from_secs(30);

/// The grace period of a process without a row: a trainer that has published is still exiting.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// Seconds after which the message of a job in validation counts as lost. Large files take longer; a second message
/// then finds nothing to do.
const VALIDATION_SECONDS: f64 = 60.0;

/// Seconds after which the message of a queued job or a wanted replica is sent again.
const WAITING_SECONDS: f64 = 5.0;

/// Seconds without a request after which a replica may be evicted for a waiting job or replica.
const YIELD_SECONDS: f64 = 20.0;

/// State that passes of the reconciler share.
pub(crate) struct Memory {
    /// The time at which each process without a row was first seen.
    pub(crate) outliving: HashMap<String, Instant>,
    /// The time since which reports could arrive.
    pub(crate) hearing: Hearing,
}

impl Memory {
    /// Creates the state of a scheduler that starts at `now`.
    pub(crate) fn new(app: &App, now: Instant) -> Self {
        let lease = Duration::from_secs(app.leases.stale_after_seconds);
        Self { outliving: HashMap::new(), hearing: Hearing::new(lease, PASS, now) }
    }
}

/// Runs until `stop`.
pub(crate) async fn reconcile(app: App, stop: CancellationToken) {
    let mut memory = Memory::new(&app, Instant::now());
    let mut said = None;
    loop {
        if said.is_none_or(|at: Instant| at.elapsed() >= SAY) {
            match say_offers(&app).await {
                Ok(()) => said = Some(Instant::now()),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the offers could not be published; retrying later")
                }
            }
        }
        if let Err(error) = pass(&app, &mut memory).await {
            tracing::warn!(error = chain(&error), "a pass of the reconciler failed; retrying in the next one");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.wake.notified() => {}
            () = tokio::time::sleep(PASS) => {}
        }
    }
}

/// Publishes the provider's offers, as rows, to the API.
async fn say_offers(app: &App) -> Result<(), SchedulerError> {
    let offers = app.provider.offers().await?;
    let mut tx = app.begin().await?;
    offer::publish(&mut tx, app.provider.name(), &offers).await?;
    Ok(tx.commit().await?)
}

/// Runs one pass.
pub(crate) async fn pass(app: &App, memory: &mut Memory) -> Result<(), SchedulerError> {
    let api_answers = app.api.answers().await;
    let _placing = app.placing.lock().await;
    // List processes first: whatever one reported before it ended is in the rows by then.
    let processes = app.provider.list().await?;
    let mut conn = app.single().await?;
    let runs = run::active(&mut conn, app.provider.name()).await?;
    let replicas = replica::active(&mut conn).await?;
    drop(conn);
    memory.hearing.note(api_answers, Instant::now());

    let find = |handle: &str| processes.iter().find(|process| process.handle == handle);
    for run in &runs {
        let process = find(&run.run_id.to_string());
        if let Some((reason, blame)) = run_failure_reason(app, &memory.hearing, run, process) {
            lose(app, run, reason, blame).await?;
        }
    }
    for replica in replicas.iter().filter(|replica| replica.node_id.is_some()) {
        let process = find(&replica.replica_id.to_string());
        if let Some(reason) = replica_failure_reason(&memory.hearing, replica, process) {
            end_replica(app, replica, Some(&reason)).await?;
        } else if replica.state == ReplicaState::Ready && replica.idle_seconds > app.serving.idle_seconds as f64 {
            end_idle(app, replica, app.serving.idle_seconds as f64).await?;
        }
    }
    let living: HashSet<String> = runs
        .iter()
        .map(|run| run.run_id.to_string())
        .chain(replicas.iter().map(|replica| replica.replica_id.to_string()))
        .collect();
    stop_unnamed(app, &processes, &living, &mut memory.outliving).await?;
    release_orphans(app).await?;
    release_affordable(app).await?;
    push_again(app).await
}

/// Returns the reason and the blame if the run is lost.
fn run_failure_reason(
    app: &App,
    hearing: &Hearing,
    run: &ActiveRun,
    process: Option<&Process>,
) -> Option<(String, Blame)> {
    let job = Blame::Job { max_attempts: app.leases.max_attempts };
    match process {
        None => Some(("The trainer ended with the scheduler that started it".into(), Blame::Circumstances)),
        // The trainer may have ended because its reports could not be delivered.
        Some(Process { ended: Some(how), .. }) => {
            Some((how.clone(), if hearing.covers(run.silent_seconds) { job } else { Blame::Circumstances }))
        }
        Some(_) if hearing.is_stale(run.silent_seconds) => {
            Some((format!("The trainer has not reported for {:.0} s", run.silent_seconds), job))
        }
        // It reports, but does not stop.
        Some(_)
            if matches!(run.job_state, JobState::Cancelling | JobState::Pausing)
                && hearing.is_stale(run.unchanged_seconds / 2.0) =>
        {
            Some(("the trainer did not stop and was killed".into(), Blame::Nobody))
        }
        Some(_) => None,
    }
}

fn replica_failure_reason(hearing: &Hearing, replica: &Replica, process: Option<&Process>) -> Option<String> {
    match process {
        None => Some("the serving process ended with the scheduler that started it".into()),
        Some(Process { ended: Some(how), .. }) => Some(how.clone()),
        Some(_) if hearing.is_stale(replica.silent_seconds) => {
            Some(format!("the serving process has not reported for {:.0} s", replica.silent_seconds))
        }
        Some(_) => None,
    }
}

async fn lose(app: &App, run: &ActiveRun, reason: String, blame: Blame) -> Result<(), SchedulerError> {
    tracing::warn!(job.id = %run.job_id, run.id = %run.run_id, "a run is lost: {reason}");
    // Update the row first: from then on the lease is stale, whatever the process still reports.
    let mut tx = app.begin().await?;
    loss::lost(&mut tx, run.run_id, &Loss::new(reason, blame)).await?;
    tx.commit().await?;
    Ok(app.provider.stop(&run.run_id.to_string()).await?)
}

async fn end_replica(app: &App, replica: &Replica, error: Option<&str>) -> Result<(), SchedulerError> {
    tracing::warn!(replica.id = %replica.replica_id, error, "ending a replica");
    let mut tx = app.begin().await?;
    replica::end(&mut tx, replica.replica_id, error).await?;
    tx.commit().await?;
    Ok(app.provider.stop(&replica.replica_id.to_string()).await?)
}

async fn end_idle(app: &App, replica: &Replica, idle_seconds: f64) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    let ended = replica::end_if_idle(&mut tx, replica.replica_id, idle_seconds).await?;
    tx.commit().await?;
    if ended {
        tracing::info!(replica.id = %replica.replica_id, "stopping an idle replica");
        app.provider.stop(&replica.replica_id.to_string()).await?;
    }
    Ok(())
}

/// Stops idle replicas to free memory for a waiting job or replica. The caller holds `placing`.
///
/// # Errors
/// [`SchedulerError`]: the caller's next attempt tries again.
pub(crate) async fn make_room(app: &App) -> Result<(), SchedulerError> {
    let replicas = replica::active(&mut *app.single().await?).await?;
    for replica in replicas.iter().filter(|replica| replica.state == ReplicaState::Ready) {
        if replica.idle_seconds > YIELD_SECONDS {
            end_idle(app, replica, YIELD_SECONDS).await?;
        }
    }
    Ok(())
}

async fn stop_unnamed(
    app: &App,
    processes: &[Process],
    living: &HashSet<String>,
    outliving: &mut HashMap<String, Instant>,
) -> Result<(), SchedulerError> {
    outliving.retain(|handle, _| processes.iter().any(|process| process.handle == *handle));
    for process in processes.iter().filter(|process| !living.contains(&process.handle)) {
        let since = *outliving.entry(process.handle.clone()).or_insert_with(Instant::now);
        if process.ended.is_some() || since.elapsed() >= AFTERLIFE {
            app.provider.stop(&process.handle).await?;
        }
    }
    Ok(())
}

async fn release_orphans(app: &App) -> Result<(), SchedulerError> {
    let mut conn = app.single().await?;
    for orphan in node::active(&mut conn, app.provider.name()).await?.iter().filter(|node| node.is_orphan()) {
        tracing::warn!(node.id = %orphan.node_id, "releasing an orphaned node");
        node::release(&mut conn, orphan.node_id).await?;
    }
    Ok(())
}

async fn release_affordable(app: &App) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    money::release_affordable(&mut tx, 100).await?;
    Ok(tx.commit().await?)
}

async fn push_again(app: &App) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    for job_id in job::claim_unpushed(&mut tx, JobState::Validating, VALIDATION_SECONDS, 100).await? {
        queue::push(&mut tx, &ValidateJob { job_id }).await?;
    }
    // One message suffices: its handler processes all waiting jobs.
    for job_id in job::claim_unpushed(&mut tx, JobState::Queued, WAITING_SECONDS, 1).await? {
        queue::push(&mut tx, &DispatchJob { job_id }).await?;
    }
    for replica_id in replica::claim_unpushed(&mut tx, WAITING_SECONDS).await? {
        queue::push(&mut tx, &EnsureReplica { replica_id }).await?;
    }
    Ok(tx.commit().await?)
}

/// Stops all processes and requeues their jobs, so that the next scheduler finds them. Used for an orderly shutdown.
///
/// # Errors
/// [`SchedulerError`]: the next scheduler declares what is left lost.
pub(crate) async fn hand_back(app: &App) -> Result<(), SchedulerError> {
    let _placing = app.placing.lock().await;
    let mut conn = app.single().await?;
    for job_id in app.validations.jobs() {
        validation::take_back(&mut conn, job_id).await?; // this process ends the attempt; the job is not at fault
    }
    let runs = run::active(&mut conn, app.provider.name()).await?;
    let replicas = replica::active(&mut conn).await?;
    drop(conn);
    for run in &runs {
        lose(app, run, "The platform was stopped while the trainer was running".into(), Blame::Nobody).await?;
    }
    for replica in replicas.iter().filter(|replica| replica.node_id.is_some()) {
        end_replica(app, replica, None).await?;
    }
    Ok(())
}
