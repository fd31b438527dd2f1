//! The replica that serves a base model: it is looked up, started if it does not exist, and awaited.

use attune_domain::id::ReplicaId;
use attune_store::{
    error::StoreError,
    replica::{self, Replica, ReplicaState},
};
use futures::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    context::Inference,
    error::InferenceError,
    replica_waiters::{POLL_INTERVAL, is_starting},
    resolve::AskedModel,
};

/// The `Retry-After` while a model is unavailable, in seconds.
const RETRY_AFTER_SECONDS: u64 = 10;

/// A replica that accepts requests.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    /// The address of the replica, as `host:port`.
    pub(crate) address: String,
    /// The bearer token that the replica accepts.
    pub(crate) token: String,
}

/// Returns a replica of the model's base in its quantization, once it is ready.
///
/// # Errors
/// [`InferenceError::ReplicaUnavailable`]: the replica ended with an error, or is not ready at `deadline`.
pub(crate) async fn ready(
    inference: &Inference,
    model: &AskedModel,
    deadline: Instant,
) -> Result<Ready, InferenceError> {
    let late = || {
        let waited = inference.serving.wait_seconds;
        unavailable(format!("The model was not ready within {waited} s and is still starting. Retry later."))
    };
    loop {
        let mut replica = ensure(inference, model).await?;
        if let Some(waiting) = replica.clone().filter(|replica| is_starting(Some(replica))) {
            let mut seen = inference.waiters.watch(waiting.clone(), looks(inference.clone(), waiting.replica_id));
            let settled = timeout_at(deadline, seen.wait_for(|replica| !is_starting(replica.as_ref()))).await;
            // An error means that the polling task has ended; the replica is looked up again then.
            replica = settled.map_err(|_| late())?.ok().and_then(|replica| replica.clone());
        }
        match replica {
            Some(Replica { state: ReplicaState::Ready, address: Some(address), token, .. }) => {
                return Ok(Ready { address, token });
            }
            Some(Replica { state: ReplicaState::Ended, error: Some(reason), .. }) => {
                return Err(unavailable(format!("The model could not be served: {reason}.")));
            }
            _ => {} // it ended because it was idle; another is requested
        }
        if Instant::now() >= deadline {
            return Err(late());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Returns a function that fetches a replica; `None` if the replica no longer exists.
fn looks(
    inference: Inference,
    id: ReplicaId,
) -> impl Fn() -> BoxFuture<'static, Result<Option<Replica>, InferenceError>> + Send {
    move || {
        let inference = inference.clone();
        async move { there(replica::get(&mut *inference.platform().await?, id).await) }.boxed()
    }
}

/// Returns the live replica of the model's base in its quantization, or the one that this requests; `None` if it has
/// just ended.
async fn ensure(inference: &Inference, model: &AskedModel) -> Result<Option<Replica>, InferenceError> {
    let (inference, base, project) = (inference.clone(), model.base, model.project_id);
    // A separate task: the prompts of one completion run concurrently, and a task holds one connection at a time.
    let ensuring = tokio::spawn(async move {
        let mut tx = inference.platform().await?;
        let replica = replica::ensure_for(&mut tx, base, Some(project)).await;
        tx.commit().await?;
        there(replica)
    });
    ensuring.await.map_err(InferenceError::internal)?
}

fn there(found: Result<Replica, StoreError>) -> Result<Option<Replica>, InferenceError> {
    match found {
        Ok(replica) => Ok(Some(replica)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the error for a model that no replica serves now.
pub(crate) fn unavailable(message: String) -> InferenceError {
    InferenceError::ReplicaUnavailable { message, retry_after_seconds: RETRY_AFTER_SECONDS }
}
