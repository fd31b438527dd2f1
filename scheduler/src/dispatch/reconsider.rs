//! Another decision about a waiting job that no offer can hold.

use attune_domain::{id::JobId, job::JobEvent};
use attune_process::failpoint::FailPoint;
use attune_store::{
    error::StoreError,
    jobs::{
        job::{self, Step},
        snapshot,
    },
};

use super::{
    decision::{Decision, decide, no_larger, no_offer},
    work,
};
use crate::{app::App, error::SchedulerError, providers::market::Market};

/// Decides again about the job: it fails, unless another plan than the one that it began with fits; then it is measured
/// again.
#[tracing::instrument(skip(app, market), fields(job.id = %id))]
pub(super) async fn reconsider(app: &App, id: JobId, market: &Market) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    let work = work::load(&mut tx, id).await?;
    let offers = market.offers(&mut tx).await?;
    let ranking = work.ranking(&offers);
    let admitted = work.admitted(&offers, &ranking);
    let stepped = match decide(work.workload(), work.job.kept.as_ref(), &admitted) {
        Decision::Refuse(error) => {
            let larger = work.job.above.filter(|_| admitted.is_empty()).map(|above| no_larger(above, &offers));
            let need = work.need(&work.allowed(&offers));
            let error = no_offer(need, &offers, &ranking).or(larger).unwrap_or(error);
            let step = Step::failure(JobEvent::RunFailed, error);
            job::step(&mut tx, id, &step).await.map(drop)
        }
        Decision::Place(_) | Decision::Wait => snapshot::forget_measures(&mut tx, id).await,
    };
    match stepped {
        Ok(()) => Ok(tx.commit_at(FailPoint::DispatchReconsider).await?),
        // It does not wait any more.
        Err(StoreError::Illegal(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
