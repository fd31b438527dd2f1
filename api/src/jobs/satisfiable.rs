//! The check that an offer can satisfy a job, before the job exists.

use attune_domain::{
    memory::{self, Workload},
    offer::{ComputeLimits, Offer, Refusal, refusal, unsupported},
    throughput::{PastRun, Rate},
};
use attune_store::runs::{offer, past_runs, provider};
use chrono::Utc;

use crate::{app::App, error::ApiError, jobs::prepare::Made, wire::job::NewJob};

/// The machines, as they are known when a job is created.
#[derive(Debug, Default)]
pub struct Machines {
    /// The offers as if they were idle; empty: none is known, or a provider that may have others does not answer.
    offers: Vec<Offer>,
    /// Earlier runs, if the request limits the cost or the end of the job.
    past: Vec<PastRun>,
}

/// Reads the machines for the check of a request.
///
/// # Errors
/// [`ApiError::Internal`].
pub async fn machines(app: &App, new: &NewJob) -> Result<Machines, ApiError> {
    let mut db = app.platform().await?;
    if provider::list(&mut db, i64::MAX).await?.iter().any(|provider| provider.unreachable.is_some()) {
        return Ok(Machines::default());
    }
    let depends_on_duration =
        new.compute.as_ref().is_some_and(|compute| compute.max_usd.is_some() || compute.deadline.is_some());
    let past = if depends_on_duration { past_runs::recent(&mut db).await? } else { Vec::new() };
    Ok(Machines { offers: offer::current(&mut db).await?, past })
}

/// Checks that an offer of the configured providers can run a job. The files are not counted yet, so the check takes
/// what every file of rows needs at least: the memory for the shortest possible row, and the time of a run outside of
/// its steps. Without any offer, the job waits for one; so it does for an offer whose price is unknown now.
///
/// # Errors
/// [`ApiError::Invalid`] with the reason of each offer.
pub fn check(machines: &Machines, made: &Made) -> Result<(), ApiError> {
    let work = Workload { architecture: &made.base.architecture, train: &made.row.spec, longest_row: 1 };
    let overhead = |offer: &Offer| {
        Rate::on_offer(&machines.past, made.base.base_model_id, &made.base.architecture, offer).overhead_seconds
    };
    let least = Least { work, overhead: &overhead, now: Utc::now().timestamp() as f64 };
    match refusals(&made.row.limits, &machines.offers, &least) {
        None => Ok(()),
        Some(refusals) => Err(refused(&made.row.limits, &refusals)),
    }
}

/// The least needs of a job.
struct Least<'a> {
    /// The job with the shortest possible row.
    work: Workload<'a>,
    /// The time of a run on an offer outside of its steps, in seconds.
    overhead: &'a dyn Fn(&Offer) -> f64,
    /// The present time, in Unix seconds.
    now: f64,
}

/// Returns the reason of each offer, if the job can use none of them; `None`: it can, or there is none.
fn refusals(limits: &ComputeLimits, offers: &[Offer], least: &Least<'_>) -> Option<Vec<Refusal>> {
    let need = memory::smallest(least.work).needed();
    let late = |offer: &Offer| {
        let seconds = limits.depend_on_duration().then(|| (least.overhead)(offer))?;
        limits.refusal_for(offer, seconds, least.now)
    };
    let reason = |offer: &Offer| {
        let of_limits = || limits.refusal(offer).or_else(|| late(offer));
        unsupported(offer).or_else(of_limits).or_else(|| refusal(need, true, offer))
    };
    let refused: Vec<Refusal> = offers.iter().filter_map(reason).filter(Refusal::is_final).collect();
    (!offers.is_empty() && refused.len() == offers.len()).then_some(refused)
}

/// Returns the error of a job that every offer refuses. Its field is `compute` if the request has limits or an offer
/// refuses the job for another reason than its memory; else `model`, whose memory no machine has.
fn refused(limits: &ComputeLimits, refusals: &[Refusal]) -> ApiError {
    let is_compute = *limits != ComputeLimits::default() || !refusals.iter().all(Refusal::is_memory);
    let param = if is_compute { "compute" } else { "model" };
    let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    ApiError::Invalid {
        param: Some(param.into()),
        code: "no_offer",
        message: format!("Invalid '{param}': no machine satisfies it: {}.", reasons.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        bytes::Bytes,
        offer::{DeviceChoice, OfferDevice},
        spec::{Requested, TrainSpec},
    };

    use super::*;

    const TINY: &str = include_str!("../../../domain/testdata/tiny.json");

    fn offer(name: &str, price: u64) -> Offer {
        let device = match name {
            "gpu" => OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_487) },
            _ => OfferDevice::Cpu,
        };
        let idle = Offer::cpu("cloud", name, Bytes::mib(4000), 2);
        Offer { free_slots: 0, micro_usd_per_hour: price, device, ..idle }
    }

    /// Returns the refusals of a job whose runs take 36 seconds outside of their steps, at the time 1000.
    fn refused_by(limits: &ComputeLimits, offers: &[Offer]) -> Option<Vec<Refusal>> {
        let architecture = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let train = TrainSpec::check(&Requested::default(), 100, 512).unwrap();
        let work = Workload { architecture: &architecture, train: &train, longest_row: 1 };
        refusals(limits, offers, &Least { work, overhead: &|_| 36.0, now: 1000.0 })
    }

    fn codes(limits: &ComputeLimits, offers: &[Offer]) -> Vec<&'static str> {
        refused_by(limits, offers).unwrap().iter().map(Refusal::code).collect()
    }

    #[test]
    fn only_limits_that_refuse_every_offer_are_refused() {
        let dear = ComputeLimits { max_micro_usd_per_hour: Some(5), ..ComputeLimits::default() };
        assert_eq!(refused_by(&dear, &[]), None, "the job waits for the first offer");
        assert_eq!(refused_by(&dear, &[offer("a", 6), offer("b", 5)]), None);
        assert_eq!(codes(&dear, &[offer("a", 6), offer("gpu", 1)]), ["price", "device_not_in_build"]);
        let cuda = ComputeLimits { device: DeviceChoice::Cuda, ..ComputeLimits::default() };
        assert_eq!(codes(&cuda, &[offer("a", 0), offer("gpu", 0)]), ["other_device", "device_not_in_build"]);
    }

    #[test]
    fn the_cost_and_the_end_of_the_shortest_run_are_limited() {
        let cost = |most| ComputeLimits { max_micro_usd: Some(most), ..ComputeLimits::default() };
        assert_eq!(codes(&cost(9), &[offer("a", 1000)]), ["cost"], "36 seconds cost 10");
        assert_eq!(refused_by(&cost(10), &[offer("a", 1000)]), None);
        let end = |deadline| ComputeLimits { deadline: Some(deadline), ..ComputeLimits::default() };
        assert_eq!(codes(&end(1035), &[offer("a", 0)]), ["deadline"]);
        assert_eq!(refused_by(&end(1036), &[offer("a", 0)]), None);
    }

    #[test]
    fn without_limits_a_machine_must_exist_that_the_job_may_use_and_that_has_the_memory() {
        let any = ComputeLimits::default();
        let spot = Offer { spot: true, ..offer("spot", 1) };
        let small = Offer { memory: Bytes::mib(1), ..offer("small", 1) };
        assert_eq!(codes(&any, &[spot, offer("gpu", 1), small.clone()]), ["spot", "device_not_in_build", "too_small"]);
        assert_eq!(refused_by(&any, &[offer("a", 1), small.clone()]), None);
        let unpriced = Offer { no_price: Some("stale".into()), ..offer("unpriced", 1) };
        assert_eq!(refused_by(&any, &[small.clone(), unpriced]), None, "the price may be known later");

        let param = |limits: &ComputeLimits, offers: &[Offer]| {
            refused(limits, &refused_by(limits, offers).unwrap()).body().error.param.unwrap()
        };
        assert_eq!(param(&any, std::slice::from_ref(&small)), "model");
        assert_eq!(param(&any, &[offer("gpu", 1)]), "compute");
        assert_eq!(param(&ComputeLimits { spot: true, ..any }, &[small]), "compute");
    }
}
