//! Offers of node providers, and the selection of one for a run or a replica. Pure: the same input has the same result,
//! and a refusal has its reasons.

use std::fmt;

use crate::{
    bytes::Bytes,
    memory::{self, MemoryEstimate, Workload},
    run::Plan,
};

/// A kind of machine that a provider offers, and its free capacity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The provider's name.
    pub provider: String,
    /// The provider's name for the offer.
    pub name: String,
    /// The total memory.
    pub memory: Bytes,
    /// The memory that other runs and replicas have reserved now.
    pub reserved: Bytes,
    /// The number of additional runs that can start now.
    pub free_slots: usize,
    /// The number of CPU threads.
    pub threads: u32,
    /// The price in millionths of a US dollar per hour; 0: the user's own machine.
    pub micro_usd_per_hour: u64,
}

impl Offer {
    /// Returns the free memory.
    #[must_use]
    pub const fn free(&self) -> Bytes {
        self.memory.saturating_sub(self.reserved)
    }

    /// Returns the key by which the offer to use is the smallest: the cheaper one, then the one with less memory.
    #[must_use]
    pub const fn preference(&self) -> (u64, Bytes) {
        (self.micro_usd_per_hour, self.memory)
    }
}

/// The reason why an offer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The total memory is too small, even if the machine is idle.
    TooSmall {
        /// The offer's name.
        offer: String,
        /// The missing memory.
        short_by: Bytes,
    },
    /// Too much of the memory is reserved now; it will be free again.
    Crowded {
        /// The offer's name.
        offer: String,
        /// The missing free memory.
        short_by: Bytes,
    },
    /// All slots for runs are in use now.
    NoSlot {
        /// The offer's name.
        offer: String,
    },
}

impl Refusal {
    /// Returns whether waiting cannot help.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::TooSmall { .. })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { offer, short_by } => write!(f, "{offer} has {short_by} too little memory"),
            Self::Crowded { offer, short_by } => write!(f, "{offer} has {short_by} too little memory free"),
            Self::NoSlot { offer } => write!(f, "{offer} has no free slot for another run"),
        }
    }
}

/// Returns the cheapest offer that has room for `need` now, or the reason for each offer why it does not.
///
/// At equal prices the smaller offer is used, so that the large ones stay free for workloads that need them.
/// `needs_slot` is for runs; a replica uses memory only.
///
/// # Errors
/// One [`Refusal`] per offer, in the given order: the user reads them as the job's reason.
pub fn right_size(need: Bytes, needs_slot: bool, offers: &[Offer]) -> Result<&Offer, Vec<Refusal>> {
    offers
        .iter()
        .filter(|offer| refusal(need, needs_slot, offer).is_none())
        .min_by_key(|offer| offer.preference())
        .ok_or_else(|| offers.iter().filter_map(|offer| refusal(need, needs_slot, offer)).collect())
}

/// Returns the reason why `offer` has no room for `need` now; `None`: it has.
#[must_use]
pub fn refusal(need: Bytes, needs_slot: bool, offer: &Offer) -> Option<Refusal> {
    let name = || offer.name.clone();
    let free = offer.free();
    if offer.memory < need {
        Some(Refusal::TooSmall { offer: name(), short_by: need.saturating_sub(offer.memory) })
    } else if needs_slot && offer.free_slots == 0 {
        Some(Refusal::NoSlot { offer: name() })
    } else if free < need {
        Some(Refusal::Crowded { offer: name(), short_by: need.saturating_sub(free) })
    } else {
        None
    }
}

/// The result of placing a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// The job can start now.
    Now {
        /// The selected offer.
        offer: &'a Offer,
        /// The micro-batch plan.
        plan: Plan,
        /// The memory estimate of the plan.
        estimate: MemoryEstimate,
    },
    /// No offer is large enough, even if it were idle.
    Never {
        /// The memory estimate of the smallest allowed split.
        smallest: MemoryEstimate,
        /// The reason for each offer.
        refusals: Vec<Refusal>,
    },
    /// The job must wait: an offer is large enough, but none has room now.
    Later(Vec<Refusal>),
}

/// Places a job that started with the plan `kept`: with the same plan, so that the result of training does not depend
/// on a pause or on a lost machine. [`Decision::Never`]: no offer is large enough for that plan, even if it were idle.
#[must_use]
pub fn place_again<'a>(work: Workload<'_>, kept: &Plan, offers: &'a [Offer]) -> Decision<'a> {
    let estimate = memory::with_plan(work, kept);
    match right_size(estimate.peak, true, offers) {
        Ok(offer) => {
            let plan = Plan { predicted_peak: estimate.peak, ..kept.clone() };
            Decision::Now { offer, plan, estimate }
        }
        Err(refusals) if refusals.iter().all(Refusal::is_final) => Decision::Never { smallest: estimate, refusals },
        Err(refusals) => Decision::Later(refusals),
    }
}

/// Places a job. The offer must have room for the smallest split of the batch; the plan then uses the free memory.
#[must_use]
pub fn place<'a>(work: Workload<'_>, offers: &'a [Offer]) -> Decision<'a> {
    let smallest = memory::smallest(work);
    match right_size(smallest.peak, true, offers) {
        Ok(offer) => match memory::plan(work, offer.free(), offer.threads) {
            Ok((plan, estimate)) => Decision::Now { offer, plan, estimate },
            // Unreachable, since the smallest split fits; if the two estimates ever differ, the job waits.
            Err(_) => Decision::Later(Vec::new()),
        },
        Err(refusals) if refusals.iter().all(Refusal::is_final) => Decision::Never { smallest, refusals },
        Err(refusals) => Decision::Later(refusals),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn offer(memory: u64, reserved: u64, free_slots: usize, price: u64) -> Offer {
        let (memory, reserved) = (Bytes::mib(memory), Bytes::mib(reserved));
        let (provider, name) = ("local".into(), "local".into());
        Offer { provider, name, memory, reserved, free_slots, threads: 2, micro_usd_per_hour: price }
    }

    #[test]
    fn each_refusal_says_whether_to_wait_is_of_use() {
        let need = Bytes::mib(100);
        let offers = [offer(90, 0, 1, 0), offer(200, 150, 1, 0), offer(200, 0, 0, 0)];
        let refused = right_size(need, true, &offers).unwrap_err();
        let (local, short) = (|| "local".to_owned(), Bytes::mib);
        assert_eq!(
            refused,
            [
                Refusal::TooSmall { offer: local(), short_by: short(10) },
                Refusal::Crowded { offer: local(), short_by: short(50) },
                Refusal::NoSlot { offer: local() },
            ]
        );
        assert_eq!(refused.iter().map(Refusal::is_final).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(refused[0].to_string(), "local has 10.0 MiB too little memory");
    }

    #[test]
    fn a_replica_needs_no_slot() {
        assert!(right_size(Bytes::mib(100), false, &[offer(200, 0, 0, 0)]).is_ok());
    }

    #[test]
    fn equal_prices_fall_to_the_smaller_offer() {
        let offers = [offer(400, 0, 1, 5), offer(200, 0, 1, 5), offer(200, 0, 1, 7)];
        assert_eq!(right_size(Bytes::mib(100), true, &offers), Ok(&offers[1]));
    }

    proptest! {
        /// A smaller need never costs more, and never turns a placement into a refusal.
        #[test]
        fn needing_less_never_costs_more(
            offers in vec((1_u64..1000, 0_u64..1000, 0_usize..3, 0_u64..100), 0..12),
            need in 1_u64..1000, less in 1_u64..1000,
        ) {
            let offers: Vec<_> = offers.into_iter().map(|(m, r, s, p)| offer(m, r.min(m), s, p)).collect();
            let (less, need) = (Bytes::mib(less.min(need)), Bytes::mib(need));
            if let Ok(taken) = right_size(need, true, &offers) {
                let smaller = right_size(less, true, &offers).unwrap();
                prop_assert!(smaller.micro_usd_per_hour <= taken.micro_usd_per_hour);
                prop_assert!(taken.memory.saturating_sub(taken.reserved) >= need);
            }
        }

        /// A refusal names every offer.
        #[test]
        fn a_no_names_every_offer(offers in vec((1_u64..1000, 0_u64..1000, 0_usize..3), 0..12), need in 1_u64..2000) {
            let offers: Vec<_> = offers.into_iter().map(|(m, r, s)| offer(m, r.min(m), s, 0)).collect();
            if let Err(refusals) = right_size(Bytes::mib(need), true, &offers) {
                prop_assert_eq!(refusals.len(), offers.len());
            }
        }
    }
}
