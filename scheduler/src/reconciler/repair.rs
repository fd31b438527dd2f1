//! The loop of the reconciler, one pass of it, and the orderly shutdown.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use attune_domain::job::JobState;
use attune_process::{
    error_chain::chain,
    failpoint::FailPoint,
    metrics::{RECONCILE_FAILURES, RECONCILE_SECONDS, RECONCILE_TIMESTAMP},
};
use attune_store::{
    exports::{export_end, export_run},
    jobs::{
        loss::{Blame, Loss},
        unpushed, validation,
    },
    queue::{self, DispatchJob, EnsureExport, EnsureReplica, ValidateJob},
    replica,
    runs::{
        node, offer,
        provider::{self, ProviderState},
        run,
    },
    tenancy::money,
};
use tokio_util::sync::CancellationToken;

use super::{
    ended::{Stops, end_lost, end_replica, lose},
    exports,
    survey::{Surveyed, Unlisted, replicas_at, survey},
};
use crate::{app::App, error::SchedulerError, liveness::Hearing, pending, providers::market::ProviderOffers};

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
        let began = Instant::now();
        let passed = pass(&app, &mut memory).await;
        RECONCILE_SECONDS.observe([], began.elapsed().as_secs_f64());
        match passed {
            Ok(unlisted) => {
                RECONCILE_TIMESTAMP.set_to_now();
                unlisted.iter().for_each(Unlisted::log);
            }
            Err(error) => {
                RECONCILE_FAILURES.inc([]);
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

/// Publishes the providers and their offers, as rows, to the API. Those of a provider that does not answer are its last
/// ones.
async fn say_offers(app: &App) -> Result<(), SchedulerError> {
    let market = app.market().await?;
    let state = |of: &ProviderOffers| ProviderState { name: of.provider.clone(), unreachable: of.unreachable.clone() };
    let states: Vec<ProviderState> = market.all().iter().map(state).collect();
    let mut tx = app.begin().await?;
    provider::publish(&mut tx, &states).await?;
    for ProviderOffers { provider, offers, unreachable } in market.all() {
        if unreachable.is_none() || !offers.is_empty() {
            offer::publish(&mut tx, provider, offers).await?;
        }
    }
    Ok(tx.commit_at(FailPoint::ReconcileOffers).await?)
}

/// Runs one pass, and returns the providers whose runs and replicas it did not check.
///
/// # Errors
/// [`SchedulerError`]: the next pass tries again.
pub(crate) async fn pass(app: &App, memory: &mut Memory) -> Result<Vec<Unlisted>, SchedulerError> {
    // Queried once without the lock: a slow provider then answers from its memory, and holds back no placement.
    let (api_answers, _) = tokio::join!(app.api.answers(), app.providers.list());
    let _placing = app.placing.lock().await;
    let surveyed = survey(app).await?;
    memory.hearing.note(api_answers, Instant::now());

    let mut stops = Stops::default();
    let compared = compare(app, &surveyed, memory, &mut stops).await;
    stops.run().await;
    compared?;
    release_orphans(app).await?;
    log_unconfigured(app, &mut memory.unconfigured).await?;
    release_affordable(app).await?;
    push_again(app).await?;
    Ok(surveyed.unlisted)
}

/// Compares processes and rows: ends the rows of what has ended, and collects the processes to stop.
async fn compare<'a>(
    app: &App,
    surveyed: &Surveyed<'a>,
    memory: &mut Memory,
    stops: &mut Stops<'a>,
) -> Result<(), SchedulerError> {
    for survey in &surveyed.surveys {
        pending::note(app, &survey.processes, (&survey.runs, &survey.replicas)).await?;
        end_lost(app, survey, &memory.hearing, stops).await?;
        exports::end_lost(app, survey, &memory.hearing, stops).await?;
    }
    stop_unnamed(surveyed, &mut memory.outliving, stops);
    Ok(())
}

/// Collects the processes that no active row of their own provider names.
fn stop_unnamed<'a>(
    Surveyed { surveys, unlisted }: &Surveyed<'a>,
    outliving: &mut HashMap<(String, String), Instant>,
    stops: &mut Stops<'a>,
) {
    outliving.retain(|(provider, handle), _| {
        unlisted.iter().any(|unlisted| unlisted.provider == *provider)
            || surveys.iter().any(|survey| survey.provider.name() == provider && survey.process(handle).is_some())
    });
    for survey in surveys {
        for process in survey.processes.iter().filter(|process| !survey.is_named(process)) {
            let key = (survey.provider.name().to_owned(), process.handle.clone());
            let since = *outliving.entry(key).or_insert_with(Instant::now);
            if process.ended.is_some() || since.elapsed() >= ORPHAN_GRACE {
                stops.add(survey.provider, process.handle.clone());
            }
        }
    }
}

async fn release_orphans(app: &App) -> Result<(), SchedulerError> {
    let mut orphans = Vec::new();
    let mut conn = app.single().await?;
    for provider in app.providers.all() {
        orphans.extend(node::active(&mut conn, provider.name()).await?.into_iter().filter(node::Node::is_orphan));
    }
    drop(conn);
    if orphans.is_empty() {
        return Ok(());
    }
    let mut tx = app.begin().await?;
    for orphan in &orphans {
        tracing::warn!(node.id = %orphan.node_id, "releasing an orphaned node");
        node::release(&mut tx, orphan.node_id).await?;
    }
    Ok(tx.commit_at(FailPoint::ReconcileReleaseNodes).await?)
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
    Ok(tx.commit_at(FailPoint::ReconcileReleaseAffordable).await?)
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
    for export_id in export_run::claim_unpushed(&mut tx, WAITING_SECONDS).await? {
        queue::push(&mut tx, &EnsureExport { export_id }).await?;
    }
    Ok(tx.commit_at(FailPoint::ReconcilePushAgain).await?)
}

/// Stops all processes that end with the scheduler and requeues their jobs, so that the next scheduler finds them. Used
/// for an orderly shutdown. The next scheduler adopts the other processes.
///
/// # Errors
/// [`SchedulerError`]: the next scheduler declares what is left lost.
pub(crate) async fn hand_back(app: &App) -> Result<(), SchedulerError> {
    let _placing = app.placing.lock().await;
    let mut tx = app.begin().await?;
    for job_id in app.validations.jobs() {
        validation::take_back(&mut tx, job_id).await?; // this process ends the attempt; the job is not at fault
    }
    tx.commit_at(FailPoint::ValidateTakeBack).await?;
    let mut stops = Stops::default();
    for provider in app.providers.all().iter().filter(|provider| !provider.outlives_scheduler()) {
        let mut conn = app.single().await?;
        let runs = run::active(&mut conn, provider.name()).await?;
        let replicas = replicas_at(&mut conn, provider.name()).await?;
        let written = export_run::active(&mut conn, provider.name()).await?;
        drop(conn);
        for export in &written {
            let reason = "the platform was stopped while it was written";
            exports::lose(app, export, reason, export_end::Blame::Circumstances).await?;
            stops.add(provider.as_ref(), export.node_id.to_string());
        }
        for run in &runs {
            let reason = "The platform was stopped while the trainer was running";
            lose(app, run, &Loss::new(reason, Blame::Nobody)).await?;
            stops.add(provider.as_ref(), run.run_id.to_string());
        }
        for replica in &replicas {
            end_replica(app, replica, None).await?;
            stops.add(provider.as_ref(), replica.replica_id.to_string());
        }
    }
    stops.run().await;
    Ok(())
}
