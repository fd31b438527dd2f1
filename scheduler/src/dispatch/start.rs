//! The start of jobs on the offers that the plan of the queue chose: nodes, runs and leases of all of them in one
//! transaction, then their launches, then the handles of all of them in one transaction. Each commit waits for the
//! disk, so the number of commits, not of jobs, limits the rate.

use attune_domain::{id::JobId, offer::Offer};
use attune_process::metrics::JOB_STARTS;

use super::{claim, launch, started::Started};
use crate::{app::App, error::SchedulerError, providers::market::Market};

/// Starts waiting jobs, each on its offer. After one that is skipped, the others are not attempted.
pub(super) async fn start(
    app: &App,
    market: &Market,
    starts: &[(JobId, &Offer)],
) -> Result<Vec<Started>, SchedulerError> {
    let (claimed, mut results) = Box::pin(claim::all(app, market, starts)).await?;
    results.extend(Box::pin(launch::all(app, claimed)).await?);
    for result in &results {
        JOB_STARTS.inc([result.name()]);
    }
    Ok(results)
}
