//! Requests that wait for the same replica, with one query of the database at a time for all of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use attune_domain::id::ReplicaId;
use attune_store::replica::{Replica, ReplicaState};
use tokio::{sync::watch, time::sleep};

use crate::error::InferenceError;

/// The interval between two queries for a replica that is not ready yet.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The requests that wait for replicas: one query of the database serves all that wait for the same replica.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Mutex<HashMap<ReplicaId, watch::Receiver<Option<Replica>>>>>);

impl Waiters {
    /// Watches a replica that is not ready yet: `look` fetches it repeatedly until it is ready or gone.
    pub(crate) fn watch<F, Seen>(&self, replica: Replica, look: F) -> watch::Receiver<Option<Replica>>
    where
        F: Fn() -> Seen + Send + 'static,
        Seen: Future<Output = Result<Option<Replica>, InferenceError>> + Send,
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
                sleep(POLL_INTERVAL).await;
                match look().await {
                    Ok(replica) => drop(tell.send_replace(replica)),
                    Err(error) => error.log(), // the waiting requests have a deadline
                }
                let mut waiters = all.lock();
                // The last receiver is the one in the map.
                if tell.receiver_count() == 1 || !is_starting(tell.borrow().as_ref()) {
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

/// Returns whether a replica is being started.
pub(crate) fn is_starting(replica: Option<&Replica>) -> bool {
    replica.is_some_and(|replica| matches!(replica.state, ReplicaState::Wanted | ReplicaState::Launching))
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

    /// The database is queried once in a tenth of a second, however many requests wait, and no more once none waits.
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
                tokio::spawn(async move { seen.wait_for(|replica| !is_starting(replica.as_ref())).await.is_ok() })
            })
            .collect();
        for one in waiting {
            assert!(one.await.unwrap());
        }
        assert_eq!(looks.load(Ordering::SeqCst), 5);
        assert!(waiters.lock().is_empty());
        drop(waiters.watch(replica(ReplicaState::Wanted), look(1000)));
        sleep(POLL_INTERVAL * 10).await;
        assert_eq!((looks.load(Ordering::SeqCst), waiters.lock().len()), (6, 0));
    }
}
