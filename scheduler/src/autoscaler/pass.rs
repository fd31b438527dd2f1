//! The loop of the autoscaler, and one pass of it.

use std::time::{Duration, Instant};

use attune_process::error_chain::chain;
use attune_store::pools::pool_state;
use tokio_util::sync::CancellationToken;

use super::{charge, resize, samples::Autoscaler};
use crate::{app::App, error::SchedulerError};

/// The interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// The interval between two charges.
const CHARGE_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until `stop`.
pub(crate) async fn run(app: App, stop: CancellationToken) {
    let began = Instant::now();
    let mut autoscaler = Autoscaler::default();
    let mut charged: Option<Instant> = None;
    loop {
        if let Err(error) = pass(&app, &mut autoscaler, began.elapsed()).await {
            tracing::warn!(error = chain(&error), "a pass of the autoscaler failed; retrying in the next one");
        }
        if charged.is_none_or(|at| at.elapsed() >= CHARGE_INTERVAL) {
            charged = Some(Instant::now());
            if let Err(error) = charge::charge(&app).await {
                tracing::warn!(error = chain(&error), "deployments could not be charged; retrying later");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SAMPLE_INTERVAL) => {}
        }
    }
}

/// Samples all pools `at` a time since the autoscaler began, and changes those whose number of replicas is not the
/// wanted one. A pool that cannot be changed keeps no other one from it.
///
/// # Errors
/// The first [`SchedulerError`]: the next pass tries again.
pub(crate) async fn pass(app: &App, autoscaler: &mut Autoscaler, at: Duration) -> Result<(), SchedulerError> {
    let pools = pool_state::all(&mut *app.single().await?, app.serving.pool_defaults()).await?;
    autoscaler.forget_all_but(&pools);
    let mut all = Ok(());
    for pool in &pools {
        let decision = autoscaler.decide(pool, at);
        let resized = resize::resize(app, pool, decision).await;
        all = all.and(resized).and(resize::replace_outdated(app, pool).await);
    }
    all
}
