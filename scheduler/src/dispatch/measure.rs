//! The memory that a waiting job needs and the expected duration of its run, computed once and kept in its row, so that
//! a plan loads no base models.

use std::collections::HashMap;

use attune_domain::{
    bytes::Bytes,
    id::BaseModelId,
    offer::{Offer, Slowness, prospect},
    throughput::{JobFacts, JobTokens, PastRun, Rate, TokenCost},
};
use attune_process::error_chain::chain;
use attune_store::{
    error::StoreError,
    jobs::{
        snapshot::{self, Measures},
        terms::UNKNOWN_SECONDS,
    },
    runs::past_runs,
};
use sqlx::PgConnection;

use super::work::{Work, load_all};

/// The maximum number of jobs that one plan measures; the next plan continues.
const MEASURED_AT_ONCE: i64 = 1000;

/// The rates of base models on offers, from earlier runs; each is computed once.
struct Rates {
    past: Vec<PastRun>,
    known: HashMap<(BaseModelId, String, String), Rate>,
}

impl Rates {
    fn of(&mut self, work: &Work, offer: &Offer) -> &Rate {
        let base = work.job.base_model_id;
        let found = || Rate::on_offer(&self.past, base, &work.architecture, offer);
        self.known.entry((base, offer.provider.clone(), offer.name.clone())).or_insert_with(found)
    }
}

/// Measures the waiting jobs that were not measured since their last run. They are read and written together.
pub(super) async fn all(conn: &mut PgConnection, offers: &[Offer]) -> Result<(), StoreError> {
    let ids = snapshot::unmeasured(conn, MEASURED_AT_ONCE).await?;
    if ids.is_empty() {
        return Ok(());
    }
    let mut measured = Vec::with_capacity(ids.len());
    let mut rates = Rates { past: past_runs::recent(conn).await?, known: HashMap::new() };
    for (id, work) in load_all(conn, &ids).await? {
        match work {
            Ok(work) => measured.push((id, measure(&work, offers, &mut rates))),
            Err(error) => tracing::error!(job.id = %id, error = chain(&error), "a waiting job cannot be read"),
        }
    }
    snapshot::measure(conn, &measured).await
}

fn measure(work: &Work, offers: &[Offer], rates: &mut Rates) -> Measures {
    let allowed = work.allowed(offers);
    let need = work.need(&allowed);
    let usable = large_enough(need, allowed);
    let Expected { seconds, slowness } = expected(work, &usable, rates);
    Measures { need, seconds, slowness }
}

/// Returns the offers that have the memory for a job when they are idle.
fn large_enough(need: Bytes, mut offers: Vec<Offer>) -> Vec<Offer> {
    offers.retain(|offer| offer.is_large_enough(need));
    offers
}

/// The expected duration of the rest of a job.
struct Expected {
    /// The seconds from the launch to the end, on the offer on which the job costs least.
    seconds: f64,
    /// The duration on each offer, relative to that.
    slowness: Vec<Slowness>,
}

/// Returns the expected duration of the rest of the job.
fn expected(work: &Work, offers: &[Offer], rates: &mut Rates) -> Expected {
    let unknown = Expected { seconds: UNKNOWN_SECONDS, slowness: Vec::new() };
    let Some(facts) = &work.job.token_facts else { return unknown };
    let tokens = JobTokens::of(&work.job.spec, facts.training, facts.validation);
    let facts = JobFacts { training: facts.training, validation: facts.validation };
    let on = |offer| {
        let cost = TokenCost::on_offer(work.workload(), facts, work.job.kept.as_ref(), offer);
        let rate = rates.of(work, offer);
        (rate.tokens_per_second(cost), rate.seconds(cost, tokens).likely)
    };
    let (speeds, seconds): (Vec<_>, Vec<_>) = offers.iter().map(on).unzip();
    let speeds: Vec<_> = speeds.into_iter().map(Some).collect();
    let Some((first, slowness)) = prospect(offers, &speeds) else { return unknown };
    Expected { seconds: seconds[first] * share_left(work.job.steps_done, work.job.total_steps), slowness }
}

/// Returns the share of the steps that are not done.
fn share_left(done: i64, total: Option<i64>) -> f64 {
    let Some(total) = total.filter(|total| *total > 0) else { return 1.0 };
    (1.0 - done as f64 / total as f64).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_job_is_its_share_of_the_steps() {
        let shares =
            [share_left(0, None), share_left(0, Some(0)), share_left(25, Some(100)), share_left(200, Some(100))];
        assert_eq!(shares, [1.0, 1.0, 0.75, 0.0]);
    }

    #[test]
    fn the_offers_of_an_estimate_are_those_that_are_large_enough_when_idle() {
        let offer = |name: &str, mib: u64, price: u64| Offer {
            reserved: Bytes::mib(mib),
            free_slots: 0,
            micro_usd_per_hour: price,
            ..Offer::cpu("local", name, Bytes::mib(mib), 2)
        };
        let offers = vec![offer("small", 10, 0), offer("dear", 200, 9), offer("right", 300, 5)];
        assert!(large_enough(Bytes::mib(1000), offers.clone()).is_empty());
        let usable = large_enough(Bytes::mib(100), offers);
        // At the same rate, the cheaper one is expected; a faster one, if the job costs less on it.
        assert_eq!(prospect(&usable, &[Some(5.0), Some(5.0)]), Some((1, Vec::new())));
        assert_eq!(prospect(&usable, &[Some(15.0), Some(5.0)]).unwrap().0, 0);
    }
}
