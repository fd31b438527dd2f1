//! EASY backfill (Lifka 1995): the first job that does not fit has a reservation, and a later job starts only if it
//! leaves that reservation as it is.

use super::{
    pool::{Pools, Room},
    state::WaitingJob,
};
use crate::bytes::Bytes;

/// The reservation of the head: the first job in order that does not fit now.
#[derive(Debug)]
pub(super) struct Reservation {
    /// The index of the waiting job.
    pub(super) waiting: usize,
    /// The pool that has room for it first.
    pub(super) pool: usize,
    /// The earliest time with room.
    at: f64,
    /// The room that is left on the pool at that time.
    spare: Room,
}

impl Reservation {
    /// Reserves room for a job; `None` if the ends of all runs are not enough, since the rest of the memory is held by
    /// replicas, whose end is unknown.
    pub(super) fn of(waiting: usize, job: &WaitingJob, pools: &Pools) -> Option<Self> {
        let (pool, at) = pools.earliest(job)?;
        Some(Self { waiting, pool, at, spare: pools.get(pool).later(at).without(pools.need(pool, job)) })
    }

    /// Returns whether a job that needs this memory may start now on a pool, and then deducts it from the spare room if
    /// it ends too late.
    fn admits(&mut self, (pool, ends_at): (usize, f64), need: Bytes) -> bool {
        if pool != self.pool || ends_at <= self.at {
            return true;
        }
        let fits = self.spare.holds(need);
        if fits {
            self.spare = self.spare.without(need);
        }
        fits
    }
}

/// Returns the preferred pool on which a job may start now.
pub(super) fn choose(job: &WaitingJob, pools: &Pools, now: f64, mut head: Option<&mut Reservation>) -> Option<usize> {
    let mut room = pools.with_room(job);
    room.find(|&pool| {
        let ends_at = now + pools.seconds(pool, job);
        head.as_deref_mut().is_none_or(|head| head.admits((pool, ends_at), pools.need(pool, job)))
    })
}
