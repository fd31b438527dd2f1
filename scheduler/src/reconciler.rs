//! The only path that repairs. Takes no input, runs on a signal and on a timer, and compares three things: the rows, the
//! processes that the provider knows of, and the database's clock.
//!
//! - a run whose process is gone, or that fell silent while it could have been heard: its job is queued again, or fails
//!   after too many attempts
//! - a job that is being cancelled or paused and whose trainer does not obey: its trainer is ended
//! - a process that no living row names: stopped; a node likewise: released
//! - a job or a replica whose message was lost: the message is sent again
//! - a replica that nobody used for a while: stopped
//! - a job that waits for money which is there by now: queued again

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

/// Between two passes when nothing rings.
const PASS: Duration = Duration::from_secs(2);

/// Between two tellings of what the provider offers.
const SAY: Duration = Duration::from_secs(30);

/// How long a process may outlive its row: a trainer that has published is still on its way out.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// A job's rows are turned into tokens within this time, or else its message counts as lost. Large files take longer;
/// a second message then finds nothing to do.
const VALIDATION_SECONDS: f64 = 60.0;

/// A queued job or a wanted replica is looked at this often.
const WAITING_SECONDS: f64 = 5.0;

/// A replica that had no request for this long makes room for a job.
const YIELD_SECONDS: f64 = 20.0;

/// What a pass knows of those before it.
pub(crate) struct Memory {
    /// Since when a process has had no row.
    pub(crate) outliving: HashMap<String, Instant>,
    /// Since when silence means something.
    pub(crate) hearing: Hearing,
}

impl Memory {
    /// Of a scheduler that begins at `now`.
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
                    tracing::warn!(error = chain(&error), "the offers could not be told; they are told later")
                }
            }
        }
        if let Err(error) = pass(&app, &mut memory).await {
            tracing::warn!(error = chain(&error), "a pass of the reconciler failed; the next one comes");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.wake.notified() => {}
            () = tokio::time::sleep(PASS) => {}
        }
    }
}

/// Tells the api, through rows, what can be had here.
async fn say_offers(app: &App) -> Result<(), SchedulerError> {
    let offers = app.provider.offers().await?;
    let mut tx = app.begin().await?;
    offer::publish(&mut tx, app.provider.name(), &offers).await?;
    Ok(tx.commit().await?)
}

/// One pass.
pub(crate) async fn pass(app: &App, memory: &mut Memory) -> Result<(), SchedulerError> {
    let api_answers = app.api.answers().await;
    let _placing = app.placing.lock().await;
    // Processes first: whatever one has reported before it ended is in the rows by then.
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

/// Why a run is to be given up, and who is to blame.
fn run_failure_reason(
    app: &App,
    hearing: &Hearing,
    run: &ActiveRun,
    process: Option<&Process>,
) -> Option<(String, Blame)> {
    let job = Blame::Job { max_attempts: app.leases.max_attempts };
    match process {
        None => Some(("The trainer went away with the scheduler that started it".into(), Blame::Circumstances)),
        // Perhaps for want of anybody who took its reports.
        Some(Process { ended: Some(how), .. }) => {
            Some((how.clone(), if hearing.covers(run.silent_seconds) { job } else { Blame::Circumstances }))
        }
        Some(_) if hearing.is_stale(run.silent_seconds) => {
            Some((format!("The trainer has been silent for {:.0} s", run.silent_seconds), job))
        }
        // It reports, but does not obey.
        Some(_)
            if matches!(run.job_state, JobState::Cancelling | JobState::Pausing)
                && hearing.is_stale(run.unchanged_seconds / 2.0) =>
        {
            Some(("the trainer did not stop and was ended".into(), Blame::Nobody))
        }
        Some(_) => None,
    }
}

fn replica_failure_reason(hearing: &Hearing, replica: &Replica, process: Option<&Process>) -> Option<String> {
    match process {
        None => Some("the serving process went away with the scheduler that started it".into()),
        Some(Process { ended: Some(how), .. }) => Some(how.clone()),
        Some(_) if hearing.is_stale(replica.silent_seconds) => {
            Some(format!("the serving process has been silent for {:.0} s", replica.silent_seconds))
        }
        Some(_) => None,
    }
}

async fn lose(app: &App, run: &ActiveRun, reason: String, blame: Blame) -> Result<(), SchedulerError> {
    tracing::warn!(job.id = %run.job_id, run.id = %run.run_id, "giving a run up: {reason}");
    // The row first: from then on the lease is stale, whatever the process still says.
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
        tracing::info!(replica.id = %replica.replica_id, "stopping a replica that nobody uses");
        app.provider.stop(&replica.replica_id.to_string()).await?;
    }
    Ok(())
}

/// Stops replicas that nobody uses at the moment, for somebody who needs their memory. The caller holds `placing`.
///
/// # Errors
/// [`SchedulerError`]: the next pass of whoever waits tries again.
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
        tracing::warn!(node.id = %orphan.node_id, "releasing a node that is for nobody");
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
    // One is enough: whoever takes it looks at all that wait.
    for job_id in job::claim_unpushed(&mut tx, JobState::Queued, WAITING_SECONDS, 1).await? {
        queue::push(&mut tx, &DispatchJob { job_id }).await?;
    }
    for replica_id in replica::claim_unpushed(&mut tx, WAITING_SECONDS).await? {
        queue::push(&mut tx, &EnsureReplica { replica_id }).await?;
    }
    Ok(tx.commit().await?)
}

/// Ends all processes and hands their jobs back, so that the next scheduler finds them queued. For an orderly end.
///
/// # Errors
/// [`SchedulerError`]: what is left is found lost at the next start.
pub(crate) async fn hand_back(app: &App) -> Result<(), SchedulerError> {
    let _placing = app.placing.lock().await;
    let mut conn = app.single().await?;
    for job_id in app.validations.jobs() {
        validation::take_back(&mut conn, job_id).await?; // it is this process that ends, and not for the job's sake
    }
    let runs = run::active(&mut conn, app.provider.name()).await?;
    let replicas = replica::active(&mut conn).await?;
    drop(conn);
    for run in &runs {
        lose(app, run, "The platform was stopped while the trainer was at work".into(), Blame::Nobody).await?;
    }
    for replica in replicas.iter().filter(|replica| replica.node_id.is_some()) {
        end_replica(app, replica, None).await?;
    }
    Ok(())
}
