//! Requests that wait for replicas of the same pool. The database's notifications wake one query for all of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attune_store::replica::{Replica, ReplicaState, ServedBase};
use tokio::sync::watch;

use crate::{error::InferenceError, pool::changes::ReplicaChanges};

/// The replicas of a pool.
type Pool = Vec<Replica>;

/// The requests that wait for replicas: one query of the database serves all that wait for the same pool.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Mutex<HashMap<ServedBase, watch::Receiver<Pool>>>>);

impl Waiters {
    /// Watches a pool that has no ready replica yet: `look` fetches it at each change until it has one, or none starts
    /// any more.
    pub(crate) fn watch<F, Seen>(
        &self,
        base: ServedBase,
        pool: Pool,
        changes: &ReplicaChanges,
        look: F,
    ) -> watch::Receiver<Pool>
    where
        F: Fn() -> Seen + Send + 'static,
        Seen: Future<Output = Result<Pool, InferenceError>> + Send,
    {
        let mut waiters = self.lock();
        if let Some(known) = waiters.get(&base) {
            return known.clone();
        }
        let (tell, seen) = watch::channel(pool);
        waiters.insert(base, seen.clone());
        let (all, changes) = (self.clone(), changes.clone());
        let mut changed = changes.subscribe();
        tokio::spawn(async move {
            loop {
                match look().await {
                    Ok(pool) => drop(tell.send_replace(pool)),
                    Err(error) => error.log(), // the waiting requests have a deadline
                }
                let is_over = {
                    let mut waiters = all.lock();
                    // The last receiver is the one in the map.
                    let is_over = tell.receiver_count() == 1 || !is_starting(&tell.borrow());
                    if is_over {
                        waiters.remove(&base);
                    }
                    is_over
                };
                if is_over {
                    return;
                }
                changes.wait(&mut changed).await;
            }
        });
        seen
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServedBase, watch::Receiver<Pool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a replica is being started, and none is ready.
pub(crate) fn is_starting(pool: &[Replica]) -> bool {
    let has = |states: &[ReplicaState]| pool.iter().any(|replica| states.contains(&replica.state));
    has(&[ReplicaState::Wanted, ReplicaState::Launching]) && !has(&[ReplicaState::Ready])
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use attune_domain::{
        id::{BaseModelId, ReplicaId},
        offer::ReplicaKind,
    };
    use tokio::time::sleep;
    use uuid::Uuid;

    use super::*;
    use crate::pool::changes::POLL_INTERVAL;

    fn base() -> ServedBase {
        ServedBase::as_imported(BaseModelId::new(Uuid::from_u128(2)))
    }

    fn replica(state: ReplicaState) -> Replica {
        Replica {
            replica_id: ReplicaId::new(Uuid::from_u128(1)),
            base: base(),
            kind: ReplicaKind::default(),
            node_id: None,
            state,
            address: None,
            token: String::new(),
            error: None,
            silent_seconds: 0.0,
            idle_seconds: 0.0,
            draining_seconds: None,
            resident_adapters: vec![],
            handle: None,
        }
    }

    /// The database is queried once for all that wait, however many they are, and no more once none waits.
    #[tokio::test]
    async fn all_who_wait_for_a_replica_share_one_look_at_the_database() {
        let (waiters, looks) = (Waiters::default(), Arc::new(AtomicUsize::new(0)));
        let changes = ReplicaChanges::default();
        let look = |ready_at: usize| {
            let looks = looks.clone();
            move || {
                let count = looks.fetch_add(1, Ordering::SeqCst) + 1;
                let state = if count >= ready_at { ReplicaState::Ready } else { ReplicaState::Launching };
                std::future::ready(Ok(vec![replica(state)]))
            }
        };
        let wanted = || vec![replica(ReplicaState::Wanted)];
        let waiting: Vec<_> = (0..200)
            .map(|_| {
                let mut seen = waiters.watch(base(), wanted(), &changes, look(5));
                tokio::spawn(async move { seen.wait_for(|pool| !is_starting(pool)).await.is_ok() })
            })
            .collect();
        for one in waiting {
            assert!(one.await.unwrap());
        }
        assert_eq!(looks.load(Ordering::SeqCst), 5);
        assert!(waiters.lock().is_empty());
        drop(waiters.watch(base(), wanted(), &changes, look(1000)));
        sleep(POLL_INTERVAL * 10).await;
        assert_eq!((looks.load(Ordering::SeqCst), waiters.lock().len()), (6, 0));
    }

    #[test]
    fn a_pool_starts_until_one_replica_is_ready() {
        let pool = |states: &[ReplicaState]| states.iter().copied().map(replica).collect::<Vec<_>>();
        assert!(is_starting(&pool(&[ReplicaState::Ended, ReplicaState::Launching])));
        assert!(!is_starting(&pool(&[ReplicaState::Launching, ReplicaState::Ready])));
        assert!(!is_starting(&pool(&[ReplicaState::Ended])));
        assert!(!is_starting(&[]));
    }
}
