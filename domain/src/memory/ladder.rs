//! The ladder of a job whose run ran out of memory: the next attempt with less memory, or with more memory to use.
//! Pure: the same input has the same result.
//!
//! The rows of an optimizer step stay the same on every rung. A rung only changes how a step is split into forward
//! passes, or the offer that the job runs on.

use crate::{bytes::Bytes, run::Plan, spec::TrainSpec};

/// A run that ran out of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The run's plan.
    pub plan: Plan,
    /// The total memory of the offer that the run was on.
    pub memory: Bytes,
    /// The total memory of the largest current offer.
    pub largest: Bytes,
}

/// The part of the available memory, in percent, above which a plan is tight.
pub const TIGHT_PERCENT: u64 = 80;

/// Returns whether a plan takes so much of the `limit` that an underestimate could exhaust it.
#[must_use]
pub const fn is_tight(predicted: Bytes, limit: Bytes) -> bool {
    predicted.0.saturating_mul(100) > limit.0.saturating_mul(TIGHT_PERCENT)
}

/// The next attempt after a run that ran out of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// With gradient checkpointing.
    Checkpointing(Plan),
    /// With half the rows in a forward pass, and twice as many passes in a step.
    HalfMicroBatch(Plan),
    /// With the same plan, on an offer with more memory than this.
    LargerOffer {
        /// The total memory of the offer that was too small.
        above: Bytes,
    },
    /// None: everything that the job and the offers allow was tried.
    Exhausted,
}

/// A rung that the job's request excludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// `trainer.gradient_checkpointing: false` was requested.
    Checkpointing,
    /// `trainer.micro_batch_size` was requested, with this value.
    MicroBatch(u32),
}

impl Skipped {
    /// Returns the request's field, and the value that was requested.
    #[must_use]
    pub fn field(self) -> (&'static str, String) {
        match self {
            Self::Checkpointing => ("trainer.gradient_checkpointing", false.to_string()),
            Self::MicroBatch(rows) => ("trainer.micro_batch_size", rows.to_string()),
        }
    }
}

/// Returns the next attempt: gradient checkpointing, then smaller micro-batches, then a larger offer. Settings that the
/// job requests are not changed.
#[must_use]
pub fn next(failed: &Failed, train: &TrainSpec) -> Rung {
    let plan = &failed.plan;
    if !plan.checkpointing && train.trainer.gradient_checkpointing.is_none() {
        return Rung::Checkpointing(Plan { checkpointing: true, ..plan.clone() });
    }
    if plan.micro_batch_size > 1 && train.trainer.micro_batch_size.is_none() {
        return Rung::HalfMicroBatch(halved(plan));
    }
    if failed.largest > failed.memory {
        return Rung::LargerOffer { above: failed.memory };
    }
    Rung::Exhausted
}

/// Returns the rungs that the request excludes and that the run's plan would otherwise have had left.
#[must_use]
pub fn skipped(plan: &Plan, train: &TrainSpec) -> Vec<Skipped> {
    let checkpointing = train.trainer.gradient_checkpointing.filter(|is_on| !is_on && !plan.checkpointing);
    let rows = train.trainer.micro_batch_size.filter(|_| plan.micro_batch_size > 1);
    let checkpointing = checkpointing.map(|_| Skipped::Checkpointing);
    checkpointing.into_iter().chain(rows.map(Skipped::MicroBatch)).collect()
}

/// Returns the plan with half the rows in a forward pass, and the tokens in proportion.
fn halved(plan: &Plan) -> Plan {
    let rows = plan.micro_batch_size / 2;
    let tokens = plan.micro_batch_tokens.saturating_mul(rows.into()) / u64::from(plan.micro_batch_size);
    Plan { micro_batch_size: rows, micro_batch_tokens: tokens.max(1), ..plan.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        placement::Placement,
        spec::{Auto, Requested, request::TrainerFields},
    };

    fn plan(micro_batch_size: u32, checkpointing: bool) -> Plan {
        Plan {
            micro_batch_size,
            micro_batch_tokens: u64::from(micro_batch_size) * 100,
            checkpointing,
            threads: 2,
            predicted_peak: Bytes::mib(900),
            placement: Placement::default(),
        }
    }

    /// Returns the spec of a job that requests these settings.
    fn spec(rows: Option<i64>, checkpointing: Option<bool>) -> TrainSpec {
        let trainer = TrainerFields {
            micro_batch_size: rows.map(|rows| Auto(Some(rows))),
            gradient_checkpointing: checkpointing.map(|is_on| Auto(Some(is_on))),
            ..TrainerFields::default()
        };
        TrainSpec::check(&Requested { trainer, ..Requested::default() }, 360, 8192).unwrap()
    }

    fn failed(plan: Plan, memory: u64, largest: u64) -> Failed {
        Failed { plan, memory: Bytes::mib(memory), largest: Bytes::mib(largest) }
    }

    /// Each row: the requested rows and checkpointing, the failed run's rows and checkpointing, its offer's memory and
    /// the largest offer's, and the rung.
    #[test]
    fn each_rung_follows_the_one_before_and_leaves_what_was_requested() {
        let halved = |rows, checkpointing| Rung::HalfMicroBatch(plan(rows, checkpointing));
        let larger = Rung::LargerOffer { above: Bytes::mib(10) };
        let table = [
            // Nothing is requested.
            (None, None, (8, false), (10, 20), Rung::Checkpointing(plan(8, true))),
            (None, None, (8, true), (10, 20), halved(4, true)),
            (None, None, (5, true), (10, 20), halved(2, true)),
            (None, None, (2, true), (10, 20), halved(1, true)),
            (None, None, (1, true), (10, 20), larger.clone()),
            (None, None, (1, true), (20, 20), Rung::Exhausted),
            (None, None, (1, true), (20, 10), Rung::Exhausted),
            (None, None, (1, false), (20, 20), Rung::Checkpointing(plan(1, true))),
            // No checkpointing is requested: it stays off.
            (None, Some(false), (8, false), (10, 20), halved(4, false)),
            (None, Some(false), (1, false), (10, 20), larger.clone()),
            // Checkpointing is requested: it was on already.
            (None, Some(true), (8, true), (10, 20), halved(4, true)),
            // The rows are requested: they are not halved.
            (Some(4), None, (4, false), (10, 20), Rung::Checkpointing(plan(4, true))),
            (Some(4), None, (4, true), (10, 20), larger.clone()),
            (Some(4), None, (4, true), (10, 10), Rung::Exhausted),
            // Both are requested.
            (Some(4), Some(false), (4, false), (10, 20), larger),
            (Some(4), Some(false), (4, false), (10, 10), Rung::Exhausted),
        ];
        for (number, (rows, checkpointing, ran, (memory, largest), rung)) in table.into_iter().enumerate() {
            let failed = failed(plan(ran.0, ran.1), memory, largest);
            assert_eq!(next(&failed, &spec(rows, checkpointing)), rung, "row {number}");
        }
    }

    #[test]
    fn a_job_climbs_every_rung_once_and_then_ends() {
        let (mut run, train, offers) = (plan(8, false), spec(None, None), [10, 20, 40]);
        let (mut memory, mut climbed) = (Bytes::mib(10), Vec::new());
        loop {
            let largest = Bytes::mib(40);
            let rung = next(&Failed { plan: run.clone(), memory, largest }, &train);
            match &rung {
                Rung::Checkpointing(next) | Rung::HalfMicroBatch(next) => run = next.clone(),
                Rung::LargerOffer { above } => {
                    memory = offers.map(Bytes::mib).into_iter().find(|memory| memory > above).unwrap();
                }
                Rung::Exhausted => break,
            }
            climbed.push((run.micro_batch_size, run.checkpointing, memory.0 >> 20));
        }
        assert_eq!(
            climbed,
            [(8, true, 10), (4, true, 10), (2, true, 10), (1, true, 10), (1, true, 20), (1, true, 40)],
            "at most one rung a run, and each once"
        );
    }

    #[test]
    fn a_plan_is_tight_above_four_fifths_of_the_memory() {
        let tight = |predicted, limit| is_tight(Bytes(predicted), Bytes(limit));
        assert!(!tight(80, 100) && tight(81, 100) && tight(1, 0) && !tight(0, 0));
    }

    #[test]
    fn a_skipped_rung_names_its_field_and_value() {
        let named = |rows, checkpointing, ran: (u32, bool)| -> Vec<(&'static str, String)> {
            skipped(&plan(ran.0, ran.1), &spec(rows, checkpointing)).into_iter().map(Skipped::field).collect()
        };
        assert!(named(None, None, (8, false)).is_empty() && named(Some(1), Some(true), (1, true)).is_empty());
        assert_eq!(
            named(Some(4), Some(false), (4, false)),
            [("trainer.gradient_checkpointing", "false".to_owned()), ("trainer.micro_batch_size", "4".to_owned())]
        );
    }
}
