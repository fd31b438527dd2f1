//! The launches of claimed runs: several at the same time, and their handles in one transaction.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use attune_domain::id::{NodeId, RunId};
use attune_process::{error_chain::chain, failpoint::FailPoint};
use attune_store::{
    jobs::loss::{self, Blame, Loss},
    runs::{node, run},
};
use futures::stream::{self, StreamExt};
use tracing::{Instrument, Span};

use super::{claim::Claimed, started::Started};
use crate::{
    app::App,
    error::{Late, ProviderError, SchedulerError},
    gauges,
};

/// The maximum number of launches at the same time: a cluster's controller is called this often at once.
const LAUNCHES_AT_ONCE: usize = 8;

/// The providers that did not answer to a launch in time, by their names.
type LateProviders = Mutex<HashMap<String, Late>>;

/// A launch that has returned.
struct Launched {
    run: RunId,
    node: NodeId,
    span: Span,
    handle: Result<String, ProviderError>,
}

/// Launches the trainers of committed runs. A run whose trainer cannot be started is lost immediately.
pub(super) async fn all(app: &App, claimed: Vec<Claimed>) -> Result<Vec<Started>, SchedulerError> {
    let late = LateProviders::default();
    let launches: Vec<_> = claimed.into_iter().map(|claimed| one(app, claimed, &late)).collect();
    let launched: Vec<Launched> = stream::iter(launches).buffer_unordered(LAUNCHES_AT_ONCE).collect().await;
    let (mut runs, mut handles, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for Launched { run, node, span, handle } in launched {
        match handle {
            Ok(handle) => {
                runs.push(run);
                handles.push((node, handle));
            }
            Err(error) => failures.push((run, span, error)),
        }
    }
    let mut results = vec![Started::Done; runs.len()];
    if !runs.is_empty() {
        let mut tx = app.begin().await?;
        run::begin_leases(&mut tx, &runs).await?;
        node::launched(&mut tx, &handles).await?;
        tx.commit_at(FailPoint::DispatchLaunched).await?;
    }
    for (run, span, error) in failures {
        lose(app, run, &error).instrument(span).await?;
        results.push(Started::Failed);
    }
    Ok(results)
}

async fn one(app: &App, claimed: Claimed, late: &LateProviders) -> Launched {
    let Claimed { run, provider, launch, span } = claimed;
    let earlier = late.lock().unwrap_or_else(PoisonError::into_inner).get(&provider).copied();
    let handle = match earlier {
        // Its other launches would also wait for the whole time limit, under the placement lock.
        Some(late) => {
            let action = format!("starting {}", launch.program.name());
            Err(ProviderError { action, cause: Box::new(late) })
        }
        None => app.providers.launch(&provider, launch).instrument(span.clone()).await,
    };
    if let Some(now) = handle.as_ref().err().and_then(ProviderError::late) {
        late.lock().unwrap_or_else(PoisonError::into_inner).insert(provider, now);
    }
    Launched { run: run.run_id, node: run.node_id, span, handle }
}

/// Ends a run whose trainer could not be started.
async fn lose(app: &App, run: RunId, error: &ProviderError) -> Result<(), SchedulerError> {
    tracing::error!(run.id = %run, error = chain(error), "a trainer could not be launched");
    let reason = format!("The trainer could not be launched: {}", chain(error));
    let blame = match error.is_passing() {
        true => Blame::Circumstances,
        false => Blame::Job { max_attempts: app.leases.max_attempts },
    };
    let mut tx = app.begin().await?;
    let state = loss::lost(&mut tx, run, &Loss::new(reason, blame)).await?;
    tx.commit_at(FailPoint::DispatchLaunchFailed).await?;
    gauges::lost(blame, state);
    Ok(())
}
