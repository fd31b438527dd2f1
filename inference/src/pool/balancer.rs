//! The choice among the ready replicas of a pool: those that have the adapter in memory first, then the less loaded of
//! two random ones.
//!
//! Source of the latter: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use attune_domain::{id::ReplicaId, offer::ReplicaKind, serve::AdapterKey};
use attune_store::replica::{Replica, ReplicaState};
use rand::RngExt;

/// The number of requests by which a replica with the adapter may exceed the least loaded replica. With more, another
/// replica loads the adapter too.
const MOST_AHEAD: u64 = 4;

/// The time for which a replica that did not answer is chosen only if no other is ready.
const SUSPECT: Duration = Duration::from_secs(5);

/// The maximum number of adapters whose last replica is remembered.
const MOST_REMEMBERED: usize = 4096;

/// The requests of this process at each replica. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Balancer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    active: HashMap<ReplicaId, u64>,
    failed: HashMap<ReplicaId, Instant>,
    /// The replica that an adapter was last requested from: reports list it only after some seconds.
    last: HashMap<AdapterKey, ReplicaId>,
}

/// A ready replica for one request, which counts as its until this is dropped.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The address of the replica, as `host:port`.
    pub(crate) address: String,
    /// The bearer token that the replica accepts.
    pub(crate) token: String,
    /// The kind of the replica.
    pub(crate) kind: ReplicaKind,
    /// `true`: the replica did not answer an earlier request, and no other is ready.
    pub(crate) is_suspect: bool,
    id: ReplicaId,
    balancer: Balancer,
}

impl Chosen {
    /// Returns the replica's ID.
    pub(crate) const fn id(&self) -> ReplicaId {
        self.id
    }

    /// Records that the replica did not answer.
    pub(crate) fn failed(&self) {
        self.balancer.lock().failed.insert(self.id, Instant::now());
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        let mut state = self.balancer.lock();
        if let Some(active) = state.active.get_mut(&self.id) {
            *active = active.saturating_sub(1);
            if *active == 0 {
                state.active.remove(&self.id);
            }
        }
    }
}

impl Balancer {
    /// Chooses a ready replica for a request of an adapter, or of the base; `None`: none is ready.
    pub(crate) fn choose(&self, replicas: &[Replica], adapter: Option<AdapterKey>) -> Option<Chosen> {
        let mut state = self.lock();
        state.failed.retain(|_, at| at.elapsed() < SUSPECT);
        let ready: Vec<(&Replica, &String)> = replicas
            .iter()
            .filter(|replica| replica.state == ReplicaState::Ready)
            .filter_map(|replica| replica.address.as_ref().map(|address| (replica, address)))
            .collect();
        let candidates: Vec<Candidate> = ready.iter().map(|(replica, _)| state.candidate(replica, adapter)).collect();
        let index = choose(&candidates, |count| rand::rng().random_range(0..count))?;
        let (replica, address) = ready[index];
        *state.active.entry(replica.replica_id).or_default() += 1;
        if let Some(adapter) = adapter {
            if state.last.len() >= MOST_REMEMBERED {
                state.last.clear();
            }
            state.last.insert(adapter, replica.replica_id);
        }
        Some(Chosen {
            address: address.clone(),
            token: replica.token.clone(),
            kind: replica.kind,
            is_suspect: candidates[index].is_suspect,
            id: replica.replica_id,
            balancer: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn candidate(&self, replica: &Replica, adapter: Option<AdapterKey>) -> Candidate {
        let id = replica.replica_id;
        let has = |adapter| replica.resident_adapters.contains(&adapter) || self.last.get(&adapter) == Some(&id);
        Candidate {
            active: self.active.get(&id).copied().unwrap_or(0),
            has_adapter: adapter.is_none_or(has),
            is_suspect: self.failed.contains_key(&id),
        }
    }
}

/// A ready replica, as far as the choice needs it.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    active: u64,
    has_adapter: bool,
    is_suspect: bool,
}

/// Returns the index of the chosen candidate. `random` returns a number below its argument.
fn choose(candidates: &[Candidate], mut random: impl FnMut(usize) -> usize) -> Option<usize> {
    let all: Vec<usize> = (0..candidates.len()).collect();
    let sound: Vec<usize> = all.iter().copied().filter(|&index| !candidates[index].is_suspect).collect();
    let usable = if sound.is_empty() { all } else { sound };
    let least = usable.iter().map(|&index| candidates[index].active).min()?;
    let with_adapter = usable
        .iter()
        .copied()
        .filter(|&index| candidates[index].has_adapter && candidates[index].active <= least + MOST_AHEAD)
        .collect::<Vec<_>>();
    let from = if with_adapter.is_empty() { usable } else { with_adapter };
    // The second is another one, if there is one.
    let first = random(from.len());
    let second = if from.len() > 1 { (first + 1 + random(from.len() - 1)) % from.len() } else { first };
    let (one, two) = (from[first], from[second]);
    Some(if candidates[two].active < candidates[one].active { two } else { one })
}

#[cfg(test)]
mod tests {
    use attune_domain::id::{AdapterVersionId, BaseModelId};
    use attune_store::replica::ServedBase;
    use uuid::Uuid;

    use super::*;

    fn replica(number: u128, resident_adapters: Vec<AdapterKey>) -> Replica {
        Replica {
            replica_id: ReplicaId::new(Uuid::from_u128(number)),
            base: ServedBase::as_imported(BaseModelId::new(Uuid::from_u128(9))),
            kind: ReplicaKind::default(),
            node_id: None,
            state: ReplicaState::Ready,
            address: Some(format!("127.0.0.1:{number}")),
            token: String::new(),
            error: None,
            silent_seconds: 0.0,
            idle_seconds: 0.0,
            draining_seconds: None,
            resident_adapters,
            handle: None,
        }
    }

    fn adapter(number: u128) -> AdapterKey {
        AdapterKey::Version(AdapterVersionId::new(Uuid::from_u128(number)))
    }

    #[test]
    fn requests_of_the_base_are_spread_evenly() {
        let (balancer, replicas) = (Balancer::default(), [replica(1, vec![]), replica(2, vec![]), replica(3, vec![])]);
        let chosen: Vec<Chosen> = (0..300).filter_map(|_| balancer.choose(&replicas, None)).collect();
        for replica in &replicas {
            let count = chosen.iter().filter(|chosen| chosen.id == replica.replica_id).count();
            assert!((90..=110).contains(&count), "{count}");
        }
        drop(chosen);
        assert!(balancer.lock().active.is_empty());
    }

    #[test]
    fn the_replica_with_the_adapter_is_chosen_until_it_is_ahead() {
        let (balancer, replicas) = (Balancer::default(), [replica(1, vec![]), replica(2, vec![adapter(7)])]);
        let chosen: Vec<Chosen> = (0..5).filter_map(|_| balancer.choose(&replicas, Some(adapter(7)))).collect();
        assert!(chosen.iter().all(|chosen| chosen.address == "127.0.0.1:2"), "{chosen:?}");
        let next = balancer.choose(&replicas, Some(adapter(7))).unwrap();
        assert_eq!(next.address, "127.0.0.1:1", "five are enough while the other has none");
    }

    #[test]
    fn an_adapter_returns_to_the_replica_that_loaded_it_last() {
        let (balancer, replicas) = (Balancer::default(), [replica(1, vec![]), replica(2, vec![])]);
        let first = balancer.choose(&replicas, Some(adapter(7))).unwrap().address.clone();
        for _ in 0..20 {
            assert_eq!(balancer.choose(&replicas, Some(adapter(7))).unwrap().address, first);
        }
    }

    #[test]
    fn limit_of_adapters_whose_last_replica_is_remembered() {
        let (balancer, replicas) = (Balancer::default(), [replica(1, vec![])]);
        for number in 0..=MOST_REMEMBERED as u128 {
            drop(balancer.choose(&replicas, Some(adapter(number))));
        }
        assert!((1..=MOST_REMEMBERED).contains(&balancer.lock().last.len()));
    }

    #[test]
    fn a_replica_that_did_not_answer_is_the_last_choice() {
        let (balancer, replicas) = (Balancer::default(), [replica(1, vec![adapter(7)]), replica(2, vec![])]);
        balancer.choose(&replicas[..1], None).unwrap().failed();
        for _ in 0..20 {
            let chosen = balancer.choose(&replicas, Some(adapter(7))).unwrap();
            assert_eq!((chosen.address.as_str(), chosen.is_suspect), ("127.0.0.1:2", false));
        }
        assert!(balancer.choose(&replicas[..1], None).unwrap().is_suspect, "better than none");
        let waiting = [Replica { state: ReplicaState::Launching, ..replica(3, vec![]) }];
        assert!(balancer.choose(&waiting, None).is_none());
    }
}
