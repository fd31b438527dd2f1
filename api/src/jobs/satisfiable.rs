//! The checks that an offer can satisfy a job, or hold a replica, before the job or the deployment exists.

use attune_domain::{
    bytes::Bytes,
    memory::{self, ServedModels, Workload},
    offer::{ComputeLimits, Offer, Refusal, ReplicaDevice, ReplicaKind, refusal, replica_refusal, unsupported},
    throughput::{PastRun, Rate},
};
use attune_store::{
    error::StoreError,
    runs::{offer, past_runs, provider},
};
use chrono::Utc;
use sqlx::PgConnection;

use crate::{app::App, error::ApiError, jobs::prepare::Made, wire::job::NewJob};

/// The machines, as they are known when a job is created.
#[derive(Debug, Default)]
pub struct Machines {
    /// The offers, as [`idle_offers`] returns them.
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
    let offers = idle_offers(&mut db).await?;
    if offers.is_empty() {
        return Ok(Machines::default());
    }
    let depends_on_duration =
        new.compute.as_ref().is_some_and(|compute| compute.max_usd.is_some() || compute.deadline.is_some());
    let past = if depends_on_duration { past_runs::recent(&mut db).await? } else { Vec::new() };
    Ok(Machines { offers, past })
}

/// Returns the offers as if they were idle; empty: none is known, or a provider that may have others does not answer.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn idle_offers(db: &mut PgConnection) -> Result<Vec<Offer>, StoreError> {
    if provider::list(db, i64::MAX).await?.iter().any(|provider| provider.unreachable.is_some()) {
        return Ok(Vec::new());
    }
    offer::current(db).await
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

/// Checks that an offer that stays can hold a replica of a base, even if others use it now. Without any offer, the
/// replica waits for one.
///
/// # Errors
/// [`ApiError::Invalid`] with the reason of each offer.
pub fn check_replica(served: ServedModels<'_>, kind: ReplicaKind, offers: &[Offer]) -> Result<(), ApiError> {
    // As the scheduler places it, with the margin.
    let need = memory::serving(served, served.least_budget()).needed();
    let refusals: Vec<String> = offers.iter().filter_map(|offer| final_refusal(need, kind, offer)).collect();
    if offers.is_empty() || refusals.len() < offers.len() {
        return Ok(());
    }
    let param = if kind.device == ReplicaDevice::Auto { "model" } else { "device" };
    let reasons = refusals.join("; ");
    Err(ApiError::Invalid {
        param: Some(param.into()),
        code: "no_offer",
        message: format!("Invalid '{param}': a replica needs at least {need} of memory, but {reasons}."),
    })
}

/// Returns the reason why an offer can never hold a replica.
fn final_refusal(need: Bytes, kind: ReplicaKind, offer: &Offer) -> Option<String> {
    if offer.spot {
        return Some(format!("{} is a spot machine, and replicas need one that stays", offer.name));
    }
    replica_refusal(need, kind, offer).filter(Refusal::is_final).map(|refusal| refusal.to_string())
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
        offer::{DeviceChoice, OfferDevice},
        placement::ServedCompute,
        spec::{Quantization, Requested, TrainSpec},
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

    #[test]
    fn a_replica_that_no_machine_can_hold_is_refused_with_every_reason() {
        let architecture = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let served = ServedModels::new(&architecture, Quantization::None, ServedCompute::F32);
        let check = |offers: &[Offer]| check_replica(served, ReplicaKind::default(), offers);
        let small = Offer { memory: Bytes::mib(100), ..offer("small", 0) };
        let busy = Offer { reserved: Bytes::mib(4000), ..offer("busy", 0) };
        assert!(check(&[]).is_ok(), "the replica waits for the first offer");
        assert!(check(&[small.clone(), busy]).is_ok(), "it waits for room");
        let unpriced = Offer { no_price: Some("stale".into()), ..offer("unpriced", 0) };
        assert!(check(&[small.clone(), unpriced]).is_ok(), "the price may be known later");
        let refused = check(&[small, offer("gpu", 0)]).unwrap_err().body().error;
        assert_eq!((refused.code, refused.param.as_deref()), (Some("no_offer"), Some("model")));
        assert!(refused.message.contains("small has"), "{}", refused.message);
        assert!(refused.message.contains("gpu: the device cuda is not in this build"), "{}", refused.message);
        let spot = Offer { spot: true, ..offer("spot", 0) };
        assert!(check(&[spot]).unwrap_err().body().error.message.contains("spot is a spot machine"));
        let cuda = ReplicaKind { device: ReplicaDevice::Cuda, ..ReplicaKind::default() };
        let refused = check_replica(served, cuda, &[offer("a", 0), offer("gpu", 0)]);
        let refused = refused.unwrap_err().body().error;
        assert_eq!((refused.code, refused.param.as_deref()), (Some("no_offer"), Some("device")));
        assert!(refused.message.contains("a has the device cpu, and device is cuda"), "{}", refused.message);
        assert!(refused.message.contains("gpu: the device cuda is not in this build"), "{}", refused.message);
    }

    #[test]
    fn a_machine_must_hold_the_margin_too() {
        let architecture = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let served = ServedModels::new(&architecture, Quantization::None, ServedCompute::F32);
        let least = memory::serving(served, served.least_budget());
        let check = |memory: Bytes| check_replica(served, ReplicaKind::default(), &[Offer { memory, ..offer("a", 0) }]);
        assert!(check(least.needed()).is_ok());
        assert!(check(Bytes(least.needed().0 - 1)).is_err(), "the scheduler would not place it");
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
