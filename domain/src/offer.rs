//! What providers offer, and which offer a run or a replica gets. Pure: the same question has the same answer, and a no
//! comes with its reasons.

use std::fmt;

use crate::{
    bytes::Bytes,
    memory::{self, Cut, MemoryEstimate, Workload},
    run::Plan,
};

/// A kind of machine that can be had, and how much of it is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What the provider calls it.
    pub name: String,
    /// All of its memory.
    pub memory: Bytes,
    /// What others hold of it at the moment.
    pub reserved: Bytes,
    /// How many more runs it takes at the moment.
    pub free_slots: usize,
    /// Processor threads.
    pub threads: u32,
    /// Millionths of a dollar for an hour; 0: one's own machine.
    pub micro_usd_per_hour: u64,
}

impl Offer {
    /// What is left of its memory.
    #[must_use]
    pub const fn free(&self) -> Bytes {
        self.memory.saturating_sub(self.reserved)
    }
}

/// Why an offer is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Even when it is idle it has too little memory.
    TooSmall {
        /// The offer.
        offer: String,
        /// How much more it would have to have.
        short_by: Bytes,
    },
    /// Others hold the memory; it will be free again.
    Crowded {
        /// The offer.
        offer: String,
        /// How much more would have to be free.
        short_by: Bytes,
    },
    /// It takes no more runs at the moment.
    NoSlot {
        /// The offer.
        offer: String,
    },
}

impl Refusal {
    /// To wait is of no use.
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
            Self::NoSlot { offer } => write!(f, "{offer} takes no more runs at the moment"),
        }
    }
}

/// Picks the cheapest offer that holds `need` now, or says of every offer why it does not.
///
/// Equal prices fall to the smaller one, so that the large ones stay free for those who need them. `needs_slot` is for
/// runs; a replica takes memory only.
///
/// # Errors
/// One [`Refusal`] per offer, in the order given: the user reads them as the job's reason.
pub fn right_size(need: Bytes, needs_slot: bool, offers: &[Offer]) -> Result<&Offer, Vec<Refusal>> {
    offers
        .iter()
        .filter(|offer| refusal(need, needs_slot, offer).is_none())
        .min_by_key(|offer| (offer.micro_usd_per_hour, offer.memory))
        .ok_or_else(|| offers.iter().filter_map(|offer| refusal(need, needs_slot, offer)).collect())
}

/// Why `offer` does not hold `need` now; `None`: it does.
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

/// Where a job is to be trained, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement<'a> {
    /// Here, like this.
    Now {
        /// The offer.
        offer: &'a Offer,
        /// How the batch is cut.
        plan: Plan,
        /// What that takes.
        estimate: MemoryEstimate,
    },
    /// Nowhere, ever.
    Never {
        /// What the smallest cut that may be takes.
        smallest: MemoryEstimate,
        /// Why no offer holds it.
        refusals: Vec<Refusal>,
    },
    /// Somewhere, later.
    Later(Vec<Refusal>),
}

/// Places a job that began with `kept`: with that very plan, so that what it learns does not depend on the pause, or on the
/// machine that was lost. [`Placement::Never`]: no offer holds that plan, even if all of it were free.
#[must_use]
pub fn place_again<'a>(work: Workload<'_>, kept: &Plan, offers: &'a [Offer]) -> Placement<'a> {
    let Plan { micro_batch_size, checkpointing, .. } = *kept;
    let estimate = memory::training(work, Cut { micro_batch_size, checkpointing });
    match right_size(estimate.peak, true, offers) {
        Ok(offer) => {
            let plan = Plan { predicted_peak: estimate.peak, ..kept.clone() };
            Placement::Now { offer, plan, estimate }
        }
        Err(refusals) if refusals.iter().all(Refusal::is_final) => Placement::Never { smallest: estimate, refusals },
        Err(refusals) => Placement::Later(refusals),
    }
}

/// Places a job. The offer must hold the smallest cut of the batch; the plan then takes what is free.
#[must_use]
pub fn place<'a>(work: Workload<'_>, offers: &'a [Offer]) -> Placement<'a> {
    let smallest = memory::smallest(work);
    match right_size(smallest.peak, true, offers) {
        Ok(offer) => match memory::plan(work, offer.free(), offer.threads) {
            Ok((plan, estimate)) => Placement::Now { offer, plan, estimate },
            // Cannot be, since the smallest fits; if the arithmetic ever disagrees with itself, the job waits.
            Err(_) => Placement::Later(Vec::new()),
        },
        Err(refusals) if refusals.iter().all(Refusal::is_final) => Placement::Never { smallest, refusals },
        Err(refusals) => Placement::Later(refusals),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn offer(memory: u64, reserved: u64, free_slots: usize, price: u64) -> Offer {
        let (memory, reserved) = (Bytes::mib(memory), Bytes::mib(reserved));
        Offer { name: "local".into(), memory, reserved, free_slots, threads: 2, micro_usd_per_hour: price }
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
        /// Needing less never costs more, and never turns a yes into a no.
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

        /// A no names every offer.
        #[test]
        fn a_no_names_every_offer(offers in vec((1_u64..1000, 0_u64..1000, 0_usize..3), 0..12), need in 1_u64..2000) {
            let offers: Vec<_> = offers.into_iter().map(|(m, r, s)| offer(m, r.min(m), s, 0)).collect();
            if let Err(refusals) = right_size(Bytes::mib(need), true, &offers) {
                prop_assert_eq!(refusals.len(), offers.len());
            }
        }
    }
}
