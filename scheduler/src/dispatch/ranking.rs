//! The ranking of the offers for each waiting job, by its terms.

use std::{collections::HashMap, sync::Arc};

use attune_domain::{
    id::JobId,
    offer::{Offer, Ranking},
    queue::WaitingJob,
};
use attune_store::jobs::terms::JobTerms;

/// Ranks the offers for each job. Jobs with the same terms share a ranking; those without any have none, unless an
/// offer is a spot machine, which they do not allow, or has no price now.
pub(super) fn rank(waiting: &mut [WaitingJob], terms: &HashMap<JobId, JobTerms>, offers: &[Offer], now: f64) {
    let default = JobTerms::default();
    let is_open = offers.iter().all(|offer| !offer.spot && offer.no_price.is_none());
    let mut shared: HashMap<String, Arc<Ranking>> = HashMap::new();
    for job in waiting {
        let own = match terms.get(&job.job) {
            Some(own) => own,
            None if is_open => continue,
            None => &default,
        };
        let of = || Arc::new(Ranking::of(offers, own.at(now, job.seconds)));
        job.offers = Some(match own.limits.depend_on_duration() {
            true => of(),
            false => shared.entry(format!("{own:?}")).or_insert_with(of).clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        bytes::Bytes,
        offer::{ComputeLimits, Refusal},
    };
    use attune_store::ids;

    use super::*;

    fn offer(name: &str, price: u64) -> Offer {
        let spot = name == "spot";
        Offer { micro_usd_per_hour: price, spot, ..Offer::cpu("local", name, Bytes::mib(1000), 2) }
    }

    fn job(seconds: f64) -> WaitingJob {
        WaitingJob {
            job: ids::id(),
            project: ids::id(),
            priority: 0,
            since: 0.0,
            need: Bytes::mib(10),
            seconds,
            was_preempted: false,
            offers: None,
        }
    }

    fn limited(max_micro_usd_per_hour: Option<u64>, max_micro_usd: Option<u64>) -> JobTerms {
        let limits = ComputeLimits { max_micro_usd_per_hour, max_micro_usd, ..ComputeLimits::default() };
        JobTerms { limits, slowness: Vec::new() }
    }

    #[test]
    fn jobs_with_the_same_terms_share_a_ranking_and_those_with_a_cost_limit_have_their_own() {
        let mut waiting = [job(3600.0), job(3600.0), job(3600.0), job(7200.0), job(1.0)];
        let terms = HashMap::from([
            (waiting[0].job, limited(Some(5), None)),
            (waiting[1].job, limited(Some(5), None)),
            (waiting[2].job, limited(None, Some(9))),
            (waiting[3].job, limited(None, Some(9))),
        ]);
        let offers = [offer("a", 8), offer("b", 5)];
        rank(&mut waiting, &terms, &offers, 0.0);
        let ranking = |index: usize| waiting[index].offers.as_ref();
        assert!(Arc::ptr_eq(ranking(0).unwrap(), ranking(1).unwrap()));
        let order = |index: usize| ranking(index).unwrap().order.clone();
        assert_eq!([order(0), order(2), order(3)], [vec![1], vec![1, 0], Vec::new()]);
        assert!(ranking(4).is_none());
    }

    #[test]
    fn a_spot_machine_is_for_the_jobs_that_allow_it() {
        let mut waiting = [job(1.0), job(1.0)];
        let spot = JobTerms { limits: ComputeLimits { spot: true, ..ComputeLimits::default() }, slowness: Vec::new() };
        let terms = HashMap::from([(waiting[0].job, spot)]);
        rank(&mut waiting, &terms, &[offer("spot", 1), offer("a", 5)], 0.0);
        let order = |index: usize| waiting[index].offers.as_ref().unwrap().order.clone();
        assert_eq!([order(0), order(1)], [vec![0, 1], vec![1]]);
    }

    #[test]
    fn no_job_is_ranked_on_an_offer_without_a_price() {
        let mut waiting = [job(1.0)];
        let unpriced = Offer { no_price: Some("stale".into()), ..offer("unpriced", 1) };
        rank(&mut waiting, &HashMap::new(), &[unpriced, offer("a", 5)], 0.0);
        let ranking = waiting[0].offers.as_ref().unwrap();
        assert_eq!(ranking.order, [1]);
        assert_eq!(ranking.refused[0].as_ref().map(Refusal::code), Some("no_price"));
    }
}
