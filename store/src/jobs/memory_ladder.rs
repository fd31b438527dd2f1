//! Jobs whose run ran out of memory: the next run has a smaller plan or a larger offer (`domain::memory::ladder`), and
//! when none is left, the job fails. Such a run does not count among the job's attempts, and is refunded. The terms of
//! the next run are read by [`candidate`](crate::jobs::candidate).

use attune_domain::{
    bytes::Bytes,
    id::{JobId, RunId},
    job::{JobEvent, JobState},
    memory::ladder::{self, Failed, Rung, Skipped},
    offer::{ComputeLimits, Offer, unsupported},
    run::Plan,
    spec::TrainSpec,
};
use attune_process::metrics::MEMORY_RUNGS;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    error::{StoreError, json as from_json, to_json},
    jobs::{
        checkpoint,
        job::{self, JobError, Step},
        job_event::{self, Level},
        terms::read_limits,
    },
    runs::{offer, run::Run},
    tenancy::usage::{self, NodeTime},
};

/// The `code` of the event of each rung, and of the error of a job for which none is left.
pub const OUT_OF_MEMORY: &str = "out_of_memory";

/// Returns whether the run's plan may not fit: a run of its job ran out of memory, or this is the first run and its
/// plan takes most of the memory that its offer has left.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn may_run_out(conn: &mut PgConnection, run: &Run) -> Result<bool, StoreError> {
    let row = sqlx::query!(
        r#"select exists (select from run where job_id = $1 and outcome = 'out_of_memory') as "is_rung!",
             (offer.memory - (select coalesce(sum(other.memory), 0) from node as other
                 where other.provider = node.provider and other.offer = node.offer and other.released_at is null
                     and other.node_id <> node.node_id))::bigint as free
         from node left join offer on offer.provider = node.provider and offer.name = node.offer
         where node.node_id = $2"#,
        run.job_id.uuid(),
        run.node_id.uuid(),
    )
    .fetch_one(conn)
    .await?;
    let is_new = run.attempt == 1 && run.resume_id.is_none();
    let is_tight = |free| ladder::is_tight(run.plan.predicted_peak, Bytes::from_i64(free));
    Ok(row.is_rung || (is_new && row.free.is_some_and(is_tight)))
}

/// A run that ran out of memory, with the figures of its event.
struct Spent {
    failed: Failed,
    offer: String,
    predicted: Bytes,
    /// The peak that the trainer reported last; `None`: it reported none.
    peak: Option<Bytes>,
    spec: TrainSpec,
}

/// Moves the job of an ended run that ran out of memory to its next rung, and refunds the run. The caller holds the
/// rows of the run and of the job, which is in the state `held`, and sends the message for a job that is queued again.
pub(crate) async fn climb(
    tx: &mut PgConnection,
    job: JobId,
    run: RunId,
    held: JobState,
    reason: &str,
) -> Result<JobState, StoreError> {
    let kept_step = checkpoint::newest(tx, job).await?.map_or(0, |checkpoint| checkpoint.step);
    usage::refund_run(tx, run, kept_step, NodeTime::Whole).await?;
    if held == JobState::Cancelling {
        let step = Step::new(JobEvent::RunLost, format!("Fine-tuning job cancelled; {reason}"));
        return job::step_held(tx, job, run, &step).await;
    }
    let spent = spent(tx, run).await?;
    let rung = ladder::next(&spent.failed, &spent.spec);
    let skipped = ladder::skipped(&spent.failed.plan, &spent.spec);
    MEMORY_RUNGS.inc([name(&rung)]);
    if rung == Rung::Exhausted {
        let tried = tried(tx, job).await?;
        let param = skipped.first().map(|skipped| skipped.field().0.to_owned());
        let message = format!("{reason}. {}", exhausted(&tried, &skipped));
        let error = JobError { code: OUT_OF_MEMORY.into(), message, param };
        return job::step_held(tx, job, run, &Step::failure(JobEvent::RunFailed, error)).await;
    }
    save(tx, job, &rung).await?;
    let text = format!("{reason}. {}", described(&rung, &skipped));
    job_event::message_with(tx, job, Level::Warn, &text, &data(&spent, &rung, &skipped)).await?;
    let message = if held == JobState::Pausing { "Fine-tuning job paused" } else { "The job is queued again" };
    job::step_held(tx, job, run, &Step::new(JobEvent::RunLost, message)).await
}

/// Returns the figures of a run. An offer that is not published any more counts with the memory that was reserved; if
/// the job already needed more than that, no offer counts as larger, so that the ladder ends.
async fn spent(tx: &mut PgConnection, run: RunId) -> Result<Spent, StoreError> {
    let row = sqlx::query!(
        r#"select run.plan, run.predicted_peak, run.measured_peak, node.offer, job.spec,
             coalesce(offer.memory, node.memory) as "memory!", job.memory_above, job.limits
         from run join node using (node_id) join job on job.job_id = run.job_id
             left join offer on offer.provider = node.provider and offer.name = node.offer
         where run.run_id = $1"#,
        run.uuid(),
    )
    .fetch_one(&mut *tx)
    .await?;
    let is_spent = row.memory_above.is_some_and(|above| row.memory <= above);
    let largest = match is_spent {
        true => Bytes(0),
        false => largest(&read_limits(row.limits)?.once_begun(), &offer::last_published(tx).await?),
    };
    Ok(Spent {
        failed: Failed { plan: from_json("run.plan", row.plan)?, memory: Bytes::from_i64(row.memory), largest },
        offer: row.offer,
        predicted: Bytes::from_i64(row.predicted_peak),
        peak: row.measured_peak.map(Bytes::from_i64),
        spec: from_json("job.spec", row.spec)?,
    })
}

/// Returns the memory of the largest offer that the job may use: its limits and this build allow it. An offer whose
/// price is unknown now counts: the job waits for it.
fn largest(limits: &ComputeLimits, offers: &[Offer]) -> Bytes {
    let is_allowed = |offer: &&Offer| {
        unsupported(offer).is_none_or(|refusal| !refusal.is_final()) && limits.refusal(offer).is_none()
    };
    offers.iter().filter(is_allowed).map(|offer| offer.memory).max().unwrap_or(Bytes(0))
}

/// Returns the plans and the offers of the job's runs that ran out of memory, oldest first.
async fn tried(tx: &mut PgConnection, job: JobId) -> Result<Vec<(Plan, String)>, StoreError> {
    let rows = sqlx::query!(
        "select run.plan, node.offer from run join node using (node_id)
         where run.job_id = $1 and run.outcome = 'out_of_memory' order by run.attempt",
        job.uuid(),
    )
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(|row| Ok((from_json("run.plan", row.plan)?, row.offer))).collect()
}

/// Stores the terms of the next run.
async fn save(tx: &mut PgConnection, job: JobId, rung: &Rung) -> Result<(), StoreError> {
    let (plan, above) = match rung {
        Rung::Checkpointing(plan) | Rung::HalfMicroBatch(plan) => (Some(to_json("job.rung_plan", plan)?), None),
        Rung::LargerOffer { above } => (None, Some(above.to_i64())),
        Rung::Exhausted => (None, None),
    };
    sqlx::query!(
        "update job set rung_plan = $2, memory_above = coalesce($3, memory_above) where job_id = $1",
        job.uuid(),
        plan,
        above,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the machine-readable data of a rung's event.
fn data(spent: &Spent, rung: &Rung, skipped: &[Skipped]) -> Value {
    let before = &spent.failed.plan;
    let after = match rung {
        Rung::Checkpointing(plan) | Rung::HalfMicroBatch(plan) => plan,
        Rung::LargerOffer { .. } | Rung::Exhausted => before,
    };
    json!({
        "code": OUT_OF_MEMORY,
        "rung": name(rung),
        "predicted_bytes": spent.predicted,
        "peak_bytes": spent.peak,
        "offer": spent.offer,
        "offer_memory_bytes": spent.failed.memory,
        "before": before.split_json(),
        "after": after.split_json(),
        "skipped": skipped.iter().map(|skipped| skipped.field().0).collect::<Vec<_>>(),
    })
}

/// Returns the name of a rung, in the data of events and in metrics.
const fn name(rung: &Rung) -> &'static str {
    match rung {
        Rung::Checkpointing(_) => "gradient_checkpointing",
        Rung::HalfMicroBatch(_) => "micro_batch_size",
        Rung::LargerOffer { .. } => "larger_offer",
        Rung::Exhausted => "none",
    }
}

/// Describes a rung, for the event's message.
fn described(rung: &Rung, skipped: &[Skipped]) -> String {
    const CHANGED: &str = "The rows of a step stay the same, but the adapter will not be bit-identical to that of an \
                           undisturbed job";
    let next = match rung {
        Rung::Checkpointing(plan) => {
            format!("The next run recomputes activations instead of keeping them ({}). {CHANGED}", plan.split_text())
        }
        Rung::HalfMicroBatch(plan) => {
            format!("The next run has half as many rows in a forward pass ({}). {CHANGED}", plan.split_text())
        }
        Rung::LargerOffer { above } => {
            format!("The next run has the same plan, on a machine with more than {above} of memory")
        }
        Rung::Exhausted => "There is nothing left to try".to_owned(),
    };
    match kept(skipped) {
        None => next,
        Some(kept) => format!("{next}. {kept}"),
    }
}

/// Describes the end of the ladder, for the job's error.
fn exhausted(tried: &[(Plan, String)], skipped: &[Skipped]) -> String {
    let runs: Vec<_> = tried.iter().map(|(plan, offer)| format!("{} on {offer}", plan.split_text())).collect();
    let kept = kept(skipped).map_or_else(String::new, |kept| format!(". {kept}"));
    format!(
        "The job failed: every plan that it allows ran out of memory, and there is no larger machine. Tried: {}{kept}",
        runs.join("; ")
    )
}

/// Describes the requested settings that were not changed; `None`: there are none.
fn kept(skipped: &[Skipped]) -> Option<String> {
    let named: Vec<_> = skipped.iter().map(|skipped| skipped.field()).collect();
    let named: Vec<_> = named.iter().map(|(field, value)| format!("{field} {value}")).collect();
    (!named.is_empty()).then(|| format!("Not changed, since it was requested: {}", named.join(" and ")))
}

#[cfg(test)]
mod tests {
    use attune_domain::{offer::OfferDevice, placement::Placement};

    use super::*;

    fn plan(micro_batch_size: u32, checkpointing: bool) -> Plan {
        Plan {
            micro_batch_size,
            micro_batch_tokens: 1024,
            checkpointing,
            threads: 2,
            predicted_peak: Bytes::mib(400),
            placement: Placement::default(),
        }
    }

    #[test]
    fn the_largest_offer_is_one_that_the_limits_of_the_job_allow() {
        let offer = |name: &str, mib| Offer::cpu("cloud", name, Bytes::mib(mib), 2);
        let gpu = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_487) };
        let offers = [
            offer("small", 100),
            Offer { no_price: Some("stale".into()), ..offer("unpriced", 150) },
            Offer { micro_usd_per_hour: 9, ..offer("dear", 200) },
            Offer { spot: true, ..offer("spot", 300) },
            Offer { device: gpu, ..offer("gpu", 400) },
        ];
        let any = ComputeLimits::default;
        assert_eq!(largest(&any(), &offers), Bytes::mib(200));
        assert_eq!(largest(&ComputeLimits { spot: true, ..any() }, &offers), Bytes::mib(300));
        assert_eq!(largest(&ComputeLimits { max_micro_usd_per_hour: Some(8), ..any() }, &offers), Bytes::mib(150));
        assert_eq!(largest(&ComputeLimits { regions: vec!["eu".into()], ..any() }, &offers), Bytes(0));
    }

    #[test]
    fn a_message_names_the_next_plan_and_what_was_requested() {
        let skipped = [Skipped::MicroBatch(4)];
        let text = described(&Rung::Checkpointing(plan(4, true)), &skipped);
        assert!(text.contains("(micro_batch_size 4, gradient_checkpointing true)"), "{text}");
        assert!(text.ends_with("Not changed, since it was requested: trainer.micro_batch_size 4"), "{text}");
        let text = described(&Rung::LargerOffer { above: Bytes::mib(900) }, &[]);
        assert_eq!(text, "The next run has the same plan, on a machine with more than 900.0 MiB of memory");
    }

    #[test]
    fn the_error_lists_every_plan_that_was_tried() {
        let tried = [(plan(2, false), "small".to_owned()), (plan(2, true), "small".to_owned())];
        let text = exhausted(&tried, &[Skipped::Checkpointing, Skipped::MicroBatch(2)]);
        let runs = "micro_batch_size 2, gradient_checkpointing false on small; micro_batch_size 2, \
                    gradient_checkpointing true on small";
        assert!(text.contains(runs), "{text}");
        assert!(text.ends_with("trainer.gradient_checkpointing false and trainer.micro_batch_size 2"), "{text}");
    }
}
