//! The record of a placement: the offer that was taken, and the reason why each other one was not.

use attune_domain::{
    bytes::Bytes,
    memory::MemoryEstimate,
    offer::{Offer, Ranking, Refusal, Slowness, refusal},
};
use attune_store::runs::placement::{MOST_OTHERS, NotTaken, Placed, Predicted};

use super::work::Work;

/// The offers at a placement, as the job ranks them.
pub(super) struct Choice<'a> {
    pub(super) offers: &'a [Offer],
    pub(super) ranking: &'a Ranking,
    pub(super) expected: Expected<'a>,
}

/// The expected duration of the rest of a job.
#[derive(Clone, Copy)]
pub(super) struct Expected<'a> {
    /// The seconds; `None`: nothing is known about the job.
    pub(super) seconds: Option<f64>,
    /// The durations on the offers, relative to that; empty: the same on all.
    pub(super) slowness: &'a [Slowness],
}

impl<'a> Expected<'a> {
    /// Returns the expected duration of a job.
    pub(super) fn of(work: &'a Work) -> Self {
        let job = &work.job;
        Self { seconds: job.is_measured.then_some(job.seconds), slowness: &job.terms.slowness }
    }

    /// Returns the prediction on an offer; `None`: none was made there.
    fn on(self, offer: &Offer) -> Option<Predicted> {
        let is_here = |slow: &&Slowness| (&slow.provider, &slow.offer) == (&offer.provider, &offer.name);
        let factor = match self.slowness {
            [] => 1.0,
            all => all.iter().find(is_here)?.factor,
        };
        let seconds = self.seconds? * factor;
        Some(Predicted { seconds, micro_usd: offer.micro_usd_for(seconds) })
    }
}

/// Creates the record of a job that needs `need` at least, with the default margin, placed on `taken`.
pub(super) fn placed(need: Bytes, estimate: MemoryEstimate, taken: &Offer, choice: &Choice<'_>) -> Placed {
    let Choice { offers, ranking, expected } = *choice;
    let is_taken = |offer: &Offer| (&offer.provider, &offer.name) == (&taken.provider, &taken.name);
    let rank = |index: usize| ranking.order.iter().position(|&ranked| ranked == index);
    let taken_rank = offers.iter().position(is_taken).and_then(rank);
    let reason = |index: usize, offer: &Offer| {
        let refusal = ranking.refused[index].clone().or_else(|| refusal(need, true, offer));
        refusal.map_or_else(|| not_taken(offer, taken, taken_rank <= rank(index)), |refusal| refusal.to_string())
    };
    // An offer that the job cannot use in its limits of cost and time has a prediction; one for other reasons has none.
    let is_predicted = |index: usize, offer: &Offer| {
        let refused = ranking.refused[index].as_ref();
        offer.is_large_enough(need)
            && refused.is_none_or(|refusal| matches!(refusal, Refusal::Cost { .. } | Refusal::Deadline { .. }))
    };
    let others = not_taken_most(offers, ranking, is_taken).into_iter().map(|index| NotTaken {
        provider: offers[index].provider.clone(),
        offer: offers[index].name.clone(),
        reason: reason(index, &offers[index]),
        predicted: expected.on(&offers[index]).filter(|_| is_predicted(index, &offers[index])),
    });
    Placed {
        provider: taken.provider.clone(),
        offer: taken.name.clone(),
        micro_usd_per_hour: taken.micro_usd_per_hour,
        estimate,
        margin: taken.margin,
        predicted: expected.on(taken),
        others: others.collect(),
    }
}

/// Returns the offers to record: at most [`MOST_OTHERS`], those that the job may use before those that it may not.
fn not_taken_most(offers: &[Offer], ranking: &Ranking, is_taken: impl Fn(&Offer) -> bool) -> Vec<usize> {
    let mut others: Vec<usize> = (0..offers.len()).filter(|&index| !is_taken(&offers[index])).collect();
    others.sort_by_key(|&index| ranking.refused[index].is_some());
    others.truncate(MOST_OTHERS);
    others.sort_unstable();
    others
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
    fn the_recorded_offers_are_bounded_and_those_that_the_job_may_use_are_kept() {
        let offer = |number: usize| Offer {
            micro_usd_per_hour: u64::from(number < MOST_OTHERS),
            ..Offer::cpu("local", number.to_string(), Bytes::mib(1), 2)
        };
        let offers: Vec<Offer> = (0..MOST_OTHERS + 20).map(offer).collect();
        let limits = ComputeLimits { max_micro_usd_per_hour: Some(0), ..ComputeLimits::default() };
        let ranking = Ranking::of(&offers, Terms { limits: &limits, seconds: 60.0, slowness: &[], now: 0.0 });
        let kept = not_taken_most(&offers, &ranking, |offer| offer.name == "5");
        assert_eq!((kept.len(), kept[0], kept[5], kept[79]), (MOST_OTHERS, 0, 6, 80));
        assert_eq!(kept[80..], (MOST_OTHERS..MOST_OTHERS + 20).collect::<Vec<_>>());
    }

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
        let slow = |offer: &str, factor| Slowness { provider: "local".into(), offer: offer.into(), factor };
        let slowness = [slow("taken", 1.0), slow("full", 1.0), slow("dear", 0.5), slow("gold", 0.5)];
        let expected = Expected { seconds: Some(7200.0), slowness: &slowness };
        let choice = Choice { offers: &offers, ranking: &ranking, expected };
        let record = placed(Bytes::mib(100), estimate, &offers[1], &choice);
        assert_eq!((record.offer.as_str(), record.estimate.peak), ("taken", Bytes::mib(120)));
        assert_eq!(record.predicted, Some(Predicted { seconds: 7200.0, micro_usd: 10 }));
        let predicted: Vec<_> = record.others.iter().map(|other| other.predicted).collect();
        let (full, dear) = (record.predicted, Some(Predicted { seconds: 3600.0, micro_usd: 9 }));
        // Of `cheap`, no rate was known when the job was measured; `tiny` and `gold` are excluded.
        assert_eq!(predicted, [None, full, dear, None, None]);
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
