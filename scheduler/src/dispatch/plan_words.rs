//! Human-readable plans, for a job's events and errors.

use attune_domain::{
    memory::{self, MICRO_BATCH_TOKENS, Workload},
    offer::Refusal,
    run::Plan,
    spec::TrainSpec,
};

/// Describes a plan with reasons: `micro_batch_size 4 (requested), gradient_checkpointing false (chosen: it fits
/// without)`.
pub(super) fn chosen(work: Workload<'_>, plan: &Plan) -> String {
    let (asked, largest) = (work.train.trainer.micro_batch_size, memory::largest_micro_batch(work));
    let rows = if asked.is_some() {
        "requested".to_owned()
    } else if plan.micro_batch_size < largest {
        format!("chosen: {largest} rows would not fit")
    } else if largest == work.train.hyperparameters.batch_size {
        "chosen: the whole batch".to_owned()
    } else {
        format!("chosen: more than {MICRO_BATCH_TOKENS} tokens at once are no faster")
    };
    let checkpointing = match (work.train.trainer.gradient_checkpointing, plan.checkpointing) {
        (Some(_), _) => "requested",
        (None, false) => "chosen: it fits without",
        (None, true) => "chosen: it does not fit without; activations are computed twice",
    };
    let Plan { micro_batch_size, checkpointing: is_on, .. } = plan;
    format!("micro_batch_size {micro_batch_size} ({rows}), gradient_checkpointing {is_on} ({checkpointing})")
}

/// Describes why a job waits for the plan that it keeps.
pub(super) fn waiting_for_plan(kept: &Plan, refusals: &[Refusal]) -> String {
    format!("The job waits for memory to resume with its plan ({}): {}", kept.split_text(), listed(refusals))
}

/// Joins refusals into a clause.
pub(super) fn listed(refusals: &[Refusal]) -> String {
    match refusals {
        [] => "there is no machine".into(),
        all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

/// Returns the requested settings that increase the plan's memory, as a clause, and the first one's field. Empty if
/// none does.
pub(super) fn asked_for(train: &TrainSpec) -> (String, Option<&'static str>) {
    const ROWS: &str = "trainer.micro_batch_size";
    const CHECKPOINTING: &str = "trainer.gradient_checkpointing";
    let rows = train.trainer.micro_batch_size.filter(|rows| *rows > 1).map(|rows| (ROWS, rows.to_string()));
    let checkpointing =
        train.trainer.gradient_checkpointing.filter(|is_on| !is_on).map(|is_on| (CHECKPOINTING, is_on.to_string()));
    let asked: Vec<_> = rows.into_iter().chain(checkpointing).collect();
    let Some((first, _)) = asked.first() else { return (String::new(), None) };
    let words: Vec<_> = asked.iter().map(|(name, value)| format!("{name} {value}")).collect();
    (format!(" with {}, as requested,", words.join(" and ")), Some(first))
}
