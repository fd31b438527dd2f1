//! Finds the replica that answers for a base model, has one started if there is none, and waits for it.

use std::time::Duration;

use attune_store::{
    error::StoreError,
    replica::{self, Replica, ReplicaState},
};
use tokio::time::{Instant, sleep};

use crate::{app::App, asked_model::AskedModel, error::ApiError};

/// Between two looks at a replica that is not ready yet.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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

/// The replica of the model's base, once it is ready.
///
/// # Errors
/// [`ApiError::ReplicaUnavailable`]: it ended with an error, or is not there at `deadline`.
pub async fn ready(app: &App, model: &AskedModel, deadline: Instant) -> Result<Ready, ApiError> {
    let mut wanted = None;
    loop {
        let replica = look(app, model, wanted.take()).await?;
        match replica {
            Some(Replica { state: ReplicaState::Ready, address: Some(address), token, .. }) => {
                return Ok(Ready { address, token });
            }
            Some(Replica { state: ReplicaState::Ended, error: Some(reason), .. }) => {
                return Err(unavailable(format!("The model could not be served: {reason}.")));
            }
            Some(Replica { state: ReplicaState::Ended, .. }) | None => {} // it was idle and left: want another
            Some(waiting) => wanted = Some(waiting),
        }
        if Instant::now() >= deadline {
            let waited = app.serving.wait_seconds;
            return Err(unavailable(format!(
                "The model was not ready to answer within {waited} s; it is still being started."
            )));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The replica that is waited for as it is now, or the one that is to be waited for.
async fn look(app: &App, model: &AskedModel, wanted: Option<Replica>) -> Result<Option<Replica>, ApiError> {
    let found = match wanted {
        Some(replica) => replica::get(&mut *app.platform().await?, replica.replica_id).await,
        None => {
            let mut tx = app.platform().await?;
            let replica = replica::ensure_for(&mut tx, model.base_model_id, Some(model.project_id)).await;
            tx.commit().await?;
            replica
        }
    };
    match found {
        Ok(replica) => Ok(Some(replica)),
        Err(StoreError::NotFound(_)) => Ok(None), // it ended in this moment
        Err(error) => Err(error.into()),
    }
}

/// Nobody answers for the model now.
pub fn unavailable(message: String) -> ApiError {
    ApiError::ReplicaUnavailable { message, retry_after_seconds: RETRY_AFTER_SECONDS }
}
