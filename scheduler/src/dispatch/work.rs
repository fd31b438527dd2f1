//! The rows that a decision about a job needs.

use std::{collections::HashMap, sync::Arc};

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    id::{BaseModelId, JobId},
    memory::{self, Workload},
    offer::Offer,
    run::Plan,
};
use attune_store::{
    adapters::base_model,
    error::StoreError,
    jobs::{
        job::{self, Job},
        memory_ladder, snapshot,
    },
};
use sqlx::PgConnection;

/// The architectures of base models that were loaded already.
pub(super) type Bases = HashMap<BaseModelId, Arc<Architecture>>;

/// A job with its base model, and the terms that its earlier runs set.
pub(super) struct Work {
    pub(super) job: Job,
    /// The plan to keep.
    pub(super) kept: Option<Plan>,
    /// The memory that an offer must exceed.
    pub(super) above: Option<Bytes>,
    pub(super) architecture: Arc<Architecture>,
}

impl Work {
    /// Loads a job; its base model only if it is not in `bases`.
    pub(super) async fn load(conn: &mut PgConnection, id: JobId, bases: &mut Bases) -> Result<Self, StoreError> {
        let job = job::load(conn, id).await?;
        let (mut kept, mut above) = (None, None);
        if job.attempts > 0 {
            kept = memory_ladder::kept_plan(conn, id).await?;
            above = snapshot::memory_above(conn, id).await?;
        }
        let architecture = match bases.get(&job.base_model_id) {
            Some(known) => known.clone(),
            None => {
                let loaded = Arc::new(base_model::get(conn, job.base_model_id).await?.architecture);
                bases.insert(job.base_model_id, loaded.clone());
                loaded
            }
        };
        Ok(Self { job, kept, above, architecture })
    }

    /// Returns the input of the memory estimate.
    pub(super) fn workload(&self) -> Workload<'_> {
        let (architecture, train) = (self.architecture.as_ref(), &self.job.spec);
        Workload { architecture, train, longest_row: longest_row(&self.job) }
    }

    /// Returns the offers on which the job may run.
    pub(super) fn admitted(&self, offers: &[Offer]) -> Vec<Offer> {
        let admits = |offer: &&Offer| self.above.is_none_or(|above| offer.memory > above);
        offers.iter().filter(admits).cloned().collect()
    }

    /// Returns the memory that the job needs at least. A job that was trained before needs that of its plan, unless no
    /// offer can ever hold it: then it gets another plan. One that ran out of memory needs more than it had.
    pub(super) fn need(&self, offers: &[Offer]) -> Bytes {
        let work = self.workload();
        let kept = self.kept.as_ref().map(|plan| memory::with_plan(work, plan).peak);
        let kept = kept.filter(|peak| offers.iter().any(|offer| offer.memory >= *peak));
        let need = kept.unwrap_or_else(|| memory::smallest(work).peak);
        self.above.map_or(need, |above| need.max(Bytes(above.0.saturating_add(1))))
    }
}

fn longest_row(job: &Job) -> u64 {
    let longest = job
        .token_facts
        .as_ref()
        .map(|facts| facts.training.longest_row.max(facts.validation.map_or(0, |validation| validation.longest_row)));
    longest.unwrap_or_else(|| job.spec.trainer.max_length.into()).max(1)
}
