//! The charges of deployments, and their notifications.

use attune_store::pools::{deployment_use, pool_load};

use crate::{app::App, error::SchedulerError};

/// Charges the replicas of deployments, suspends those whose project has spent its budget, and notifies the projects of
/// idle ones.
///
/// # Errors
/// [`SchedulerError`]: the next attempt charges the time since the last one.
pub(super) async fn charge(app: &App) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    deployment_use::charge(&mut tx, None).await?;
    tx.commit().await?;
    // Another transaction: requests wait for the locks of a charge, and an error below must not undo it.
    let mut tx = app.begin().await?;
    deployment_use::suspend_unaffordable(&mut tx).await?;
    deployment_use::notify_idle(&mut tx).await?;
    pool_load::forget_old(&mut tx).await?;
    Ok(tx.commit().await?)
}
