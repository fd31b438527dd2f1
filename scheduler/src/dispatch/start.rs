//! The start of one job on the offer that the plan of the queue chose: node, run and lease in one transaction, then the
//! launch.

use attune_domain::{
    bytes::Bytes,
    id::JobId,
    job::{JobEvent, JobState},
    offer::Offer,
    run::Plan,
};
use attune_process::error_chain::chain;
use attune_store::{
    error::StoreError,
    ids,
    jobs::{
        checkpoint,
        job::{self, Job, Step},
        job_event::{self, Level},
        job_pause,
        loss::{self, Blame, Loss},
        snapshot,
    },
    runs::{
        node::{self, NewNode},
        placement::{self, Placed},
        run::{self, NewRun, Run},
    },
    tenancy::money,
};
use serde_json::json;
use sqlx::PgConnection;

use super::{
    decision::{Decision, Placement, decide, decide_on},
    placed::placed,
    work::{Bases, Work},
};
use crate::{
    app::{self, App},
    error::SchedulerError,
    providers::provider::{Launch, Program, Resources},
};

/// The `code` of the event that warns of another plan.
const PLAN_CHANGED: &str = "plan_changed";

/// The result of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    /// The trainer was launched, or the job does not wait any more.
    Done,
    /// The job did not take its place: the queue is planned again.
    Skipped,
    /// The job was paused instead. Its place stays free, so the other starts of the plan are still possible.
    Paused,
    /// The provider could not launch the trainer.
    Failed,
}

/// Starts a waiting job on the offer `chosen`.
#[tracing::instrument(skip(app, chosen), fields(job.id = %id, offer = %chosen.name))]
pub(super) async fn start(app: &App, id: JobId, chosen: &Offer) -> Result<Started, SchedulerError> {
    let mut tx = app.begin().await?;
    let work = Work::load(&mut tx, id, &mut Bases::new()).await?;
    if work.job.state != JobState::Queued {
        return Ok(Started::Done);
    }
    if let Some((reason, why)) = money::exhausted(&mut tx, &work.job).await? {
        return match job_pause::pause_for(&mut tx, &work.job, reason, &why).await {
            Ok(()) => Ok(tx.commit().await.map(|()| Started::Paused)?),
            Err(StoreError::Illegal(_)) => Ok(Started::Done),
            Err(error) => Err(error.into()),
        };
    }
    let offers = app::offers(app, &mut tx).await?;
    let admitted = work.admitted(&offers);
    let Decision::Place(placement) = decide_on(work.workload(), work.kept.as_ref(), &admitted, chosen) else {
        tracing::debug!("the offer has no room for the job any more");
        snapshot::forget_measures(&mut tx, id).await?;
        tx.commit().await?;
        return Ok(Started::Skipped);
    };
    if let Some(warning) = &placement.changed {
        warn_of_change(&mut tx, id, warning, (work.kept.as_ref(), &placement.plan)).await?;
    }
    let record = placed(work.need(&offers), placement.estimate.clone(), &placement.offer, &offers);
    match claim(app, &mut tx, &work.job, (*placement, record)).await {
        Ok(claimed) => {
            tx.commit().await?;
            launch(app, claimed).await
        }
        // It was cancelled meanwhile.
        Err(StoreError::Illegal(_)) => Ok(Started::Done),
        Err(error) => Err(error.into()),
    }
}

/// Decides again about a waiting job that no offer can hold: it fails, unless another plan than the one that it began
/// with fits; then it is measured again.
#[tracing::instrument(skip(app), fields(job.id = %id))]
pub(super) async fn reconsider(app: &App, id: JobId) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    let work = Work::load(&mut tx, id, &mut Bases::new()).await?;
    let offers = work.admitted(&app::offers(app, &mut tx).await?);
    let stepped = match decide(work.workload(), work.kept.as_ref(), &offers) {
        Decision::Refuse(error) => {
            let step = Step::failure(JobEvent::RunFailed, error);
            job::step(&mut tx, id, &step).await.map(drop)
        }
        Decision::Place(_) | Decision::Wait => snapshot::forget_measures(&mut tx, id).await,
    };
    match stepped {
        Ok(()) => Ok(tx.commit().await?),
        // It does not wait any more.
        Err(StoreError::Illegal(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Adds an event, before the step that claims the job, that the result may differ from an undisturbed run's.
async fn warn_of_change(
    tx: &mut PgConnection,
    job: JobId,
    warning: &str,
    (before, after): (Option<&Plan>, &Plan),
) -> Result<(), StoreError> {
    let data = json!({ "code": PLAN_CHANGED, "before": before.map(Plan::split_json), "after": after.split_json() });
    job_event::message_with(tx, job, Level::Warn, warning, &data).await
}

/// A claimed run, and the launch of its trainer once the transaction is committed.
struct Claimed {
    run: Run,
    /// The name of the provider to launch at.
    provider: String,
    launch: Launch,
}

async fn claim(
    app: &App,
    tx: &mut PgConnection,
    job: &Job,
    (placement, record): (Placement, Placed),
) -> Result<Claimed, StoreError> {
    let Placement { plan, offer, message, .. } = placement;
    let token = ids::secret();
    let resume_id = checkpoint::newest(tx, job.job_id).await?.map(|checkpoint| checkpoint.checkpoint_id);
    let memory = plan.predicted_peak.max(Bytes(1));
    let resources = Resources { offer: offer.name.clone(), memory, threads: plan.threads };
    let node = NewNode {
        provider: offer.provider.clone(),
        offer: offer.name,
        memory,
        micro_usd_per_hour: offer.micro_usd_per_hour,
    };
    let new = NewRun {
        job_id: job.job_id,
        node,
        plan,
        resume_id,
        token_hash: ids::hash(&token),
        heartbeat_seconds: app.leases.heartbeat_seconds,
        message,
    };
    let run = run::create(tx, &new).await?;
    placement::record(tx, run.run_id, &record).await?;
    let launch = Launch { program: Program::Trainer, name: run.run_id.to_string(), token: token.into(), resources };
    Ok(Claimed { run, provider: offer.provider, launch })
}

/// Launches the trainer of a committed run. If it cannot be started, the run is lost immediately.
async fn launch(app: &App, claimed: Claimed) -> Result<Started, SchedulerError> {
    let Claimed { run, provider, launch } = claimed;
    match app.providers.launch(&provider, launch).await {
        Ok(handle) => {
            node::launched(&mut *app.single().await?, run.node_id, &handle).await?;
            Ok(Started::Done)
        }
        Err(error) => {
            tracing::error!(run.id = %run.run_id, error = chain(&error), "a trainer could not be launched");
            let reason = format!("The trainer could not be launched: {}", chain(&error));
            let blame = match error.is_passing() {
                true => Blame::Circumstances,
                false => Blame::Job { max_attempts: app.leases.max_attempts },
            };
            let mut tx = app.begin().await?;
            loss::lost(&mut tx, run.run_id, &Loss::new(reason, blame)).await?;
            tx.commit().await?;
            Ok(Started::Failed)
        }
    }
}
