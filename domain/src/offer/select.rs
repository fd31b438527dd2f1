//! The selection of an offer that has room.

use super::{
    kind::{Offer, OfferDevice},
    refusal::Refusal,
    replica_kind::ReplicaKind,
};
use crate::{
    bytes::Bytes,
    memory::{self, MemoryEstimate, Workload},
    run::Plan,
    serve::Engine,
};

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

/// Returns the reason why `offer` has no room for `need` now; `None`: it has. The need of a run has the default margin,
/// which is replaced by that of the offer.
#[must_use]
pub fn refusal(need: Bytes, needs_slot: bool, offer: &Offer) -> Option<Refusal> {
    if let Some(refusal) = unsupported(offer) {
        return Some(refusal);
    }
    let need = if needs_slot { offer.needed(need) } else { need };
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

/// Selects the offer for a replica that needs `need`, as [`right_size`].
///
/// # Errors
/// One [`Refusal`] per offer, in the given order.
pub fn right_size_replica(need: Bytes, kind: ReplicaKind, offers: &[Offer]) -> Result<&Offer, Vec<Refusal>> {
    let refusals: Vec<Option<Refusal>> = offers.iter().map(|offer| replica_refusal(need, kind, offer)).collect();
    offers
        .iter()
        .zip(&refusals)
        .filter(|(_, refusal)| refusal.is_none())
        .map(|(offer, _)| offer)
        .min_by_key(|offer| offer.preference())
        .ok_or_else(|| refusals.into_iter().flatten().collect())
}

/// Returns the reason why `offer` cannot hold a replica of a kind now; `None`: it can. Another engine than `attune`
/// needs a GPU, of which this build uses none, and the whole offer.
#[must_use]
pub fn replica_refusal(need: Bytes, kind: ReplicaKind, offer: &Offer) -> Option<Refusal> {
    let name = || offer.name.clone();
    let ReplicaKind { engine, device, .. } = kind;
    if !device.allows(&offer.device) {
        let requested = format!("device is {}", device.name());
        return Some(Refusal::OtherDevice { offer: name(), device: offer.device.words().to_owned(), requested });
    }
    match (engine, &offer.device) {
        (Engine::Attune, _) => refusal(need, false, offer),
        (_, OfferDevice::Cpu) => Some(Refusal::NoGpu { offer: name(), engine }),
        (_, OfferDevice::Cuda { .. }) if offer.memory < need => {
            Some(Refusal::TooSmall { offer: name(), short_by: need.saturating_sub(offer.memory) })
        }
        (_, OfferDevice::Cuda { .. }) if offer.free() < offer.memory => {
            Some(Refusal::Crowded { offer: name(), short_by: offer.reserved })
        }
        (_, OfferDevice::Cuda { .. }) => no_price(offer, false),
    }
}

/// Returns the reason why no run can use the offer: its price is unknown now, or this build cannot use its device;
/// `None`: some can.
#[must_use]
pub fn unsupported(offer: &Offer) -> Option<Refusal> {
    let device = unsupported_device(offer);
    no_price(offer, device.is_some()).or(device)
}

/// Returns the refusal of an offer whose price is unknown now; `None`: it is known.
fn no_price(offer: &Offer, is_final: bool) -> Option<Refusal> {
    let reason = offer.no_price.clone()?;
    Some(Refusal::NoPrice { offer: offer.name.clone(), reason, is_final })
}

fn unsupported_device(offer: &Offer) -> Option<Refusal> {
    match &offer.device {
        OfferDevice::Cpu => None,
        OfferDevice::Cuda { count, .. } if *count > 1 => {
            Some(Refusal::Sharded { offer: offer.name.clone(), gpus: *count })
        }
        OfferDevice::Cuda { .. } => Some(Refusal::Device { offer: offer.name.clone(), device: offer.device.name() }),
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
    match right_size(estimate.needed(), true, offers) {
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
    match right_size(smallest.needed(), true, offers) {
        Ok(offer) => match memory::plan(work, offer.margin.room(offer.free()), offer.threads) {
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
    use crate::{
        memory::{Margin, with_margin},
        offer::replica_kind::ReplicaDevice,
    };

    fn offer(memory: u64, reserved: u64, free_slots: usize, price: u64) -> Offer {
        let (memory, reserved) = (Bytes::mib(memory), Bytes::mib(reserved));
        Offer { reserved, free_slots, micro_usd_per_hour: price, ..Offer::cpu("local", "local", memory, 2) }
    }

    #[test]
    fn another_engine_needs_a_whole_offer_with_a_gpu() {
        let need = Bytes::mib(100);
        let device = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_000) };
        let gpu = |reserved, price| Offer { device: device.clone(), ..offer(200, reserved, 1, price) };
        let offers = [offer(900, 0, 1, 0), gpu(1, 1), gpu(0, 3), gpu(0, 2)];
        let of = |engine| ReplicaKind { engine, ..ReplicaKind::default() };
        assert_eq!(right_size_replica(need, of(Engine::Vllm), &offers), Ok(&offers[3]));
        assert_eq!(right_size_replica(need, of(Engine::Attune), &offers), Ok(&offers[0]));
        let refused = right_size_replica(need, of(Engine::Lorax), &offers[..2]).unwrap_err();
        assert_eq!(refused[0].to_string(), "local has no GPU, which LoRAX requires");
        assert_eq!(refused[1], Refusal::Crowded { offer: "local".into(), short_by: Bytes::mib(1) });
        assert!(replica_refusal(Bytes::mib(300), of(Engine::Vllm), &offers[2]).unwrap().is_final());
        let unpriced = Offer { no_price: Some("the entry is stale".into()), ..gpu(0, 0) };
        let refused = replica_refusal(need, of(Engine::Vllm), &unpriced);
        assert_eq!(refused.map(|refusal| refusal.code()), Some("no_price"));
    }

    #[test]
    fn a_replica_is_placed_on_a_device_of_its_kind() {
        let need = Bytes::mib(100);
        let device = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_000) };
        let offers = [Offer { device, ..offer(200, 0, 1, 0) }, offer(200, 0, 1, 5)];
        let kind = ReplicaKind::default();
        let on = |engine, device| right_size_replica(need, ReplicaKind { engine, device, ..kind }, &offers);
        assert_eq!(on(Engine::Vllm, ReplicaDevice::Cuda), Ok(&offers[0]));
        assert_eq!(on(Engine::Attune, ReplicaDevice::Cpu), Ok(&offers[1]));
        let refused = on(Engine::Attune, ReplicaDevice::Cuda).unwrap_err();
        let texts: Vec<_> = refused.iter().map(ToString::to_string).collect();
        let other = "local has the device cpu, and device is cuda";
        assert_eq!(texts, ["local: the device cuda is not in this build", other]);
        assert!(refused.iter().all(Refusal::is_final));
        assert!(on(Engine::Vllm, ReplicaDevice::Cpu).is_err(), "no processor runs vLLM");
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
    fn a_run_needs_the_margin_of_the_offer_and_a_replica_does_not() {
        let need = with_margin(Bytes::mib(100));
        let with = |percent| [Offer { margin: Margin::measured(percent), ..offer(120, 0, 1, 0) }];
        assert_eq!(right_size(need, true, &with(20)), Ok(&with(20)[0]));
        let refused = right_size(need, true, &with(30)).unwrap_err();
        assert_eq!(refused, [Refusal::TooSmall { offer: "local".into(), short_by: Bytes::mib(10) }]);
        assert!(right_size(need, false, &with(30)).is_ok());
        assert!(right_size(need, true, &[Offer { margin: Margin::measured(5), ..offer(105, 0, 1, 0) }]).is_ok());
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

    #[test]
    fn a_device_that_is_not_in_this_build_is_refused_before_its_memory_counts() {
        let cuda = |count| {
            let device = OfferDevice::Cuda { product: "NVIDIA L4".into(), count, memory: Bytes::mib(23_034) };
            Offer { device, ..offer(200, 0, 1, 0) }
        };
        let offers = [cuda(1), cuda(2)];
        let refused = right_size(Bytes::mib(100), true, &offers).unwrap_err();
        let texts: Vec<_> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["local: the device cuda is not in this build", "local has 2 GPUs: this build cannot shard"]);
        assert!(refused.iter().all(Refusal::is_final));
        assert!(right_size(Bytes::mib(100), false, &offers).is_err(), "nor is a replica placed there");
    }

    #[test]
    fn an_offer_without_a_price_is_waited_for() {
        let unpriced = Offer { no_price: Some("the entry is stale".into()), ..offer(200, 0, 1, 0) };
        let refused = right_size(Bytes::mib(100), true, std::slice::from_ref(&unpriced)).unwrap_err();
        assert_eq!(refused[0].to_string(), "local has no price now: the entry is stale");
        assert!(!refused[0].is_final(), "an administrator may refresh the entry");
        let device = OfferDevice::Cuda { product: "NVIDIA L4".into(), count: 1, memory: Bytes::mib(23_034) };
        let gpu = Offer { device, ..unpriced.clone() };
        let refused = unsupported(&gpu).unwrap();
        assert_eq!((refused.code(), refused.is_final()), ("no_price", true), "this build could not use it either");
        let other = offer(300, 0, 1, 9);
        assert_eq!(right_size(Bytes::mib(100), true, &[unpriced, other.clone()]), Ok(&other));
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
