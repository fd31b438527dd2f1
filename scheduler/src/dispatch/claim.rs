//! The claims of the jobs that the plan of the queue starts: all in one transaction, each behind a savepoint, so that
//! one that fails leaves the others.

use attune_domain::{bytes::Bytes, id::JobId, job::JobState, memory::with_margin, offer::Offer, run::Plan};
use attune_process::{error_chain::chain, failpoint::FailPoint, telemetry};
use attune_store::{
    error::StoreError,
    ids,
    jobs::{
        candidate::Candidate,
        job,
        job_event::{self, Level},
        job_pause, snapshot,
    },
    runs::{
        node::NewNode,
        placement::{self, Placed},
        run::{self, NewRun, Run},
    },
    tenancy::money,
};
use serde_json::json;
use sqlx::PgConnection;
use tracing::{Instrument, Span};

use super::{
    decision::{Decision, Placement, decide_on},
    placed::{Choice, Expected, placed},
    started::Started,
    work::{Work, load_all},
};
use crate::{
    app::App,
    error::SchedulerError,
    providers::{
        market::Market,
        provider::{Launch, Program, Resources},
    },
};

/// The `code` of the event that warns of another plan.
const PLAN_CHANGED: &str = "plan_changed";

/// A claimed run, and the launch of its trainer once the transaction is committed.
pub(super) struct Claimed {
    pub(super) run: Run,
    /// The name of the provider to launch at.
    pub(super) provider: String,
    pub(super) launch: Launch,
    /// The span of the start.
    pub(super) span: Span,
}

/// A new run, with the record of its placement.
struct New {
    run: Run,
    provider: String,
    launch: Launch,
    record: Placed,
}

/// The result of a claim.
enum Claim {
    /// A run.
    Run(Box<New>),
    /// No run.
    Without(Started),
}

/// The offers at a claim.
struct Offers<'a> {
    market: &'a Market,
    /// All offers, with what is reserved of them, also in this transaction.
    all: &'a [Offer],
    /// The one that the plan of the queue chose.
    chosen: &'a Offer,
}

/// Claims jobs, each on its offer. Returns the runs to launch, and the results of the jobs without one.
pub(super) async fn all(
    app: &App,
    market: &Market,
    starts: &[(JobId, &Offer)],
) -> Result<(Vec<Claimed>, Vec<Started>), SchedulerError> {
    let mut tx = app.begin().await?;
    let ids: Vec<JobId> = starts.iter().map(|(id, _)| *id).collect();
    let mut works = load_all(&mut tx, &ids).await?;
    let mut offers = market.offers(&mut tx).await?;
    let (mut claimed, mut records, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for &(id, chosen) in starts {
        // Without an entry, the job was deleted.
        let Some(work) = works.remove(&id) else { continue };
        let span = span(id, chosen, work.as_ref().ok().map(|work| &work.job));
        tx.savepoint().await?;
        let at = Offers { market, all: &offers, chosen };
        let claim = match work {
            Ok(work) => Box::pin(one(app, &mut tx, &work, &at)).instrument(span.clone()).await,
            Err(error) => Err(error),
        };
        let result = match claim {
            Ok(Claim::Run(new)) => {
                let New { run, provider, launch, record } = *new;
                reserve(&mut offers, &provider, &launch.resources);
                records.push((run.run_id, record));
                claimed.push(Claimed { run, provider, launch, span });
                continue;
            }
            Ok(Claim::Without(result)) => result,
            // It does not wait any more, such as after a cancel.
            Err(StoreError::Illegal(_)) => {
                tx.rollback_to_savepoint().await?;
                Started::Done
            }
            Err(error) => {
                tracing::error!(parent: &span, error = chain(&error), "a job could not be claimed; it waits");
                tx.rollback_to_savepoint().await?;
                Started::Broken
            }
        };
        results.push(result);
        if result == Started::Skipped {
            break;
        }
    }
    placement::record(&mut tx, &records).await?;
    tx.commit_at_all(&changes(&claimed, &results)).await?;
    Ok((claimed, results))
}

/// Returns the fail points of what the transaction changed.
fn changes(claimed: &[Claimed], results: &[Started]) -> Vec<FailPoint> {
    let changed = [
        (!claimed.is_empty(), FailPoint::DispatchClaim),
        (results.contains(&Started::Paused), FailPoint::DispatchPause),
        (results.contains(&Started::Skipped), FailPoint::DispatchSkip),
    ];
    changed.into_iter().filter(|(is_changed, _)| *is_changed).map(|(_, point)| point).collect()
}

/// Creates the span of a start, in the trace of the job.
fn span(id: JobId, chosen: &Offer, job: Option<&Candidate>) -> Span {
    let span = tracing::info_span!("start", job.id = %id, offer = %chosen.name);
    if let Some(parent) = job.and_then(|job| job.traceparent) {
        telemetry::continue_trace(&span, &parent.to_string());
    }
    span
}

/// Subtracts a new run from its offer.
fn reserve(offers: &mut [Offer], provider: &str, resources: &Resources) {
    let is_taken = |offer: &&mut Offer| (offer.provider.as_str(), &offer.name) == (provider, &resources.offer);
    if let Some(offer) = offers.iter_mut().find(is_taken) {
        offer.reserved = offer.reserved + resources.memory;
        offer.free_slots = offer.free_slots.saturating_sub(1);
    }
}

async fn one(app: &App, tx: &mut PgConnection, work: &Work, offers: &Offers<'_>) -> Result<Claim, StoreError> {
    let Offers { market, all, chosen } = *offers;
    let id = work.job.job_id;
    if work.job.state != JobState::Queued {
        return Ok(Claim::Without(Started::Done));
    }
    if work.job.has_cost_limit && pause_without_money(tx, id).await? {
        return Ok(Claim::Without(Started::Paused));
    }
    let ranking = work.ranking(all);
    let admitted = work.admitted(all, &ranking);
    let Decision::Place(placement) = decide_on(work.workload(), work.job.kept.as_ref(), &admitted, chosen) else {
        tracing::debug!("the offer has no room for the job any more");
        snapshot::forget_measures(tx, id).await?;
        return Ok(Claim::Without(Started::Skipped));
    };
    if placement.changed.is_some() && !market.is_complete() {
        tracing::debug!("the provider that has room for the job's plan may be one that does not answer");
        return Ok(Claim::Without(Started::Done));
    }
    if let Some(warning) = &placement.changed {
        warn_of_change(tx, id, warning, (work.job.kept.as_ref(), &placement.plan)).await?;
    }
    let choice = Choice { offers: all, ranking: &ranking, expected: Expected::of(work) };
    let need = work.need(&work.allowed(all));
    let record = placed(need, placement.estimate.clone(), &placement.offer, &choice);
    let (run, launch) = create(app, tx, &work.job, &placement).await?;
    Ok(Claim::Run(Box::new(New { run, provider: placement.offer.provider, launch, record })))
}

/// Pauses a job whose money is spent. Returns whether it did.
async fn pause_without_money(tx: &mut PgConnection, id: JobId) -> Result<bool, StoreError> {
    let job = job::load(tx, id).await?;
    let Some((reason, why)) = money::exhausted(tx, &job).await? else { return Ok(false) };
    job_pause::pause_for(tx, &job, reason, &why).await?;
    Ok(true)
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

/// Creates the run of a job, and the launch of its trainer.
async fn create(
    app: &App,
    tx: &mut PgConnection,
    job: &Candidate,
    placement: &Placement,
) -> Result<(Run, Launch), StoreError> {
    let Placement { plan, offer, message, .. } = placement;
    let token = ids::secret();
    let memory = offer.needed(with_margin(plan.predicted_peak)).max(Bytes(1));
    let resources = Resources { offer: offer.name.clone(), memory, threads: plan.threads };
    let node = NewNode {
        provider: offer.provider.clone(),
        offer: offer.name.clone(),
        memory,
        micro_usd_per_hour: offer.micro_usd_per_hour,
    };
    let new = NewRun {
        job_id: job.job_id,
        node,
        plan: plan.clone(),
        resume_id: job.resume_id,
        token_hash: ids::hash(&token),
        heartbeat_seconds: app.leases.heartbeat_seconds,
        message: message.clone(),
    };
    let run = run::create(tx, &new).await?;
    let launch = Launch { program: Program::Trainer, name: run.run_id.to_string(), token: token.into(), resources };
    Ok((run, launch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_run_is_subtracted_from_the_offer_of_its_provider() {
        let offer = |provider: &str| Offer {
            reserved: Bytes::mib(10),
            free_slots: 2,
            ..Offer::cpu(provider, "this machine", Bytes::mib(100), 2)
        };
        let mut offers = [offer("near"), offer("far")];
        let resources = Resources { offer: "this machine".into(), memory: Bytes::mib(60), threads: 2 };
        reserve(&mut offers, "far", &resources);
        let left = offers.map(|offer| (offer.free(), offer.free_slots));
        assert_eq!(left, [(Bytes::mib(90), 2), (Bytes::mib(30), 1)]);
    }

    #[test]
    fn the_fail_points_are_those_of_what_changed() {
        assert_eq!(changes(&[], &[Started::Done, Started::Broken]), []);
        let both = changes(&[], &[Started::Paused, Started::Skipped]);
        assert_eq!(both, [FailPoint::DispatchPause, FailPoint::DispatchSkip]);
    }
}
