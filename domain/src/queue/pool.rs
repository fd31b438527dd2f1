//! The room on each offer: now, and later as runs end.

use std::collections::{HashMap, VecDeque};

use super::{
    seconds,
    state::{Queue, WaitingJob},
};
use crate::{
    bytes::Bytes,
    id::JobId,
    memory::Margin,
    offer::{self, Offer},
};

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
    margin: Margin,
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
    fn is_large_enough(&self, need: Bytes) -> bool {
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

/// The pools of the offers whose device is in this build, in the order of preference: the cheapest first, at equal
/// prices the smallest, as [`offer::right_size`] selects.
#[derive(Debug, Clone)]
pub(super) struct Pools {
    pools: Vec<Pool>,
    /// The pool of each offer of the queue.
    by_index: Vec<Option<usize>>,
    by_offer: HashMap<(String, String), usize>,
}

impl Pools {
    /// Reads the offers and the runs of a queue. A run on an offer that no longer exists frees no room.
    pub(super) fn of(queue: &Queue) -> Self {
        let is_usable = |offer: &usize| offer::unsupported(&queue.offers[*offer]).is_none();
        let mut offers: Vec<usize> = (0..queue.offers.len()).filter(is_usable).collect();
        offers.sort_by_key(|&offer| queue.offers[offer].preference());
        let (mut by_offer, mut by_index) = (HashMap::new(), vec![None; queue.offers.len()]);
        let mut pools = Vec::new();
        for index in offers {
            let offer = &queue.offers[index];
            by_index[index] = Some(pools.len());
            by_offer.insert((offer.provider.clone(), offer.name.clone()), pools.len());
            let room = Room { memory: offer.free(), slots: offer.free_slots };
            let Offer { memory, margin, .. } = *offer;
            pools.push(Pool { offer: index, memory, margin, room, clock: queue.now, ends: VecDeque::new() });
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
        Self { pools, by_index, by_offer }
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

    /// Returns the memory that a job needs on a pool.
    pub(super) fn need(&self, pool: usize, job: &WaitingJob) -> Bytes {
        self.pools[pool].margin.apply(job.need)
    }

    /// Returns the pool of a run's offer.
    pub(super) fn of_run(&self, offer: &(String, String)) -> Option<usize> {
        self.by_offer.get(offer).copied()
    }

    /// Returns the pools that a job may use, those that it prefers first.
    fn of_job<'a>(&'a self, job: &'a WaitingJob) -> impl Iterator<Item = usize> + 'a {
        (0..self.pools.len()).filter_map(move |rank| match &job.offers {
            None => Some(rank),
            Some(ranking) => ranking.order.get(rank).and_then(|&offer| self.by_index[offer]),
        })
    }

    /// Returns the pools that have room for a job now, those that it prefers first.
    pub(super) fn with_room<'a>(&'a self, job: &'a WaitingJob) -> impl Iterator<Item = usize> + 'a {
        self.of_job(job).filter(move |&pool| self.pools[pool].room.holds(self.need(pool, job)))
    }

    /// Returns the pools that are large enough for a job when they are idle, those that it prefers first.
    pub(super) fn large_enough<'a>(&'a self, job: &'a WaitingJob) -> impl Iterator<Item = usize> + 'a {
        self.of_job(job).filter(move |&pool| self.pools[pool].is_large_enough(self.need(pool, job)))
    }

    /// Returns the pool that has room for a job first, and the time.
    pub(super) fn earliest(&self, job: &WaitingJob) -> Option<(usize, f64)> {
        let times = self.of_job(job).filter_map(|pool| Some((pool, self.pools[pool].room_at(self.need(pool, job))?)));
        let first = times.enumerate().min_by_key(|&(rank, (_, at))| (seconds::Ordered(at), rank));
        first.map(|(_, found)| found)
    }

    /// Returns the expected duration of a job on a pool, in seconds.
    pub(super) fn seconds(&self, pool: usize, job: &WaitingJob) -> f64 {
        seconds::of(job.seconds_on(self.pools[pool].offer))
    }

    /// Starts a job on a pool at a time that is not before its moment.
    pub(super) fn start(&mut self, pool: usize, job: &WaitingJob, at: f64) {
        let (seconds, need) = (self.seconds(pool, job), self.need(pool, job));
        let pool = &mut self.pools[pool];
        while pool.ends.front().is_some_and(|end| end.at <= at)
            && let Some(end) = pool.ends.pop_front()
        {
            pool.room = pool.room.with(end.memory);
        }
        pool.clock = pool.clock.max(at);
        pool.room = pool.room.without(need);
        pool.insert(End { at: at + seconds, memory: need, job: job.job });
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
