//! The reconciler, the only path that repairs. It takes no input, runs on a signal and on a timer, and compares the
//! rows, the processes that the providers know, and the database's clock.
//!
//! - a run whose process has ended, or that stopped reporting while reports could arrive: its job is queued again, or
//!   fails after too many attempts
//! - a run whose process waits at its provider: its lease begins again, and its job shows the reason
//! - a job that is being cancelled or paused and whose trainer does not stop: its trainer is killed
//! - a process that no active row names: stopped; a node likewise: released
//! - a job or a replica whose message was lost: the message is sent again
//! - a replica without requests for a while: stopped
//! - a job that was paused for lack of funds that are available again: queued again
//!
//! A node's row names its provider. The row is compared with that provider's processes, and its process is stopped
//! there. A node whose provider is not configured is left alone, and so is, for one pass, a node whose provider cannot
//! list its processes.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use attune_domain::{id::NodeId, job::JobState};
use attune_process::error_chain::chain;
use attune_store::{
    jobs::{
        loss::{self, Blame, Loss},
        unpushed, validation,
    },
    queue::{self, DispatchJob, EnsureReplica, ValidateJob},
    replica::{self, Replica, ReplicaState},
    runs::{
        node, offer,
        run::{self, ActiveRun},
    },
    tenancy::money,
};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    error::{ProviderError, SchedulerError},
    liveness::Hearing,
    pending,
    providers::provider::{EndCause, Ended, Process, Provider},
};

/// The interval between two passes without a notification.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(2);

/// The interval at which the providers' offers are published.
const OFFER_INTERVAL: Duration = Duration::from_secs(30);

/// The grace period of a process without a row: a trainer that has published is still exiting.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Seconds after which the message of a job in validation counts as lost. Large files take longer; a second message
/// then finds nothing to do.
const VALIDATION_SECONDS: f64 = 60.0;

/// Seconds after which the message of a queued job or a wanted replica is sent again.
const WAITING_SECONDS: f64 = 5.0;

/// Seconds without a request after which a replica may be evicted for a waiting job or replica.
const YIELD_SECONDS: f64 = 20.0;

/// State that passes of the reconciler share.
pub(crate) struct Memory {
    /// The time at which each process without a row was first seen, by its provider's name and its handle.
    pub(crate) outliving: HashMap<(String, String), Instant>,
    /// The providers that rows name, that are not configured, and that were logged.
    pub(crate) unconfigured: HashSet<String>,
    /// The time since which reports could arrive.
    pub(crate) hearing: Hearing,
}

impl Memory {
    /// Creates the state of a scheduler that starts at `now`.
    pub(crate) fn new(app: &App, now: Instant) -> Self {
        let lease = Duration::from_secs(app.leases.stale_after_seconds);
        let (outliving, unconfigured) = (HashMap::new(), HashSet::new());
        Self { outliving, unconfigured, hearing: Hearing::new(lease, RECONCILE_INTERVAL, now) }
    }
}

/// Runs until `stop`.
pub(crate) async fn reconcile(app: App, stop: CancellationToken) {
    let mut memory = Memory::new(&app, Instant::now());
    let mut said = None;
    loop {
        if said.is_none_or(|at: Instant| at.elapsed() >= OFFER_INTERVAL) {
            match say_offers(&app).await {
                Ok(()) => said = Some(Instant::now()),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the offers could not be published; retrying later")
                }
            }
        }
        match pass(&app, &mut memory).await {
            Ok(unlisted) => unlisted.iter().for_each(Unlisted::log),
            Err(error) => {
                tracing::warn!(error = chain(&error), "a pass of the reconciler failed; retrying in the next one")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.wake.notified() => {}
            () = tokio::time::sleep(RECONCILE_INTERVAL) => {}
        }
    }
}

/// Publishes the providers' offers, as rows, to the API.
async fn say_offers(app: &App) -> Result<(), SchedulerError> {
    let mut offers = Vec::new();
    for provider in app.providers.all() {
        offers.push((provider.name(), provider.offers().await?));
    }
    let mut tx = app.begin().await?;
    for (provider, offers) in &offers {
        offer::publish(&mut tx, provider, offers).await?;
    }
    Ok(tx.commit().await?)
}

/// A provider's processes, and the active rows that name it.
struct Survey<'a> {
    provider: &'a dyn Provider,
    processes: Vec<Process>,
    runs: Vec<ActiveRun>,
    replicas: Vec<Replica>,
}

impl Survey<'_> {
    fn process(&self, handle: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.handle == handle)
    }

    /// Returns whether an active row names the process.
    fn is_named(&self, process: &Process) -> bool {
        self.runs.iter().any(|run| run.run_id.to_string() == process.handle)
            || self.replicas.iter().any(|replica| replica.replica_id.to_string() == process.handle)
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
    fn log(&self) {
        let error = chain(&self.error);
        tracing::warn!(provider = self.provider, error, "a provider's runs and replicas are not checked in this pass");
    }
}

/// The processes and the rows of each provider, and the providers without a list of processes.
struct Surveyed<'a> {
    surveys: Vec<Survey<'a>>,
    unlisted: Vec<Unlisted>,
}

/// Returns the processes and the rows of each provider.
async fn survey(app: &App) -> Result<Surveyed<'_>, SchedulerError> {
    // List processes first: whatever one reported before it ended is in the rows by then.
    let (mut listed, mut unlisted) = (Vec::new(), Vec::new());
    for provider in app.providers.all() {
        match provider.list().await {
            Ok(processes) => listed.push((provider, processes)),
            Err(error) => unlisted.push(Unlisted { provider: provider.name().to_owned(), error }),
        }
    }
    let mut conn = app.single().await?;
    let mut surveys = Vec::new();
    for (provider, processes) in listed {
        let runs = run::active(&mut conn, provider.name()).await?;
        let replicas = replicas_at(&mut conn, provider.name()).await?;
        surveys.push(Survey { provider: provider.as_ref(), processes, runs, replicas });
    }
    Ok(Surveyed { surveys, unlisted })
}

/// Returns the active replicas on the provider's nodes.
async fn replicas_at(conn: &mut PgConnection, provider: &str) -> Result<Vec<Replica>, SchedulerError> {
    let nodes: HashSet<NodeId> = node::active(conn, provider).await?.into_iter().map(|node| node.node_id).collect();
    let replicas = replica::active(conn).await?.into_iter();
    Ok(replicas.filter(|replica| replica.node_id.is_some_and(|id| nodes.contains(&id))).collect())
}

/// Runs one pass, and returns the providers whose runs and replicas it did not check.
///
/// # Errors
/// [`SchedulerError`]: the next pass tries again.
pub(crate) async fn pass(app: &App, memory: &mut Memory) -> Result<Vec<Unlisted>, SchedulerError> {
    let api_answers = app.api.answers().await;
    let _placing = app.placing.lock().await;
    let surveyed = survey(app).await?;
    memory.hearing.note(api_answers, Instant::now());

    for survey in &surveyed.surveys {
        pending::note(app, &survey.processes, (&survey.runs, &survey.replicas)).await?;
        end_lost(app, survey, &memory.hearing).await?;
    }
    stop_unnamed(&surveyed, &mut memory.outliving).await?;
    release_orphans(app).await?;
    log_unconfigured(app, &mut memory.unconfigured).await?;
    release_affordable(app).await?;
    push_again(app).await?;
    Ok(surveyed.unlisted)
}

/// Ends the provider's lost runs, its lost replicas, and its idle replicas.
async fn end_lost(app: &App, survey: &Survey<'_>, hearing: &Hearing) -> Result<(), SchedulerError> {
    for run in &survey.runs {
        let process = survey.process(&run.run_id.to_string());
        let is_known_after_restart = survey.provider.outlives_scheduler();
        if let Some((reason, blame)) = run_failure_reason(app, hearing, run, (process, is_known_after_restart)) {
            lose(app, survey.provider, run, reason, blame).await?;
        }
    }
    for replica in &survey.replicas {
        let process = survey.process(&replica.replica_id.to_string());
        if let Some(reason) = replica_failure_reason(hearing, replica, process) {
            end_replica(app, survey.provider, replica, Some(&reason)).await?;
        } else if replica.state == ReplicaState::Ready && replica.idle_seconds > app.serving.idle_seconds as f64 {
            end_idle(app, survey.provider, replica, app.serving.idle_seconds as f64).await?;
        }
    }
    Ok(())
}

/// Returns the reason and the blame if the run is lost.
fn run_failure_reason(
    app: &App,
    hearing: &Hearing,
    run: &ActiveRun,
    (process, is_known_after_restart): (Option<&Process>, bool),
) -> Option<(String, Blame)> {
    let job = Blame::Job { max_attempts: app.leases.max_attempts };
    match process {
        None if is_known_after_restart => {
            Some(("The provider has no record of the trainer any more".into(), Blame::Circumstances))
        }
        None => Some(("The trainer ended with the scheduler that started it".into(), Blame::Circumstances)),
        Some(Process { ended: Some(Ended { message, cause: EndCause::Circumstances }), .. }) => {
            Some((message.clone(), Blame::Circumstances))
        }
        Some(Process { ended: Some(Ended { message, cause: EndCause::OutOfMemory }), .. }) => {
            Some((message.clone(), Blame::Memory))
        }
        // The trainer may have ended because its reports could not be delivered.
        Some(Process { ended: Some(Ended { message, cause: EndCause::Program }), .. }) => {
            Some((message.clone(), if hearing.covers(run.silent_seconds) { job } else { Blame::Circumstances }))
        }
        Some(Process { pending: Some(_), .. }) => {
            let is_to_end = matches!(run.job_state, JobState::Cancelling | JobState::Pausing);
            is_to_end.then(|| ("its trainer was waiting at the provider".into(), Blame::Nobody))
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
        Some(Process { ended: Some(Ended { message, .. }), .. }) => Some(message.clone()),
        Some(Process { pending: Some(_), .. }) => None,
        Some(_) if hearing.is_stale(replica.silent_seconds) => {
            Some(format!("the serving process has not reported for {:.0} s", replica.silent_seconds))
        }
        Some(_) => None,
    }
}

async fn lose(
    app: &App,
    provider: &dyn Provider,
    run: &ActiveRun,
    reason: String,
    blame: Blame,
) -> Result<(), SchedulerError> {
    tracing::warn!(job.id = %run.job_id, run.id = %run.run_id, "a run is lost: {reason}");
    // Update the row first: from then on the lease is stale, whatever the process still reports.
    let mut tx = app.begin().await?;
    loss::lost(&mut tx, run.run_id, &Loss::new(reason, blame)).await?;
    tx.commit().await?;
    Ok(provider.stop(&run.run_id.to_string()).await?)
}

async fn end_replica(
    app: &App,
    provider: &dyn Provider,
    replica: &Replica,
    error: Option<&str>,
) -> Result<(), SchedulerError> {
    tracing::warn!(replica.id = %replica.replica_id, error, "ending a replica");
    let mut tx = app.begin().await?;
    replica::end(&mut tx, replica.replica_id, error).await?;
    tx.commit().await?;
    Ok(provider.stop(&replica.replica_id.to_string()).await?)
}

async fn end_idle(
    app: &App,
    provider: &dyn Provider,
    replica: &Replica,
    idle_seconds: f64,
) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    let ended = replica::end_if_idle(&mut tx, replica.replica_id, idle_seconds).await?;
    tx.commit().await?;
    if ended {
        tracing::info!(replica.id = %replica.replica_id, "stopping an idle replica");
        provider.stop(&replica.replica_id.to_string()).await?;
    }
    Ok(())
}

/// Stops idle replicas to free memory for a waiting job or replica. The caller holds `placing`.
///
/// # Errors
/// [`SchedulerError`]: the caller's next attempt tries again.
pub(crate) async fn stop_idle_replicas(app: &App) -> Result<(), SchedulerError> {
    for provider in app.providers.all() {
        let replicas = replicas_at(&mut *app.single().await?, provider.name()).await?;
        for replica in replicas.iter().filter(|replica| replica.state == ReplicaState::Ready) {
            if replica.idle_seconds > YIELD_SECONDS {
                end_idle(app, provider.as_ref(), replica, YIELD_SECONDS).await?;
            }
        }
    }
    Ok(())
}

/// Stops the processes that no active row of their own provider names.
async fn stop_unnamed(
    Surveyed { surveys, unlisted }: &Surveyed<'_>,
    outliving: &mut HashMap<(String, String), Instant>,
) -> Result<(), SchedulerError> {
    outliving.retain(|(provider, handle), _| {
        unlisted.iter().any(|unlisted| unlisted.provider == *provider)
            || surveys.iter().any(|survey| survey.provider.name() == provider && survey.process(handle).is_some())
    });
    for survey in surveys {
        for process in survey.processes.iter().filter(|process| !survey.is_named(process)) {
            let key = (survey.provider.name().to_owned(), process.handle.clone());
            let since = *outliving.entry(key).or_insert_with(Instant::now);
            if process.ended.is_some() || since.elapsed() >= ORPHAN_GRACE {
                survey.provider.stop(&process.handle).await?;
            }
        }
    }
    Ok(())
}

async fn release_orphans(app: &App) -> Result<(), SchedulerError> {
    let mut conn = app.single().await?;
    for provider in app.providers.all() {
        for orphan in node::active(&mut conn, provider.name()).await?.iter().filter(|node| node.is_orphan()) {
            tracing::warn!(node.id = %orphan.node_id, "releasing an orphaned node");
            node::release(&mut conn, orphan.node_id).await?;
        }
    }
    Ok(())
}

/// Logs, once for each name, the providers that active nodes name and that are not configured.
async fn log_unconfigured(app: &App, logged: &mut HashSet<String>) -> Result<(), SchedulerError> {
    for name in node::active_providers(&mut *app.single().await?).await? {
        if app.providers.get(&name).is_none() && logged.insert(name.clone()) {
            tracing::warn!(provider = name, "nodes of a provider that is not configured are left alone; configure it");
        }
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
    for job_id in unpushed::claim(&mut tx, JobState::Validating, VALIDATION_SECONDS, 100).await? {
        queue::push(&mut tx, &ValidateJob { job_id }).await?;
    }
    // One message suffices: its handler processes all waiting jobs.
    for job_id in unpushed::claim(&mut tx, JobState::Queued, WAITING_SECONDS, 1).await? {
        queue::push(&mut tx, &DispatchJob { job_id }).await?;
    }
    for replica_id in replica::claim_unpushed(&mut tx, WAITING_SECONDS).await? {
        queue::push(&mut tx, &EnsureReplica { replica_id }).await?;
    }
    Ok(tx.commit().await?)
}

/// Stops all processes that end with the scheduler and requeues their jobs, so that the next scheduler finds them. Used
/// for an orderly shutdown. The next scheduler adopts the other processes.
///
/// # Errors
/// [`SchedulerError`]: the next scheduler declares what is left lost.
pub(crate) async fn hand_back(app: &App) -> Result<(), SchedulerError> {
    let _placing = app.placing.lock().await;
    let mut conn = app.single().await?;
    for job_id in app.validations.jobs() {
        validation::take_back(&mut conn, job_id).await?; // this process ends the attempt; the job is not at fault
    }
    drop(conn);
    for provider in app.providers.all().iter().filter(|provider| !provider.outlives_scheduler()) {
        let mut conn = app.single().await?;
        let runs = run::active(&mut conn, provider.name()).await?;
        let replicas = replicas_at(&mut conn, provider.name()).await?;
        drop(conn);
        for run in &runs {
            let reason = "The platform was stopped while the trainer was running".into();
            lose(app, provider.as_ref(), run, reason, Blame::Nobody).await?;
        }
        for replica in &replicas {
            end_replica(app, provider.as_ref(), replica, None).await?;
        }
    }
    Ok(())
}
