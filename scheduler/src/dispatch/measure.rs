//! The memory that a waiting job needs and the expected duration of its run, computed once and kept in its row, so that
//! a plan loads no base models.

use std::collections::HashMap;

use attune_domain::{
    bytes::Bytes,
    id::BaseModelId,
    offer::Offer,
    throughput::{JobTokens, Source, Throughput},
};
use attune_store::{
    error::StoreError,
    jobs::snapshot::{self, Measures, UNKNOWN_SECONDS},
    runs::offer,
};
use sqlx::PgConnection;

use super::work::{Bases, Work};

/// The maximum number of jobs that one plan measures; the next plan continues.
const MEASURED_AT_ONCE: i64 = 1000;

/// Measured throughputs by base, provider and offer; `None`: there was no run yet.
type Throughputs = HashMap<(BaseModelId, String, String), Option<Throughput>>;

/// Measures the waiting jobs that were not measured since their last run.
pub(super) async fn all(conn: &mut PgConnection, offers: &[Offer]) -> Result<(), StoreError> {
    let (mut bases, mut throughputs) = (Bases::new(), Throughputs::new());
    for id in snapshot::unmeasured(conn, MEASURED_AT_ONCE).await? {
        let work = Work::load(conn, id, &mut bases).await?;
        let need = work.need(offers);
        let seconds = seconds(conn, &work, smallest_offer(need, offers), &mut throughputs).await?;
        snapshot::measure(conn, id, Measures { need, seconds }).await?;
    }
    Ok(())
}

/// Returns the offer that an idle platform would use.
fn smallest_offer(need: Bytes, offers: &[Offer]) -> Option<&Offer> {
    offers.iter().filter(|offer| offer.memory >= need).min_by_key(|offer| offer.preference())
}

/// Returns the expected duration of the rest of the job, from the launch to the end.
async fn seconds(
    conn: &mut PgConnection,
    work: &Work,
    offer: Option<&Offer>,
    known: &mut Throughputs,
) -> Result<f64, StoreError> {
    let (Some(offer), Some(facts)) = (offer, &work.job.token_facts) else { return Ok(UNKNOWN_SECONDS) };
    let checkpointing = work.kept.as_ref().is_some_and(|plan| plan.checkpointing);
    let throughput = measured(conn, work.job.base_model_id, offer, known)
        .await?
        .unwrap_or_else(|| Throughput::assumed(&work.architecture, offer.threads, checkpointing));
    let whole = throughput.seconds(JobTokens::of(&work.job.spec, facts.training, facts.validation)).likely;
    Ok(whole * share_left(work.job.steps_done, work.job.total_steps))
}

/// Returns the share of the steps that are not done.
fn share_left(done: i64, total: Option<i64>) -> f64 {
    let Some(total) = total.filter(|total| *total > 0) else { return 1.0 };
    (1.0 - done as f64 / total as f64).clamp(0.0, 1.0)
}

async fn measured(
    conn: &mut PgConnection,
    base: BaseModelId,
    offer: &Offer,
    known: &mut Throughputs,
) -> Result<Option<Throughput>, StoreError> {
    let key = (base, offer.provider.clone(), offer.name.clone());
    if let Some(found) = known.get(&key) {
        return Ok(*found);
    }
    let seen = offer::throughput(conn, offer, base).await?;
    let found = seen.map(|seen| Throughput { tokens_per_second: seen.tokens_per_second, source: Source::Measured });
    known.insert(key, found);
    Ok(found)
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
    fn the_offer_of_an_estimate_is_the_cheapest_that_is_large_enough_when_idle() {
        let offer = |name: &str, mib: u64, price: u64| Offer {
            provider: "local".into(),
            name: name.into(),
            memory: Bytes::mib(mib),
            reserved: Bytes::mib(mib),
            free_slots: 0,
            threads: 2,
            micro_usd_per_hour: price,
        };
        let offers = [offer("small", 10, 0), offer("dear", 200, 9), offer("right", 300, 5)];
        let name = |need| smallest_offer(Bytes::mib(need), &offers).map(|offer| offer.name.clone());
        assert_eq!(name(100).as_deref(), Some("right"));
        assert_eq!(name(1000), None);
        // The found offer is the given one, with its reservations.
        assert_eq!(smallest_offer(Bytes::mib(100), &offers).unwrap().reserved, Bytes::mib(300));
    }
}
