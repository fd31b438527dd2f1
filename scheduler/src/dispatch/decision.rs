//! The decision about one job: the offer and the plan, a refusal, or to wait. Without I/O.

use attune_domain::{
    bytes::Bytes,
    memory::{MemoryEstimate, Workload},
    offer::{self, Offer, Ranking, Refusal, place, place_again},
    run::Plan,
};
use attune_store::jobs::{job::JobError, memory_ladder::OUT_OF_MEMORY};

use super::plan_words;

/// The code of the error of a job whose limits no offer satisfies.
const NO_OFFER: &str = "no_offer";

/// The placement of a job.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) plan: Plan,
    pub(super) offer: Offer,
    pub(super) estimate: MemoryEstimate,
    /// The event message that the user reads.
    pub(super) message: String,
    /// The warning, if the plan differs from the one that the job began with.
    pub(super) changed: Option<String>,
}

/// The decision about a job.
#[derive(Debug)]
pub(super) enum Decision {
    /// Start it.
    Place(Box<Placement>),
    /// Fail it: it will never fit.
    Refuse(JobError),
    /// Wait.
    Wait,
}

/// Decides about a job that the plan of the queue starts on the offer `chosen`, one of `offers`. It waits if that offer
/// has no room any more, or if the plan that it began with fits only on another one.
pub(super) fn decide_on(work: Workload<'_>, kept: Option<&Plan>, offers: &[Offer], chosen: &Offer) -> Decision {
    let is_chosen = |offer: &&Offer| (&offer.provider, &offer.name) == (&chosen.provider, &chosen.name);
    let only: Vec<Offer> = offers.iter().filter(is_chosen).cloned().collect();
    match decide(work, kept, &only) {
        Decision::Place(placement) if placement.changed.is_some() => match decide(work, kept, offers) {
            Decision::Place(anywhere) if anywhere.changed.is_some() => Decision::Place(placement),
            _ => Decision::Wait,
        },
        Decision::Refuse(_) => Decision::Wait,
        decision => decision,
    }
}

/// Decides about a job. A job that was trained before with the plan `kept` continues with that plan and waits for it,
/// so that its adapter equals that of an undisturbed job. Where no offer can ever hold that plan it gets another one,
/// and a warning.
pub(super) fn decide(work: Workload<'_>, kept: Option<&Plan>, offers: &[Offer]) -> Decision {
    let Some(kept) = kept else { return decide_anew(work, offers) };
    match place_again(work, kept, offers) {
        offer::Decision::Now { offer, plan, estimate } => {
            let message = format!(
                "Training on {}: {} of memory predicted ({}); {}, the plan of the job",
                offer.name,
                estimate.peak,
                estimate.breakdown(),
                plan.split_text()
            );
            let offer = offer.clone();
            Decision::Place(Box::new(Placement { plan, offer, estimate, message, changed: None }))
        }
        offer::Decision::Later(_) => Decision::Wait,
        offer::Decision::Never { smallest, refusals } => match decide_anew(work, offers) {
            Decision::Place(placement) => {
                let changed = Some(format!(
                    "The job cannot resume with its plan ({}), which needs {}: {}. It resumes with {}. \
                     The adapter will not be bit-identical to that of an undisturbed job",
                    kept.split_text(),
                    smallest.needed(),
                    plan_words::listed(&refusals),
                    placement.plan.split_text()
                ));
                Decision::Place(Box::new(Placement { changed, ..*placement }))
            }
            other => other,
        },
    }
}

/// Returns the error of a job that ran out of memory on an offer with as much as `above`, where none has more.
pub(super) fn no_larger(above: Bytes, offers: &[Offer]) -> JobError {
    let largest = match offers.iter().max_by_key(|offer| offer.memory) {
        Some(Offer { name, memory, .. }) => format!("the largest one, {name}, has {memory}"),
        None => "there is none any more".into(),
    };
    let message = format!("The job ran out of memory on a machine with {above} and needs one with more, but {largest}");
    JobError { code: OUT_OF_MEMORY.into(), message, param: None }
}

/// Returns the error of a job that is refused by an offer for another reason than its memory; `None`: by none. It names
/// the reason of each offer.
pub(super) fn no_offer(need: Bytes, offers: &[Offer], ranking: &Ranking) -> Option<JobError> {
    if ranking.order.len() == offers.len() {
        return None;
    }
    let refusals: Vec<Refusal> = offers
        .iter()
        .zip(&ranking.refused)
        .filter_map(|(offer, refused)| refused.clone().or_else(|| offer::refusal(need, true, offer)))
        .collect();
    let message = format!("No machine can run the job: {}", plan_words::listed(&refusals));
    let is_limit = |refusal: &Refusal| {
        !refusal.is_memory()
            && !matches!(refusal, Refusal::Device { .. } | Refusal::Sharded { .. } | Refusal::NoPrice { .. })
    };
    let param = refusals.iter().any(is_limit).then(|| "compute".into());
    Some(JobError { code: NO_OFFER.into(), message, param })
}

/// Decides about a job without a plan.
fn decide_anew(work: Workload<'_>, offers: &[Offer]) -> Decision {
    match place(work, offers) {
        offer::Decision::Now { offer, plan, estimate } => {
            let message = format!(
                "Training on {}: {} of memory predicted ({}); {}",
                offer.name,
                estimate.peak,
                estimate.breakdown(),
                plan_words::chosen(work, &plan)
            );
            let offer = offer.clone();
            Decision::Place(Box::new(Placement { plan, offer, estimate, message, changed: None }))
        }
        offer::Decision::Never { smallest, refusals } => {
            let reasons = plan_words::listed(&refusals);
            let (asked, param) = plan_words::asked_for(work.train);
            let message = format!(
                "The job{asked} needs at least {} of memory ({}), but {reasons}",
                smallest.needed(),
                smallest.breakdown()
            );
            let param = param.map(str::to_owned);
            Decision::Refuse(JobError { code: "insufficient_memory".into(), message, param })
        }
        offer::Decision::Later(_) => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        bytes::Bytes,
        memory::with_margin,
        offer::{ComputeLimits, Terms, right_size},
        spec::{
            Auto, Requested, TrainSpec,
            request::{Hyperparameters, TrainerFields},
        },
    };

    use super::*;

    const SMOLLM2: &str = include_str!("../../../domain/testdata/smollm2.json");

    fn placed(decision: Decision) -> Placement {
        match decision {
            Decision::Place(placement) => *placement,
            other => panic!("not placed: {other:?}"),
        }
    }

    fn decided(memory: u64, reserved: u64, free_slots: usize) -> Decision {
        asked(&Requested::default(), memory, reserved, free_slots)
    }

    fn asked(asked: &Requested, memory: u64, reserved: u64, free_slots: usize) -> Decision {
        let offer = offer(Bytes::mib(memory), Bytes::mib(reserved), free_slots);
        with_work(asked, |work| decide(work, None, &[offer]))
    }

    /// Decides for a job that began with `kept`, on a machine with a free slot.
    fn again(kept: &Plan, memory: Bytes, reserved: Bytes) -> Decision {
        with_work(&Requested::default(), |work| decide(work, Some(kept), &[offer(memory, reserved, 1)]))
    }

    fn offer(memory: Bytes, reserved: Bytes, free_slots: usize) -> Offer {
        Offer { reserved, free_slots, ..Offer::cpu("local", "this machine", memory, 2) }
    }

    fn with_work<T>(asked: &Requested, then: impl FnOnce(Workload<'_>) -> T) -> T {
        let architecture = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let train = TrainSpec::check(asked, 360, 8192).unwrap();
        then(Workload { architecture: &architecture, train: &train, longest_row: 200 })
    }

    #[test]
    fn a_machine_with_room_gets_the_job_with_its_prediction() {
        let Placement { plan, message, .. } = placed(decided(16_000, 0, 1));
        assert_eq!((plan.micro_batch_size, plan.checkpointing, plan.threads), (5, false, 2));
        assert!(message.starts_with("Training on this machine: 1.") && message.contains("activations"), "{message}");
    }

    #[test]
    fn with_less_room_the_plan_saves_memory() {
        let Placement { plan, .. } = placed(decided(16_000, 15_000, 1));
        assert!(plan.checkpointing);
    }

    #[test]
    fn a_machine_that_is_too_small_fails_the_job_with_the_terms() {
        let Decision::Refuse(error) = decided(300, 0, 1) else { panic!("not refused") };
        assert_eq!(error.code, "insufficient_memory");
        assert!(error.message.contains("embeddings 108.0 MiB"), "{}", error.message);
        assert!(error.message.contains("too little memory"), "{}", error.message);
    }

    #[test]
    fn what_was_requested_is_obeyed_or_refused_by_name() {
        let hyperparameters = Hyperparameters { batch_size: Auto(Some(64)), ..Hyperparameters::default() };
        let trainer = TrainerFields {
            micro_batch_size: Some(Auto(Some(64))),
            gradient_checkpointing: Some(Auto(Some(false))),
            ..TrainerFields::default()
        };
        let by_hand = Requested { hyperparameters, trainer, ..Requested::default() };
        let Placement { plan, message, .. } = placed(asked(&by_hand, 64_000, 0, 1));
        assert_eq!((plan.micro_batch_size, plan.checkpointing), (64, false));
        assert!(
            message.ends_with("micro_batch_size 64 (requested), gradient_checkpointing false (requested)"),
            "{message}"
        );

        let Decision::Refuse(error) = asked(&by_hand, 8_000, 0, 1) else { panic!("not refused") };
        let named =
            "The job with trainer.micro_batch_size 64 and trainer.gradient_checkpointing false, as requested, needs";
        assert!(error.message.starts_with(named), "{}", error.message);
        assert_eq!(error.param.as_deref(), Some("trainer.micro_batch_size"));
        // The same job fits when the planner may choose.
        let open = Requested { hyperparameters, ..Requested::default() };
        assert!(matches!(asked(&open, 8_000, 0, 1), Decision::Place(_)));
    }

    #[test]
    fn a_job_that_ran_out_of_memory_on_the_largest_machine_fails_with_both_sizes() {
        let error = no_larger(Bytes::mib(900), &[offer(Bytes::mib(800), Bytes(0), 1)]);
        assert_eq!((error.code.as_str(), error.param), ("out_of_memory", None));
        let said = "The job ran out of memory on a machine with 900.0 MiB and needs one with more, but the largest \
                    one, this machine, has 800.0 MiB";
        assert_eq!(error.message, said);
        assert!(no_larger(Bytes::mib(900), &[]).message.ends_with("but there is none any more"));
    }

    #[test]
    fn a_job_that_its_limits_exclude_fails_with_the_reason_of_every_offer() {
        let named = |name: &str, mib, price| Offer {
            name: name.into(),
            micro_usd_per_hour: price,
            ..offer(Bytes::mib(mib), Bytes(0), 1)
        };
        let offers = [named("dear", 16_000, 2_000_000), named("small", 10, 0)];
        let error = |most| {
            let limits = ComputeLimits { max_micro_usd_per_hour: most, ..ComputeLimits::default() };
            let ranking = Ranking::of(&offers, Terms { limits: &limits, seconds: 60.0, slowness: &[], now: 0.0 });
            no_offer(Bytes::mib(100), &offers, &ranking)
        };
        assert_eq!(error(None), None);
        let error = error(Some(1_000_000)).unwrap();
        assert_eq!((error.code.as_str(), error.param.as_deref()), ("no_offer", Some("compute")));
        let named = "No machine can run the job: dear costs 2.000000 USD per hour, above compute.max_usd_per_hour, \
                     1.000000; small has 90.0 MiB too little memory";
        assert_eq!(error.message, named);
    }

    #[test]
    fn a_machine_that_is_busy_lets_the_job_wait() {
        assert!(matches!(decided(16_000, 0, 0), Decision::Wait));
        assert!(matches!(decided(16_000, 15_900, 1), Decision::Wait));
    }

    #[test]
    fn case_15_a_plan_is_kept_waited_for_and_changed_only_with_a_warning() {
        let Placement { plan: kept, .. } = placed(decided(16_000, 0, 1));
        let (peak, need) = (kept.predicted_peak, with_margin(kept.predicted_peak));
        // With more memory, or exactly enough, nothing changes, whatever plan a new job would get.
        for (memory, reserved) in [(Bytes::mib(64_000), Bytes(0)), (Bytes(need.0 + 5), Bytes(5))] {
            let Placement { plan, message, changed, .. } = placed(again(&kept, memory, reserved));
            assert_eq!((&plan, changed), (&kept, None));
            assert!(
                message.ends_with("micro_batch_size 5, gradient_checkpointing false, the plan of the job"),
                "{message}"
            );
        }
        // Another process holds one byte too many: the job waits, though a smaller plan would fit.
        let crowded = Bytes((16_000 << 20) - need.0 + 1);
        assert!(matches!(again(&kept, Bytes::mib(16_000), crowded), Decision::Wait));
        let refused = right_size(need, true, &[offer(Bytes::mib(16_000), crowded, 1)]).unwrap_err();
        let reason = plan_words::waiting_for_plan(&kept, &refused);
        let said = "(micro_batch_size 5, gradient_checkpointing false): this machine has 1 B too little memory free";
        assert!(reason.ends_with(said), "{reason}");
        // There will never be enough: the job gets a smaller plan, with a warning.
        let Placement { plan, changed, .. } = placed(again(&kept, Bytes(need.0 - 1), Bytes(0)));
        let warning = changed.unwrap();
        assert!(plan.predicted_peak < peak && plan != kept);
        assert!(warning.contains("will not be bit-identical") && warning.contains("1 B too little"), "{warning}");
        // The smaller plan is then kept in turn.
        let Placement { plan: next, changed, .. } = placed(again(&plan, Bytes::mib(16_000), Bytes(0)));
        assert_eq!((next, changed), (plan, None));
    }

    #[test]
    fn a_kept_plan_waits_for_the_offer_that_holds_it() {
        let Placement { plan: kept, .. } = placed(decided(16_000, 0, 1));
        let small = Bytes(with_margin(kept.predicted_peak).0 - 1);
        let named = |name: &str, memory, free_slots| Offer { name: name.into(), ..offer(memory, Bytes(0), free_slots) };
        let on = |kept: Option<&Plan>, offers: &[Offer], chosen: usize| {
            with_work(&Requested::default(), |work| decide_on(work, kept, offers, &offers[chosen]))
        };
        let offers = [named("small", small, 1), named("large", Bytes::mib(16_000), 0)];
        // The large one is in use; on the small one the plan would change.
        assert!(matches!(on(Some(&kept), &offers, 0), Decision::Wait));
        assert!(matches!(on(Some(&kept), &offers, 1), Decision::Wait));
        // Without the large one, the plan changes.
        assert!(placed(on(Some(&kept), &offers[..1], 0)).changed.is_some());
        // A refusal by the chosen offer alone fails no job.
        let tiny = [named("tiny", Bytes::mib(1), 1), named("large", Bytes::mib(16_000), 1)];
        assert!(matches!(on(None, &tiny, 0), Decision::Wait));
        assert_eq!(placed(on(None, &tiny, 1)).offer.name, "large");
    }
}
