//! The room on each offer: now, and later as runs end.

use std::collections::{HashMap, VecDeque};

use super::{
    seconds,
    state::{Queue, WaitingJob},
};
use crate::{bytes::Bytes, id::JobId};

/// The expected end of a run.
#[derive(Debug, Clone)]
struct End {
    at: f64,
    memory: Bytes,
    job: JobId,
}

/// The free memory and slots of an offer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// The free memory.
    pub(super) memory: Bytes,
    /// The number of additional runs.
    pub(super) slots: usize,
}

impl Room {
    /// Returns whether a run that needs this memory fits.
    pub(super) fn holds(self, need: Bytes) -> bool {
        self.slots > 0 && self.memory >= need
    }

    /// Returns the room after a run that holds this memory has ended.
    pub(super) fn with(self, freed: Bytes) -> Self {
        Self { memory: self.memory + freed, slots: self.slots.saturating_add(1) }
    }

    /// Returns the room after a run that holds this memory has started.
    pub(super) fn without(self, used: Bytes) -> Self {
        Self { memory: self.memory.saturating_sub(used), slots: self.slots.saturating_sub(1) }
    }
}

/// An offer, its room at one moment, and the ends of its runs after that, the earliest first.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    offer: usize,
    memory: Bytes,
    room: Room,
    clock: f64,
    ends: VecDeque<End>,
}

impl Pool {
    /// Returns the room at the pool's moment.
    pub(super) const fn room(&self) -> Room {
        self.room
    }

    /// Returns whether a run fits when the pool is idle.
    pub(super) fn is_large_enough(&self, need: Bytes) -> bool {
        self.memory >= need
    }

    /// Returns the earliest time with room for a run; `None` if the ends of all runs are not enough.
    fn room_at(&self, need: Bytes) -> Option<f64> {
        if !self.is_large_enough(need) {
            return None;
        }
        let mut room = self.room;
        if room.holds(need) {
            return Some(self.clock);
        }
        self.ends.iter().find_map(|end| {
            room = room.with(end.memory);
            room.holds(need).then(|| end.at.max(self.clock))
        })
    }

    /// Returns the room at a time, if nothing else starts.
    pub(super) fn later(&self, at: f64) -> Room {
        let ended = self.ends.iter().take_while(|end| end.at <= at);
        let room = ended.fold(self.room, |room, end| room.with(end.memory));
        Room { memory: room.memory.min(self.memory), slots: room.slots }
    }

    fn insert(&mut self, end: End) {
        let place = self.ends.partition_point(|other| other.at <= end.at);
        self.ends.insert(place, end);
    }
}

/// The pools of all offers, in the order of preference: the cheapest first, at equal prices the smallest, as
/// [`crate::offer::right_size`] selects.
#[derive(Debug, Clone)]
pub(super) struct Pools {
    pools: Vec<Pool>,
    by_offer: HashMap<(String, String), usize>,
}

impl Pools {
    /// Reads the offers and the runs of a queue. A run on an offer that no longer exists frees no room.
    pub(super) fn of(queue: &Queue) -> Self {
        let mut offers: Vec<usize> = (0..queue.offers.len()).collect();
        offers.sort_by_key(|&offer| queue.offers[offer].preference());
        let mut by_offer = HashMap::new();
        let mut pools = Vec::new();
        for index in offers {
            let offer = &queue.offers[index];
            by_offer.insert((offer.provider.clone(), offer.name.clone()), pools.len());
            let room = Room { memory: offer.free(), slots: offer.free_slots };
            pools.push(Pool { offer: index, memory: offer.memory, room, clock: queue.now, ends: VecDeque::new() });
        }
        for run in &queue.running {
            if let Some(&pool) = by_offer.get(&run.offer) {
                let end = End { at: seconds::end(run.ends_at, queue.now), memory: run.memory, job: run.job };
                pools[pool].ends.push_back(end);
            }
        }
        for pool in &mut pools {
            pool.ends.make_contiguous().sort_by(|a, b| a.at.total_cmp(&b.at));
        }
        Self { pools, by_offer }
    }

    /// Returns the pools with their indices, in the order of preference.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &Pool)> {
        self.pools.iter().enumerate()
    }

    /// Returns the pool at an index.
    pub(super) fn get(&self, pool: usize) -> &Pool {
        &self.pools[pool]
    }

    /// Returns the index of a pool's offer.
    pub(super) fn offer(&self, pool: usize) -> usize {
        self.pools[pool].offer
    }

    /// Returns the pool of a run's offer.
    pub(super) fn of_run(&self, offer: &(String, String)) -> Option<usize> {
        self.by_offer.get(offer).copied()
    }

    /// Returns the pools that have room for a run now.
    pub(super) fn with_room(&self, need: Bytes) -> impl Iterator<Item = usize> {
        self.all().filter(move |(_, pool)| pool.room.holds(need)).map(|(index, _)| index)
    }

    /// Returns the preferred pool that is large enough for a run when it is idle.
    pub(super) fn large_enough(&self, need: Bytes) -> Option<usize> {
        self.pools.iter().position(|pool| pool.is_large_enough(need))
    }

    /// Returns the pool that has room for a run first, and the time.
    pub(super) fn earliest(&self, need: Bytes) -> Option<(usize, f64)> {
        let times = self.all().filter_map(|(index, pool)| Some((index, pool.room_at(need)?)));
        times.min_by_key(|&(index, at)| (seconds::Ordered(at), index))
    }

    /// Starts a job on a pool at a time that is not before its moment.
    pub(super) fn start(&mut self, pool: usize, job: &WaitingJob, at: f64) {
        let pool = &mut self.pools[pool];
        while pool.ends.front().is_some_and(|end| end.at <= at)
            && let Some(end) = pool.ends.pop_front()
        {
            pool.room = pool.room.with(end.memory);
        }
        pool.clock = pool.clock.max(at);
        pool.room = pool.room.without(job.need);
        pool.insert(End { at: at + seconds::of(job.seconds), memory: job.need, job: job.job });
    }

    /// Moves the expected end of a run to this time, unless it is earlier.
    pub(super) fn stop(&mut self, pool: usize, job: JobId, at: f64) {
        let pool = &mut self.pools[pool];
        if let Some(place) = pool.ends.iter().position(|end| end.job == job)
            && let Some(end) = pool.ends.remove(place)
        {
            pool.insert(End { at: at.min(end.at), ..end });
        }
    }
}
