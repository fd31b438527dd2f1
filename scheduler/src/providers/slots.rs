//! The slots of an offer of a cluster. Each slot is an offer of its own: its machine's memory is not shared with the
//! others.

use attune_domain::offer::Offer;

/// Returns whether `name` is that of one of the slots of the offer `offer`.
pub(crate) fn is_slot_of(name: &str, offer: &str) -> bool {
    name == offer || name.rsplit_once('/').is_some_and(|(start, _)| start == offer)
}

/// Returns the number of a slot, from 1, by its name. An offer with one slot gives it its own name.
pub(crate) fn number(name: &str) -> Option<u32> {
    name.rsplit_once('/').map_or(Some(1), |(_, number)| number.parse().ok())
}

/// Returns an offer for each of the `count` slots of `offer`.
pub(crate) fn slots(offer: Offer, count: u32) -> impl Iterator<Item = Offer> {
    (1..=count).map(move |slot| Offer {
        name: if count == 1 { offer.name.clone() } else { format!("{}/{slot}", offer.name) },
        ..offer.clone()
    })
}

#[cfg(test)]
mod tests {
    use attune_domain::bytes::Bytes;

    use super::*;

    fn names(count: u32) -> Vec<String> {
        let offer = Offer::cpu("slurm", "a100", Bytes::mib(64), 2);
        slots(offer, count).map(|slot| slot.name).collect()
    }

    #[test]
    fn each_slot_is_an_offer_whose_name_leads_back_to_it() {
        assert_eq!((names(1), names(2)), (vec!["a100".into()], vec!["a100/1".into(), "a100/2".into()]));
        for (at, name) in names(12).iter().enumerate() {
            assert!(is_slot_of(name, "a100") && !is_slot_of(name, "a10") && !is_slot_of(name, "a1000"));
            assert_eq!(number(name), Some(at as u32 + 1));
        }
        assert!(is_slot_of("a100", "a100"));
        assert_eq!((number("a100"), number("a100/x")), (Some(1), None));
    }
}
