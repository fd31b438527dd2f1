//! The invariants, pure functions over the facts. Each returns its violations.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::{Expected, Facts};

/// An invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// No acknowledged job is lost, and all end. None fails: the faults are the platform's, not the jobs'.
    JobsEnd,
    /// A job that succeeded has one adapter version, any other job has none, and each file of a version is stored with
    /// its size and its digest.
    OneWholeVersion,
    /// A job's training curve is that of the job that was not disturbed.
    CurveIsKept,
    /// The usage of a job counts each kept step once, and a run counts no step twice.
    StepsCountOnce,
    /// After the collector ran there is no process, node, multipart upload or object that no row names.
    NothingIsLeft,
    /// Each job's end is one event, delivered at least once, with one ID.
    EndsAreDelivered,
}

/// All invariants.
pub(crate) const ALL: [Invariant; 6] = [
    Invariant::JobsEnd,
    Invariant::OneWholeVersion,
    Invariant::CurveIsKept,
    Invariant::StepsCountOnce,
    Invariant::NothingIsLeft,
    Invariant::EndsAreDelivered,
];

impl Invariant {
    /// Returns the violations.
    pub(crate) fn violations(self, facts: &Facts, expected: &Expected) -> Vec<String> {
        match self {
            Self::JobsEnd => jobs_end(facts, expected),
            Self::OneWholeVersion => one_whole_version(facts),
            Self::CurveIsKept => curve_is_kept(facts, &expected.reference),
            Self::StepsCountOnce => steps_count_once(facts, &expected.reference),
            Self::NothingIsLeft => nothing_is_left(facts),
            Self::EndsAreDelivered => ends_are_delivered(facts),
        }
    }
}

/// Returns the invariants that do not hold, with their violations.
pub(crate) fn broken(facts: &Facts, expected: &Expected) -> BTreeMap<Invariant, Vec<String>> {
    let all = ALL.into_iter().map(|invariant| (invariant, invariant.violations(facts, expected)));
    all.filter(|(_, violations)| !violations.is_empty()).collect()
}

/// Returns the ID of a job without its prefix.
pub(crate) fn digits(job: &str) -> &str {
    job.trim_start_matches("ftjob-")
}

fn succeeded(facts: &Facts) -> impl Iterator<Item = &str> {
    facts.jobs.iter().filter(|job| job.state == "succeeded").map(|job| job.job.as_str())
}

fn jobs_end(facts: &Facts, expected: &Expected) -> Vec<String> {
    let known: BTreeSet<&str> = facts.jobs.iter().map(|job| job.job.as_str()).collect();
    let acknowledged = expected.acknowledged.iter().map(|job| digits(job));
    let mut found: Vec<String> =
        acknowledged.filter(|job| !known.contains(job)).map(|job| format!("{job} is lost")).collect();
    for job in facts.jobs.iter().filter(|job| !["succeeded", "cancelled"].contains(&job.state.as_str())) {
        found.push(format!("{} is {}: {}", job.job, job.state, job.error.as_deref().unwrap_or_default()));
    }
    found
}

fn one_whole_version(facts: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    for job in &facts.jobs {
        let versions: Vec<_> = facts.versions.iter().filter(|version| version.job == job.job).collect();
        if versions.len() != usize::from(job.state == "succeeded") {
            found.push(format!("{} is {} and has {} versions", job.job, job.state, versions.len()));
        }
        if versions.iter().any(|version| version.files.is_empty()) {
            found.push(format!("{} has a version without files", job.job));
        }
        for file in versions.iter().flat_map(|version| &version.files) {
            match facts.objects.get(&file.sha256) {
                Some(object) if (&object.sha256, object.bytes) == (&file.sha256, file.bytes) => {}
                other => found.push(format!("{} of {} is stored as {other:?}", file.name, job.job)),
            }
        }
    }
    found
}

/// Returns the losses that a job reported for each step.
fn curve<'a>(facts: &'a Facts, job: &str) -> BTreeMap<u64, BTreeSet<&'a str>> {
    let mut curve: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for step in facts.steps.iter().filter(|step| step.job == job) {
        curve.entry(step.step).or_default().insert(step.loss.as_str());
    }
    curve
}

fn curve_is_kept(facts: &Facts, reference: &str) -> Vec<String> {
    let right = curve(facts, reference);
    if right.is_empty() {
        return vec![format!("the undisturbed job {reference} reported no steps")];
    }
    let mut found = Vec::new();
    for job in succeeded(facts) {
        let other = curve(facts, job);
        let differs = right.keys().chain(other.keys()).find(|&step| other.get(step) != right.get(step));
        if let Some(step) = differs {
            found.push(format!("{job} differs at step {step}: {:?}, not {:?}", other.get(step), right.get(step)));
        }
    }
    found
}

fn steps_count_once(facts: &Facts, reference: &str) -> Vec<String> {
    let tokens = |of: &str| facts.usage.iter().find(|usage| usage.job == of).map(|usage| usage.tokens);
    let right = tokens(reference);
    let wrong = succeeded(facts).filter(|job| right.is_none() || tokens(job) != right);
    let wrong = wrong.map(|job| format!("{job} is charged {:?} tokens, not {right:?}", tokens(job)));
    let repeated = facts.runs.iter().filter(|run| run.steps > run.most);
    let repeated = repeated.map(|run| format!("a run of {} counts {} steps of {}", run.job, run.steps, run.most));
    wrong.chain(repeated).collect()
}

fn nothing_is_left(facts: &Facts) -> Vec<String> {
    let objects = facts.objects.keys().filter(|digest| !facts.named.contains(*digest));
    let objects = objects.map(|digest| format!("the object {digest} that no row names"));
    let uploads = facts.uploads.iter().map(|upload| format!("the upload {upload}"));
    let nodes = facts.nodes.iter().map(|node| format!("the node {node}"));
    let processes = facts.processes.iter().map(|id| format!("the process {id}"));
    objects.chain(uploads).chain(nodes).chain(processes).collect()
}

fn ends_are_delivered(facts: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    for job in facts.jobs.iter().filter(|job| ["succeeded", "failed", "cancelled"].contains(&job.state.as_str())) {
        let kind = format!("fine_tuning.job.{}", job.state);
        let ends: Vec<_> = facts.ends.iter().filter(|end| end.job == job.job).map(|end| end.kind.as_str()).collect();
        if ends != [kind.as_str()] {
            found.push(format!("{} is {} and has the events {ends:?}", job.job, job.state));
        }
        let arrived = facts.deliveries.iter().filter(|one| one.kind == kind && digits(&one.object) == job.job);
        let ids: BTreeSet<&str> = arrived.map(|one| one.id.as_str()).collect();
        if ids.len() != 1 {
            found.push(format!("the end of {} was delivered with the IDs {ids:?}", job.job));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::{End, FileOf, Job, Object, RunOf, Step, Usage, Version},
        receiver::Delivery,
    };

    fn job(job: &str, state: &str) -> Job {
        Job { job: job.into(), state: state.into(), error: None }
    }

    /// Returns the facts of two jobs of the same training and a cancelled one, and the expectations.
    fn sound() -> (Facts, Expected) {
        let mut facts = Facts {
            jobs: vec![job("a", "succeeded"), job("b", "succeeded"), job("c", "cancelled")],
            ..Facts::default()
        };
        let object = Object { sha256: "d1".into(), bytes: 3 };
        facts.objects.insert("d1".into(), object);
        facts.named.insert("d1".into());
        for (id, kind) in [("a", "succeeded"), ("b", "succeeded"), ("c", "cancelled")] {
            let kind = format!("fine_tuning.job.{kind}");
            facts.ends.push(End { job: id.into(), kind: kind.clone() });
            facts.deliveries.push(Delivery { id: format!("event-{id}"), kind, object: format!("ftjob-{id}") });
        }
        for id in ["a", "b"] {
            let file = FileOf { name: "adapter_model.safetensors".into(), sha256: "d1".into(), bytes: 3 };
            facts.versions.push(Version { job: id.into(), files: vec![file] });
            facts.usage.push(Usage { job: id.into(), tokens: 10 });
            facts.runs.push(RunOf { job: id.into(), steps: 3, most: 3 });
            for step in 1..4 {
                facts.steps.push(Step { job: id.into(), step, loss: format!("0.{step}") });
            }
        }
        let acknowledged = ["a", "b", "c"].map(|id| format!("ftjob-{id}")).to_vec();
        (facts, Expected { acknowledged, reference: "a".into() })
    }

    /// Returns the invariants that are broken after a change of sound facts.
    fn after(change: impl FnOnce(&mut Facts)) -> Vec<Invariant> {
        let (mut facts, expected) = sound();
        change(&mut facts);
        broken(&facts, &expected).into_keys().collect()
    }

    #[test]
    fn sound_facts_break_no_invariant_even_if_a_step_was_reported_again() {
        assert!(after(|_| {}).is_empty());
        assert!(after(|facts| facts.steps.push(facts.steps[4].clone())).is_empty());
        assert!(after(|facts| facts.deliveries.push(facts.deliveries[0].clone())).is_empty());
    }

    #[test]
    fn a_lost_an_unfinished_and_a_failed_job_are_found() {
        assert_eq!(after(|facts| facts.jobs.truncate(2)), [Invariant::JobsEnd]);
        assert!(after(|facts| facts.jobs[1].state = "running".into()).contains(&Invariant::JobsEnd));
        assert!(after(|facts| facts.jobs[1].state = "failed".into()).contains(&Invariant::JobsEnd));
    }

    #[test]
    fn a_second_a_missing_and_a_half_written_version_are_found() {
        let broken = [Invariant::OneWholeVersion];
        assert_eq!(after(|facts| facts.versions.push(facts.versions[0].clone())), broken);
        assert_eq!(after(|facts| facts.versions.truncate(1)), broken);
        assert_eq!(after(|facts| facts.versions[0].files.clear()), broken);
        assert_eq!(after(|facts| facts.versions[0].job = "c".into()), broken);
        assert_eq!(after(|facts| facts.objects.clear()), broken);
        let damaged = Object { sha256: "d2".into(), bytes: 3 };
        assert_eq!(after(|facts| drop(facts.objects.insert("d1".into(), damaged))), broken);
    }

    #[test]
    fn a_missing_a_different_and_an_additional_step_are_found() {
        let broken = [Invariant::CurveIsKept];
        assert_eq!(after(|facts| drop(facts.steps.pop())), broken);
        assert_eq!(after(|facts| facts.steps[4].loss = "0.7".into()), broken);
        let again = Step { job: "b".into(), step: 2, loss: "0.7".into() };
        assert_eq!(after(|facts| facts.steps.push(again)), broken);
        let more = Step { job: "b".into(), step: 4, loss: "0.4".into() };
        assert_eq!(after(|facts| facts.steps.push(more)), broken);
    }

    #[test]
    fn steps_that_count_twice_or_not_at_all_are_found() {
        assert_eq!(after(|facts| facts.usage[1].tokens = 12), [Invariant::StepsCountOnce]);
        assert_eq!(after(|facts| facts.usage.truncate(1)), [Invariant::StepsCountOnce]);
        assert_eq!(after(|facts| facts.runs[1].steps = 4), [Invariant::StepsCountOnce]);
    }

    #[test]
    fn everything_that_is_left_is_found() {
        let broken = [Invariant::NothingIsLeft];
        let object = Object { sha256: "d9".into(), bytes: 1 };
        assert_eq!(after(|facts| drop(facts.objects.insert("d9".into(), object))), broken);
        assert_eq!(after(|facts| facts.uploads.push("u".into())), broken);
        assert_eq!(after(|facts| facts.nodes.push("n".into())), broken);
        assert_eq!(after(|facts| facts.processes.push(7)), broken);
    }

    #[test]
    fn an_end_without_a_delivery_with_two_ids_or_with_two_events_is_found() {
        let broken = [Invariant::EndsAreDelivered];
        assert_eq!(after(|facts| facts.deliveries.truncate(2)), broken);
        let again =
            Delivery { id: "event-x".into(), kind: "fine_tuning.job.cancelled".into(), object: "ftjob-c".into() };
        assert_eq!(after(|facts| facts.deliveries.push(again)), broken);
        assert_eq!(after(|facts| facts.ends.push(facts.ends[0].clone())), broken);
        assert_eq!(after(|facts| facts.ends.truncate(1)), broken);
    }
}
