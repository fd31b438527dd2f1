//! The rows that a decision about a job needs.

use std::{collections::HashMap, sync::Arc};

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    id::{BaseModelId, JobId},
    memory::{self, Workload},
    offer::{Offer, Ranking, unsupported},
};
use attune_store::{
    adapters::base_model,
    error::StoreError,
    jobs::candidate::{self, Candidate},
};
use sqlx::PgConnection;

/// The architectures of base models that were loaded already.
type Bases = HashMap<BaseModelId, Arc<Architecture>>;

/// A job with its base model.
pub(super) struct Work {
    pub(super) job: Candidate,
    pub(super) architecture: Arc<Architecture>,
}

/// Loads jobs, each row and each base model once. A job that does not exist has no entry. One that cannot be read has
/// the error as its entry.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn load_all(
    conn: &mut PgConnection,
    ids: &[JobId],
) -> Result<HashMap<JobId, Result<Work, StoreError>>, StoreError> {
    let (mut works, mut bases) = (HashMap::new(), Bases::new());
    for (id, candidate) in candidate::load(conn, ids).await? {
        let work = match candidate {
            Ok(job) => with_architecture(conn, job, &mut bases).await,
            Err(error) => Err(error),
        };
        match work {
            Err(error @ StoreError::Database(_)) => return Err(error),
            work => works.insert(id, work),
        };
    }
    Ok(works)
}

/// Loads one job.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`], [`StoreError::Corrupt`].
pub(super) async fn load(conn: &mut PgConnection, id: JobId) -> Result<Work, StoreError> {
    load_all(conn, &[id]).await?.remove(&id).unwrap_or(Err(StoreError::NotFound("fine-tuning job")))
}

async fn with_architecture(conn: &mut PgConnection, job: Candidate, bases: &mut Bases) -> Result<Work, StoreError> {
    if let Some(known) = bases.get(&job.base_model_id) {
        return Ok(Work { job, architecture: known.clone() });
    }
    let architecture = Arc::new(base_model::get(conn, job.base_model_id).await?.architecture);
    bases.insert(job.base_model_id, architecture.clone());
    Ok(Work { job, architecture })
}

impl Work {
    /// Returns the input of the memory estimate.
    pub(super) fn workload(&self) -> Workload<'_> {
        let (architecture, train) = (self.architecture.as_ref(), &self.job.spec);
        Workload { architecture, train, longest_row: longest_row(&self.job) }
    }

    /// Ranks the offers by the terms of the job.
    pub(super) fn ranking(&self, offers: &[Offer]) -> Ranking {
        Ranking::of(offers, self.job.terms.at(self.job.now, self.job.seconds))
    }

    /// Returns the offers on which the job may run.
    pub(super) fn admitted(&self, offers: &[Offer], ranking: &Ranking) -> Vec<Offer> {
        let least = self.job.above.map(|above| need_above(above, &self.allowed(offers)));
        let admits = |offer: &&Offer| least.is_none_or(|need| offer.is_large_enough(need));
        let ranked = ranking.order.iter().map(|&index| &offers[index]);
        ranked.filter(admits).cloned().collect()
    }

    /// Returns the offers whose device is in this build and that the limits of the job allow, whatever their memory.
    /// Those whose price is unknown now are among them: a job waits for one that holds its plan.
    pub(super) fn allowed(&self, offers: &[Offer]) -> Vec<Offer> {
        let limits = &self.job.terms.limits;
        let is_usable = |offer: &Offer| unsupported(offer).is_none_or(|refusal| !refusal.is_final());
        let is_allowed = |offer: &&Offer| is_usable(offer) && limits.refusal(offer).is_none();
        offers.iter().filter(is_allowed).cloned().collect()
    }

    /// Returns the memory that the job needs at least, with the default margin. A job that was trained before needs
    /// that of its plan, unless no offer can ever hold it: then it gets another plan. One that ran out of memory needs
    /// more than it had.
    pub(super) fn need(&self, offers: &[Offer]) -> Bytes {
        let work = self.workload();
        let kept = self.job.kept.as_ref().map(|plan| memory::with_plan(work, plan).needed());
        let kept = kept.filter(|need| offers.iter().any(|offer| offer.is_large_enough(*need)));
        let need = kept.unwrap_or_else(|| memory::smallest(work).needed());
        self.job.above.map_or(need, |above| need.max(need_above(above, offers)))
    }
}

/// Returns the need with the default margin that no offer with as little memory as `above` holds.
fn need_above(above: Bytes, offers: &[Offer]) -> Bytes {
    let least = Bytes(above.0.saturating_add(1));
    offers.iter().map(|offer| offer.margin.need_of(least)).max().unwrap_or(least)
}

fn longest_row(job: &Candidate) -> u64 {
    let longest = job
        .token_facts
        .as_ref()
        .map(|facts| facts.training.longest_row.max(facts.validation.map_or(0, |validation| validation.longest_row)));
    longest.unwrap_or_else(|| job.spec.trainer.max_length.into()).max(1)
}

#[cfg(test)]
mod tests {
    use attune_domain::memory::Margin;

    use super::*;

    #[test]
    fn a_job_that_ran_out_of_memory_needs_more_on_every_kind_of_machine() {
        let above = Bytes::mib(1000);
        let offer = |bytes: u64, percent| Offer {
            margin: Margin::measured(percent),
            ..Offer::cpu("local", "a", Bytes(bytes), 2)
        };
        let default = Offer::cpu("local", "a", above, 2);
        assert_eq!(need_above(above, &[]), Bytes(above.0 + 1));
        assert_eq!(need_above(above, std::slice::from_ref(&default)), Bytes(above.0 + 1));
        // With one margin, some bytes more are enough: conversions round up.
        for percent in [5, 10, 30] {
            let need = need_above(above, &[offer(above.0, percent)]);
            assert_eq!([0, 3].map(|more| offer(above.0 + more, percent).is_large_enough(need)), [false, true]);
        }
        // With several, none with as little memory is large enough.
        let mixed = [offer(above.0, 5), default, offer(above.0, 30)];
        let need = need_above(above, &mixed);
        assert!(mixed.iter().all(|offer| !offer.is_large_enough(need)));
    }
}
