//! The offers that a job may use, in the order of the predicted cost of the job.

use serde::{Deserialize, Serialize};

use super::{kind::Offer, limits::ComputeLimits, refusal::Refusal, select::unsupported};

/// The smallest difference between relative durations that counts.
const LEAST_DIFFERENCE: f64 = 1e-6;

/// The duration of a job on an offer, relative to its expected duration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slowness {
    /// The provider's name.
    pub provider: String,
    /// The offer's name.
    pub offer: String,
    /// The factor; above 0.
    pub factor: f64,
}

/// The terms of a job for its offer.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The limits.
    pub limits: &'a ComputeLimits,
    /// The expected duration, in seconds.
    pub seconds: f64,
    /// The relative durations; an offer without one has the factor 1.
    pub slowness: &'a [Slowness],
    /// The present time, in Unix seconds.
    pub now: f64,
}

/// The order in which a job uses offers, and the reasons against the others. Indices are those of the list of offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// The offers that the job may use: those on which it costs less first; at a tie, by [`Offer::preference`].
    pub order: Vec<usize>,
    /// The relative duration on each offer.
    pub factors: Vec<f64>,
    /// The reason why the job never uses an offer; `None` for those in `order`.
    pub refused: Vec<Option<Refusal>>,
}

impl Ranking {
    /// Ranks the offers, without regard to memory and free slots.
    #[must_use]
    pub fn of(offers: &[Offer], terms: Terms<'_>) -> Self {
        let factors: Vec<f64> = offers.iter().map(|offer| factor(offer, terms.slowness)).collect();
        let refused: Vec<Option<Refusal>> =
            offers.iter().zip(&factors).map(|(offer, factor)| refusal(offer, *factor, terms)).collect();
        let mut order: Vec<usize> = (0..offers.len()).filter(|&index| refused[index].is_none()).collect();
        let cost = |index: usize| offers[index].micro_usd_per_hour as f64 * factors[index];
        order.sort_by(|&a, &b| {
            let by_preference = || offers[a].preference().cmp(&offers[b].preference());
            cost(a).total_cmp(&cost(b)).then_with(by_preference)
        });
        Self { order, factors, refused }
    }
}

/// Returns the offer on which a job costs least, and its duration on the others relative to that one; no durations if
/// they are all the same. `rates`: the tokens per second on each offer; `None`: the job cannot use it. `None`: it can
/// use none.
#[must_use]
pub fn prospect(offers: &[Offer], rates: &[Option<f64>]) -> Option<(usize, Vec<Slowness>)> {
    let usable =
        || offers.iter().zip(rates).enumerate().filter_map(|(index, (offer, rate))| Some((index, offer, (*rate)?)));
    let cost = |offer: &Offer, rate: f64| offer.micro_usd_per_hour as f64 / rate.max(f64::MIN_POSITIVE);
    let (first, _, best) = usable().min_by(|(_, a, rate), (_, b, other)| {
        let by_preference = || a.preference().cmp(&b.preference());
        cost(a, *rate).total_cmp(&cost(b, *other)).then_with(by_preference)
    })?;
    let slowness: Vec<Slowness> = usable()
        .map(|(_, offer, rate)| Slowness {
            provider: offer.provider.clone(),
            offer: offer.name.clone(),
            factor: best / rate.max(f64::MIN_POSITIVE),
        })
        .collect();
    let is_even = slowness.iter().all(|slow| (slow.factor - 1.0).abs() < LEAST_DIFFERENCE);
    Some((first, if is_even { Vec::new() } else { slowness }))
}

fn factor(offer: &Offer, slowness: &[Slowness]) -> f64 {
    let found = slowness.iter().find(|slow| (&slow.provider, &slow.offer) == (&offer.provider, &offer.name));
    found.map_or(1.0, |slow| slow.factor.max(f64::MIN_POSITIVE))
}

fn refusal(offer: &Offer, factor: f64, terms: Terms<'_>) -> Option<Refusal> {
    unsupported(offer)
        .or_else(|| terms.limits.refusal(offer))
        .or_else(|| terms.limits.refusal_for(offer, terms.seconds * factor, terms.now))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::{
        bytes::Bytes,
        offer::{DeviceChoice, OfferDevice},
    };

    fn offer(number: usize, price: u64, mib: u64) -> Offer {
        Offer { micro_usd_per_hour: price, ..Offer::cpu("cloud", number.to_string(), Bytes::mib(mib), 4) }
    }

    fn slow(number: usize, factor: f64) -> Slowness {
        Slowness { provider: "cloud".into(), offer: number.to_string(), factor }
    }

    fn ranked(offers: &[Offer], slowness: &[Slowness], limits: &ComputeLimits) -> Ranking {
        Ranking::of(offers, Terms { limits, seconds: 3600.0, slowness, now: 0.0 })
    }

    #[test]
    fn a_faster_dearer_offer_is_first_if_the_job_costs_less_on_it() {
        let offers = [offer(0, 3_000_000, 1000), offer(1, 1_000_000, 1000)];
        let any = ComputeLimits::default();
        assert_eq!(ranked(&offers, &[], &any).order, [1, 0]);
        assert_eq!(ranked(&offers, &[slow(0, 0.25)], &any).order, [0, 1]);
        assert_eq!(ranked(&offers, &[slow(0, 0.5)], &any).order, [1, 0]);
    }

    #[test]
    fn a_tie_falls_to_the_lower_price_and_then_to_the_smaller_machine() {
        let offers = [offer(0, 2, 1000), offer(1, 2, 500), offer(2, 1, 2000)];
        assert_eq!(ranked(&offers, &[slow(2, 2.0)], &ComputeLimits::default()).order, [2, 1, 0]);
    }

    #[test]
    fn the_device_of_this_build_is_checked_first_and_the_duration_on_each_offer_last() {
        let cuda = OfferDevice::Cuda { product: "NVIDIA L4".into(), count: 1, memory: Bytes::mib(23_034) };
        let offers = [Offer { device: cuda, ..offer(0, 9, 10) }, offer(1, 9, 10), offer(2, 9, 10), offer(3, 10, 10)];
        let limits = ComputeLimits {
            max_micro_usd_per_hour: Some(9),
            deadline: Some(4000),
            device: DeviceChoice::Auto,
            ..ComputeLimits::default()
        };
        let found = ranked(&offers, &[slow(2, 1.5)], &limits);
        assert_eq!(found.order, [1]);
        let codes: Vec<_> = found.refused.iter().map(|refused| refused.as_ref().map(Refusal::code)).collect();
        assert_eq!(codes, [Some("device_not_in_build"), None, Some("deadline"), Some("price")]);
    }

    #[test]
    fn the_prospect_is_the_offer_of_the_least_cost_and_the_ranking_agrees() {
        let offers = [offer(0, 3_000_000, 1000), offer(1, 1_000_000, 1000), offer(2, 1, 10)];
        let (first, slowness) = prospect(&offers, &[Some(400.0), Some(100.0), None]).unwrap();
        assert_eq!((first, &slowness[..]), (0, &[slow(0, 1.0), slow(1, 4.0)][..]));
        assert_eq!(ranked(&offers[..2], &slowness, &ComputeLimits::default()).order[0], first);
        assert_eq!(prospect(&offers, &[Some(7.0), Some(7.0), None]), Some((1, Vec::new())));
        assert_eq!(prospect(&offers, &[None; 3]), None);
    }

    proptest! {
        /// The first offer is the one on which an allowed job costs the least, every offer is either ranked or refused,
        /// and the order of the list does not matter.
        #[test]
        fn the_first_costs_least(
            given in vec((0_u64..50, 1_u64..50, 0.1..10.0_f64, any::<bool>()), 0..12),
            most in option::of(0_u64..60), budget in option::of(0_u64..300), spot in any::<bool>(),
        ) {
            let offers: Vec<Offer> = given.iter().enumerate()
                .map(|(number, &(price, mib, _, spot))| Offer { spot, ..offer(number, price, mib) }).collect();
            let slowness: Vec<_> = given.iter().enumerate().map(|(number, given)| slow(number, given.2)).collect();
            let limits = ComputeLimits {
                max_micro_usd_per_hour: most, max_micro_usd: budget, spot, ..ComputeLimits::default()
            };
            let found = ranked(&offers, &slowness, &limits);
            let cost = |index: usize| offers[index].micro_usd_per_hour as f64 * given[index].2;
            prop_assert!(found.order.windows(2).all(|pair| cost(pair[0]) <= cost(pair[1])));
            for (index, offer) in offers.iter().enumerate() {
                prop_assert_eq!(found.order.contains(&index), found.refused[index].is_none());
                let is_allowed = (spot || !offer.spot) && most.is_none_or(|most| offer.micro_usd_per_hour <= most)
                    && budget.is_none_or(|budget| cost(index).ceil() as u64 <= budget);
                prop_assert_eq!(found.refused[index].is_none(), is_allowed);
            }
            let mut reversed = offers.clone();
            reversed.reverse();
            let names = |offers: &[Offer], order: &[usize]| -> Vec<(u64, u64)> {
                order.iter().map(|&index| (offers[index].micro_usd_per_hour, offers[index].memory.0)).collect()
            };
            let again = ranked(&reversed, &slowness, &limits);
            let (first, first_again) = (names(&offers, &found.order), names(&reversed, &again.order));
            prop_assert_eq!(first.first(), first_again.first());
        }
    }
}
