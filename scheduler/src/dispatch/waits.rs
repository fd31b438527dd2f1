//! The places of the jobs that wait: positions, reasons and estimated starts.

use std::{collections::HashMap, sync::Arc};

use attune_domain::{
    bytes::Bytes,
    id::JobId,
    offer::{Offer, Ranking, Refusal, refusal},
    queue::{QueuePlan, Wait, WaitReason},
    run::Plan,
};
use attune_process::failpoint::FailPoint;
use attune_store::jobs::waiting::{self, Place};

use super::plan_words;
use crate::{app::App, error::SchedulerError, providers::market::Market, reconciler::ended};

/// The last position for which idle replicas are stopped. A deep queue has jobs enough in front that need memory.
const NEXT_POSITIONS: u32 = 50;

/// The facts about waiting jobs, by ID, on which their places depend.
pub(super) struct Waiting {
    pub(super) needs: HashMap<JobId, Bytes>,
    pub(super) rankings: HashMap<JobId, Arc<Ranking>>,
    pub(super) kept: HashMap<JobId, Plan>,
}

/// Stores the places of the jobs that wait, and stops idle replicas that hold the memory of one of the next.
pub(super) async fn store(
    app: &App,
    (market, offers): (&Market, &[Offer]),
    plan: &QueuePlan,
    waiting: &Waiting,
) -> Result<(), SchedulerError> {
    let (mut places, mut for_plan) = (Vec::with_capacity(plan.waits.len()), Vec::new());
    let mut is_crowded = false;
    for wait in &plan.waits {
        let refusals = waiting.refusals(wait, offers);
        is_crowded |= refusals.iter().any(|refusal| matches!(refusal, Refusal::Crowded { .. }));
        let away = waiting.needs.get(&wait.job).and_then(|need| market.waits_for_provider(*need, offers));
        let kept = waiting.kept.get(&wait.job).filter(|_| away.is_none() && !refusals.is_empty());
        let reason = match (away, kept) {
            (Some(away), _) => away,
            (None, Some(kept)) => plan_words::waiting_for_plan(kept, &refusals),
            (None, None) => wait.reason.to_string(),
        };
        if kept.is_some() {
            for_plan.push((wait.job, reason.clone()));
        }
        let (job, position, estimated_start) = (wait.job, wait.position, wait.estimated_start);
        places.push(Place { job, position, reason, estimated_start });
    }
    let mut tx = app.begin().await?;
    waiting::store(&mut tx, &places).await?;
    if !for_plan.is_empty() {
        waiting::for_plan(&mut tx, &for_plan).await?;
    }
    tx.commit_at(FailPoint::DispatchWaits).await?;
    if is_crowded {
        ended::stop_idle_replicas(app).await?;
    }
    Ok(())
}

impl Waiting {
    /// Returns the reasons why no offer has room for a job now. Empty if one has, if the job waits for a limit of its
    /// project, or if it is far behind and has no plan to keep: then nothing depends on them.
    fn refusals(&self, wait: &Wait, offers: &[Offer]) -> Vec<Refusal> {
        let is_limited = matches!(wait.reason, WaitReason::Quota { .. } | WaitReason::NodeHours { .. });
        let is_of_use = wait.position <= NEXT_POSITIONS || self.kept.contains_key(&wait.job);
        let Some(need) = self.needs.get(&wait.job).filter(|_| is_of_use && !is_limited) else { return Vec::new() };
        let refused = |offer: &Offer| refusal(*need, true, offer);
        let refusals: Option<Vec<Refusal>> = match self.rankings.get(&wait.job) {
            None => offers.iter().map(refused).collect(),
            Some(ranking) => ranking.order.iter().map(|&index| refused(&offers[index])).collect(),
        };
        refusals.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        offer::{ComputeLimits, Terms},
        placement::Placement,
    };
    use attune_store::ids;

    use super::*;

    fn offer(name: &str, mib: u64, free_slots: usize) -> Offer {
        let (reserved, idle) = (Bytes::mib(50), Offer::cpu("local", name, Bytes::mib(mib), 2));
        Offer { reserved, free_slots, micro_usd_per_hour: mib, ..idle }
    }

    fn plan() -> Plan {
        Plan {
            micro_batch_size: 4,
            micro_batch_tokens: 1024,
            checkpointing: false,
            threads: 2,
            predicted_peak: Bytes::mib(80),
            placement: Placement::default(),
        }
    }

    #[test]
    fn refusals_are_computed_for_the_next_jobs_and_for_those_that_keep_a_plan() {
        let job: JobId = ids::id();
        let wait = |position, reason| Wait { job, position, reason, estimated_start: None };
        let ahead = |position| wait(position, WaitReason::Ahead { jobs: 1 });
        let mut waiting =
            Waiting { needs: HashMap::from([(job, Bytes::mib(80))]), rankings: HashMap::new(), kept: HashMap::new() };
        let offers = [offer("crowded", 100, 1), offer("full", 200, 0)];
        let codes = |waiting: &Waiting, wait: &Wait, offers: &[Offer]| -> Vec<&'static str> {
            waiting.refusals(wait, offers).iter().map(Refusal::code).collect()
        };
        assert_eq!(codes(&waiting, &ahead(NEXT_POSITIONS), &offers), ["crowded", "no_slot"]);
        assert_eq!(codes(&waiting, &ahead(NEXT_POSITIONS + 1), &offers), [""; 0]);
        let limited = wait(1, WaitReason::Quota { running: 1, max_running: 1 });
        assert_eq!(codes(&waiting, &limited, &offers), [""; 0]);
        waiting.kept.insert(job, plan());
        assert_eq!(codes(&waiting, &ahead(NEXT_POSITIONS + 1), &offers), ["crowded", "no_slot"]);
        let free = [offer("crowded", 100, 1), offer("free", 300, 1)];
        assert_eq!(codes(&waiting, &ahead(1), &free), [""; 0], "one has room");

        // Of an offer that the limits of the job exclude, the room does not count.
        let limits = ComputeLimits { max_micro_usd_per_hour: Some(200), ..ComputeLimits::default() };
        let ranking = Ranking::of(&free, Terms { limits: &limits, seconds: 60.0, slowness: &[], now: 0.0 });
        waiting.rankings.insert(job, Arc::new(ranking));
        assert_eq!(codes(&waiting, &ahead(1), &free), ["crowded"]);
    }
}
