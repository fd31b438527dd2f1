//! The record of a placement: the offer that was taken, and the reason why each other one was not.

use attune_domain::{
    bytes::Bytes,
    memory::MemoryEstimate,
    offer::{Offer, refusal},
};
use attune_store::runs::placement::{NotTaken, Placed};

/// Creates the record of a job that needs `need` at least, placed on `taken`.
pub(super) fn placed(need: Bytes, estimate: MemoryEstimate, taken: &Offer, offers: &[Offer]) -> Placed {
    let is_other = |offer: &&Offer| (&offer.provider, &offer.name) != (&taken.provider, &taken.name);
    let others = offers.iter().filter(is_other).map(|offer| NotTaken {
        provider: offer.provider.clone(),
        offer: offer.name.clone(),
        reason: refusal(need, true, offer).map_or_else(|| not_cheaper(offer, taken), |refusal| refusal.to_string()),
    });
    Placed {
        provider: taken.provider.clone(),
        offer: taken.name.clone(),
        micro_usd_per_hour: taken.micro_usd_per_hour,
        estimate,
        others: others.collect(),
    }
}

fn not_cheaper(offer: &Offer, taken: &Offer) -> String {
    let (name, taken_name) = (&offer.name, &taken.name);
    if taken.preference() <= offer.preference() {
        format!("{name} is large enough; {taken_name} costs less, or as much and is smaller")
    } else {
        format!("{name} is large enough; it is kept free for another job of the queue")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_offer_has_its_reason() {
        let offer = |name: &str, mib: u64, free_slots: usize, price: u64| Offer {
            provider: "local".into(),
            name: name.into(),
            memory: Bytes::mib(mib),
            reserved: Bytes(0),
            free_slots,
            threads: 2,
            micro_usd_per_hour: price,
        };
        let offers = [
            offer("tiny", 10, 1, 0),
            offer("taken", 200, 1, 5),
            offer("full", 200, 0, 5),
            offer("dear", 200, 1, 9),
            offer("cheap", 200, 1, 1),
        ];
        let estimate = MemoryEstimate { terms: Vec::new(), peak: Bytes::mib(120) };
        let record = placed(Bytes::mib(100), estimate, &offers[1], &offers);
        assert_eq!((record.offer.as_str(), record.estimate.peak), ("taken", Bytes::mib(120)));
        let reasons: Vec<_> = record.others.iter().map(|other| other.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "tiny has 90.0 MiB too little memory",
                "full has no free slot for another run",
                "dear is large enough; taken costs less, or as much and is smaller",
                "cheap is large enough; it is kept free for another job of the queue",
            ]
        );
    }
}
