//! Finds the replica that answers for a base model, has one started if there is none, and waits for it.

use attune_domain::id::ReplicaId;
use attune_store::{
    error::StoreError,
    replica::{self, Replica, ReplicaState},
};
use futures::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    app::App,
    error::ApiError,
    inference::{
        replica_waiters::{POLL_INTERVAL, is_starting},
        resolve::AskedModel,
    },
};

/// What a caller that was told to ask again is told to wait.
const RETRY_AFTER_SECONDS: u64 = 10;

/// A replica that listens, and its `host:port`.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where it listens.
    pub address: String,
    /// The bearer that it takes.
    pub token: String,
}

/// The replica of the model's base in its quantization, once it is ready.
///
/// # Errors
/// [`ApiError::ReplicaUnavailable`]: it ended with an error, or is not there at `deadline`.
pub async fn ready(app: &App, model: &AskedModel, deadline: Instant) -> Result<Ready, ApiError> {
    let late = || {
        let waited = app.serving.wait_seconds;
        unavailable(format!("The model was not ready to answer within {waited} s; it is still being started."))
    };
    loop {
        let mut replica = ensure(app, model).await?;
        if let Some(waiting) = replica.clone().filter(|replica| is_starting(Some(replica))) {
            let mut seen = app.waiters.watch(waiting.clone(), looks(app.clone(), waiting.replica_id));
            let settled = timeout_at(deadline, seen.wait_for(|replica| !is_starting(replica.as_ref()))).await;
            // An error means that the one who looks is gone; the replica is looked for again then.
            replica = settled.map_err(|_| late())?.ok().and_then(|replica| replica.clone());
        }
        match replica {
            Some(Replica { state: ReplicaState::Ready, address: Some(address), token, .. }) => {
                return Ok(Ready { address, token });
            }
            Some(Replica { state: ReplicaState::Ended, error: Some(reason), .. }) => {
                return Err(unavailable(format!("The model could not be served: {reason}.")));
            }
            _ => {} // it was idle and left: another is wanted
        }
        if Instant::now() >= deadline {
            return Err(late());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Looks at a replica; `None`: there is no such one any more.
fn looks(app: App, id: ReplicaId) -> impl Fn() -> BoxFuture<'static, Result<Option<Replica>, ApiError>> + Send {
    move || {
        let app = app.clone();
        async move { there(replica::get(&mut *app.platform().await?, id).await) }.boxed()
    }
}

/// The living replica of the model's base in its quantization, or the one that is wanted now; `None`: it ended just now.
async fn ensure(app: &App, model: &AskedModel) -> Result<Option<Replica>, ApiError> {
    let (app, base, project) = (app.clone(), model.base, model.project_id);
    // A task of its own: the prompts of one completion are asked side by side, and a task holds one connection at a time.
    let ensuring = tokio::spawn(async move {
        let mut tx = app.platform().await?;
        let replica = replica::ensure_for(&mut tx, base, Some(project)).await;
        tx.commit().await?;
        there(replica)
    });
    ensuring.await.map_err(ApiError::internal)?
}

fn there(found: Result<Replica, StoreError>) -> Result<Option<Replica>, ApiError> {
    match found {
        Ok(replica) => Ok(Some(replica)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Nobody answers for the model now.
pub fn unavailable(message: String) -> ApiError {
    ApiError::ReplicaUnavailable { message, retry_after_seconds: RETRY_AFTER_SECONDS }
}
