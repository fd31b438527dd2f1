//! Which offer a run or a replica gets. Pure: the same question has the same answer, and a no comes with its reasons.

use std::fmt;

use attune_domain::bytes::Bytes;

use crate::provider::Offer;

/// Why an offer is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
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
    pub(crate) const fn is_final(&self) -> bool {
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
pub(crate) fn right_size(need: Bytes, needs_slot: bool, offers: &[Offer]) -> Result<&Offer, Vec<Refusal>> {
    offers
        .iter()
        .filter(|offer| refusal(need, needs_slot, offer).is_none())
        .min_by_key(|offer| (offer.micro_usd_per_hour, offer.memory))
        .ok_or_else(|| offers.iter().filter_map(|offer| refusal(need, needs_slot, offer)).collect())
}

fn refusal(need: Bytes, needs_slot: bool, offer: &Offer) -> Option<Refusal> {
    let name = || offer.name.clone();
    let free = offer.memory.saturating_sub(offer.reserved);
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
