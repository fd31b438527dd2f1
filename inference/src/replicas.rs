//! The replica that answers a request: the pool's ready replicas are looked up, one is chosen, or started and awaited.

use attune_domain::id::ReplicaId;
use attune_store::{
    error::StoreError,
    replica::{self, Replica, ReplicaState, ServedBase},
};
use futures::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    context::Inference,
    error::InferenceError,
    pool::{balancer::Chosen, changes::POLL_INTERVAL},
    replica_waiters::is_starting,
    resolve::AskedModel,
};

/// The `Retry-After` while a model is unavailable, in seconds.
const RETRY_AFTER_SECONDS: u64 = 10;

/// Returns a replica of the model's base in its quantization, once one is ready.
///
/// # Errors
/// [`InferenceError::NotReady`]: none is ready at `deadline`. [`InferenceError::ReplicaUnavailable`]: the replica ended
/// with an error.
pub(crate) async fn ready(
    inference: &Inference,
    model: &AskedModel,
    deadline: Instant,
) -> Result<Chosen, InferenceError> {
    let late = || {
        let waited = inference.serving.wait_seconds;
        let message = format!("The model was not ready within {waited} s and is still starting. Retry later.");
        InferenceError::NotReady { message, retry_after_seconds: RETRY_AFTER_SECONDS }
    };
    let adapter = model.adapter.as_ref().map(|adapter| adapter.id);
    loop {
        let mut pool = ensure(inference, model).await?;
        if let (true, Some(newest)) = (is_starting(&pool), pool.last().map(|replica| replica.replica_id)) {
            let look = looks(inference.clone(), model.base, newest);
            let mut seen = inference.waiters.watch(model.base, pool, &inference.changes, look);
            let settled = timeout_at(deadline, seen.wait_for(|pool| !is_starting(pool))).await;
            // An error means that the watching task has ended; the pool is looked up again then.
            pool = settled.map_err(|_| late())?.map(|pool| pool.clone()).unwrap_or_default();
        }
        if let Some(chosen) = inference.balancer.choose(&pool, adapter) {
            return Ok(chosen);
        }
        if let Some(reason) = pool.iter().rev().find_map(|replica| replica.error.as_ref()) {
            return Err(unavailable(format!("The model could not be served: {reason}.")));
        }
        // The replicas ended because they were idle; another is requested.
        if Instant::now() >= deadline {
            return Err(late());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Returns a ready replica of the model's pool, except those in `busy`, which have refused the request; `None`: no
/// other is ready.
///
/// # Errors
/// [`InferenceError`]: the pool cannot be looked up.
pub(crate) async fn another(
    inference: &Inference,
    model: &AskedModel,
    busy: &[ReplicaId],
) -> Result<Option<Chosen>, InferenceError> {
    let mut pool = ensure(inference, model).await?;
    pool.retain(|replica| !busy.contains(&replica.replica_id));
    let adapter = model.adapter.as_ref().map(|adapter| adapter.id);
    Ok(inference.balancer.choose(&pool, adapter))
}

/// Returns a function that fetches a pool, as [`look`].
fn looks(
    inference: Inference,
    base: ServedBase,
    newest: ReplicaId,
) -> impl Fn() -> BoxFuture<'static, Result<Vec<Replica>, InferenceError>> + Send {
    move || look(inference.clone(), base, newest).boxed()
}

/// Fetches a pool; if it has no live replica, the replica `newest` with its error, if that has ended.
async fn look(inference: Inference, base: ServedBase, newest: ReplicaId) -> Result<Vec<Replica>, InferenceError> {
    let mut tx = inference.platform().await?;
    let pool = replica::of_pool(&mut tx, base).await?;
    if !pool.is_empty() {
        return Ok(pool);
    }
    let ended = there(replica::get(&mut tx, newest).await)?;
    Ok(ended.into_iter().filter(|replica| replica.state == ReplicaState::Ended).collect())
}

/// Returns the live replicas of the model's base in its quantization, or the one that this requests; none if it has
/// just ended.
async fn ensure(inference: &Inference, model: &AskedModel) -> Result<Vec<Replica>, InferenceError> {
    let (inference, base, project) = (inference.clone(), model.base, model.project_id);
    // A separate task: the prompts of one completion run concurrently, and a task holds one connection at a time.
    let ensuring = tokio::spawn(async move {
        let mut tx = inference.platform().await?;
        let pool = replica::ensure_for(&mut tx, base, Some(project)).await;
        tx.commit().await?;
        if matches!(pool, Err(StoreError::NotFound("deployment"))) {
            let message = "The model's deployment was deleted or suspended. Send the request again.";
            return Err(unavailable(message.into()));
        }
        Ok::<_, InferenceError>(there(pool)?.unwrap_or_default())
    });
    ensuring.await.map_err(InferenceError::internal)?
}

fn there<T>(found: Result<T, StoreError>) -> Result<Option<T>, InferenceError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the error for a model that no replica serves now.
pub(crate) fn unavailable(message: String) -> InferenceError {
    InferenceError::ReplicaUnavailable { message, retry_after_seconds: RETRY_AFTER_SECONDS }
}
