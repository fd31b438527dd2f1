//! Finds the replica that answers for a base model, has one started if there is none, and waits for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use attune_domain::id::ReplicaId;
use attune_store::{
    error::StoreError,
    replica::{self, Replica, ReplicaState},
};
use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

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

/// Those who wait for replicas: one look at the database serves all who wait for the same one.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Mutex<HashMap<ReplicaId, watch::Receiver<Option<Replica>>>>>);

impl Waiters {
    /// What becomes of a replica that is not ready yet, seen again and again by `look` until it is ready or gone.
    fn watch<F, Seen>(&self, replica: Replica, look: F) -> watch::Receiver<Option<Replica>>
    where
        F: Fn() -> Seen + Send + 'static,
        Seen: Future<Output = Result<Option<Replica>, ApiError>> + Send,
    {
        let id = replica.replica_id;
        let mut waiters = self.lock();
        if let Some(known) = waiters.get(&id) {
            return known.clone();
        }
        let (tell, seen) = watch::channel(Some(replica));
        waiters.insert(id, seen.clone());
        let all = self.clone();
        tokio::spawn(async move {
            loop {
                sleep(LOOK_AGAIN).await;
                match look().await {
                    Ok(replica) => drop(tell.send_replace(replica)),
                    Err(error) => error.log(), // those who wait have a deadline
                }
                let mut waiters = all.lock();
                // The last receiver is the one that is kept here.
                if tell.receiver_count() == 1 || !is_awaited(tell.borrow().as_ref()) {
                    waiters.remove(&id);
                    return;
                }
            }
        });
        seen
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ReplicaId, watch::Receiver<Option<Replica>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a replica is on its way.
fn is_awaited(replica: Option<&Replica>) -> bool {
    replica.is_some_and(|replica| matches!(replica.state, ReplicaState::Wanted | ReplicaState::Launching))
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
        if let Some(waiting) = replica.clone().filter(|replica| is_awaited(Some(replica))) {
            let mut seen = app.waiters.watch(waiting.clone(), looks(app.clone(), waiting.replica_id));
            let settled = timeout_at(deadline, seen.wait_for(|replica| !is_awaited(replica.as_ref()))).await;
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
        sleep(LOOK_AGAIN).await;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use attune_domain::id::BaseModelId;
    use attune_store::replica::ServedBase;
    use uuid::Uuid;

    use super::*;

    fn replica(state: ReplicaState) -> Replica {
        Replica {
            replica_id: ReplicaId::new(Uuid::from_u128(1)),
            base: ServedBase::as_imported(BaseModelId::new(Uuid::from_u128(2))),
            node_id: None,
            state,
            address: None,
            token: String::new(),
            error: None,
            silent_seconds: 0.0,
            idle_seconds: 0.0,
            handle: None,
        }
    }

    /// However many wait, the database is asked once in a tenth of a second, and no more once nobody waits.
    #[tokio::test]
    async fn all_who_wait_for_a_replica_share_one_look_at_the_database() {
        let (waiters, looks) = (Waiters::default(), Arc::new(AtomicUsize::new(0)));
        let look = |ready_at: usize| {
            let looks = looks.clone();
            move || {
                let count = looks.fetch_add(1, Ordering::SeqCst) + 1;
                let state = if count >= ready_at { ReplicaState::Ready } else { ReplicaState::Launching };
                std::future::ready(Ok(Some(replica(state))))
            }
        };
        let waiting: Vec<_> = (0..200)
            .map(|_| {
                let mut seen = waiters.watch(replica(ReplicaState::Wanted), look(5));
                tokio::spawn(async move { seen.wait_for(|replica| !is_awaited(replica.as_ref())).await.is_ok() })
            })
            .collect();
        for one in waiting {
            assert!(one.await.unwrap());
        }
        assert_eq!(looks.load(Ordering::SeqCst), 5);
        assert!(waiters.lock().is_empty());
        drop(waiters.watch(replica(ReplicaState::Wanted), look(1000)));
        sleep(LOOK_AGAIN * 10).await;
        assert_eq!((looks.load(Ordering::SeqCst), waiters.lock().len()), (6, 0));
    }
}
