//! The record of a placement: the offer that was taken, and the reason why each other one was not.

use attune_domain::{
    bytes::Bytes,
    memory::MemoryEstimate,
    offer::{Offer, Ranking, refusal},
};
use attune_store::runs::placement::{NotTaken, Placed};

/// The offers at a placement, as the job ranks them.
pub(super) struct Choice<'a> {
    pub(super) offers: &'a [Offer],
    pub(super) ranking: &'a Ranking,
}

/// Creates the record of a job that needs `need` at least, placed on `taken`.
pub(super) fn placed(need: Bytes, estimate: MemoryEstimate, taken: &Offer, choice: &Choice<'_>) -> Placed {
    let Choice { offers, ranking } = *choice;
    let is_taken = |offer: &Offer| (&offer.provider, &offer.name) == (&taken.provider, &taken.name);
    let rank = |index: usize| ranking.order.iter().position(|&ranked| ranked == index);
    let taken_rank = offers.iter().position(is_taken).and_then(rank);
    let reason = |index: usize, offer: &Offer| {
        let refusal = ranking.refused[index].clone().or_else(|| refusal(need, true, offer));
        refusal.map_or_else(|| not_taken(offer, taken, taken_rank <= rank(index)), |refusal| refusal.to_string())
    };
    let others = offers.iter().enumerate().filter(|(_, offer)| !is_taken(offer)).map(|(index, offer)| NotTaken {
        provider: offer.provider.clone(),
        offer: offer.name.clone(),
        reason: reason(index, offer),
    });
    Placed {
        provider: taken.provider.clone(),
        offer: taken.name.clone(),
        micro_usd_per_hour: taken.micro_usd_per_hour,
        estimate,
        others: others.collect(),
    }
}

fn not_taken(offer: &Offer, taken: &Offer, is_taken_preferred: bool) -> String {
    let (name, taken_name) = (&offer.name, &taken.name);
    if is_taken_preferred {
        format!("{name} is large enough; {taken_name} costs less, or as much and is smaller")
    } else {
        format!("{name} is large enough; it is kept free for another job of the queue")
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::offer::{ComputeLimits, Terms};

    use super::*;

    #[test]
    fn every_other_offer_has_its_reason() {
        let offer = |name: &str, mib: u64, free_slots: usize, price: u64| Offer {
            free_slots,
            micro_usd_per_hour: price,
            ..Offer::cpu("local", name, Bytes::mib(mib), 2)
        };
        let offers = [
            offer("tiny", 10, 1, 0),
            offer("taken", 200, 1, 5),
            offer("full", 200, 0, 5),
            offer("dear", 200, 1, 9),
            offer("cheap", 200, 1, 1),
            offer("gold", 200, 1, 10),
        ];
        let estimate = MemoryEstimate { terms: Vec::new(), peak: Bytes::mib(120) };
        let limits = ComputeLimits { max_micro_usd_per_hour: Some(9), ..ComputeLimits::default() };
        let ranking = Ranking::of(&offers, Terms { limits: &limits, seconds: 60.0, slowness: &[], now: 0.0 });
        let record = placed(Bytes::mib(100), estimate, &offers[1], &Choice { offers: &offers, ranking: &ranking });
        assert_eq!((record.offer.as_str(), record.estimate.peak), ("taken", Bytes::mib(120)));
        let reasons: Vec<_> = record.others.iter().map(|other| other.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "tiny has 90.0 MiB too little memory",
                "full has no free slot for another run",
                "dear is large enough; taken costs less, or as much and is smaller",
                "cheap is large enough; it is kept free for another job of the queue",
                "gold costs 0.000010 USD per hour, above compute.max_usd_per_hour, 0.000009",
            ]
        );
    }
}
