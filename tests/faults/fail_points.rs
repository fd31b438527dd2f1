//! The fail points of docs/FAULTS.md: each ends its process once, directly before and directly after its commit. Needs
//! programs that are built with the feature `failpoints`; `scripts/faults` builds them.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use attune_tests::figure;
use reqwest::Method;
use serde_json::json;

use crate::{
    actions::chat,
    facts::Expected,
    invariants::{self, digits},
    observe,
    rig::{Leases, Rig},
    settings,
    situations::{self, EPOCHS},
    storm::{ALL_ENDED, ENDS_WITHIN, ROWS},
    users::{self, REQUESTS_ENDED},
};

/// Fail points that the harness does not reach: no process waits at the provider `local`. The tests of the providers
/// `slurm` and `kubernetes` let processes wait there.
const UNREACHED: [&str; 1] = ["scheduler.reconcile.pending"];

/// The longest time in which all fail points must be reached.
const REACHED_WITHIN: Duration = Duration::from_secs(1800);
/// The longest duration of a round; a job that waits for its next attempt continues in the next one.
const ROUND: Duration = Duration::from_secs(45);

/// Returns the names in the table of fail points.
fn names() -> Vec<&'static str> {
    let page = include_str!("../../docs/FAULTS.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.filter(|name| name.contains('.') && !name.starts_with("guard.")).collect()
}

/// Returns the environment in which every fail point kills its process once; `marks` is the folder of their marks.
fn kill_everywhere(marks: &str) -> [(&'static str, String); 2] {
    let points: Vec<String> = names().into_iter().map(|name| format!("{name}:before=kill;{name}:after=kill")).collect();
    [("ATTUNE_FAILPOINTS", points.join(";")), ("ATTUNE_FAILPOINTS_ONCE", marks.to_owned())]
}

/// Acts as users do: uploads files, creates a job that runs, one that is paused, and one that is cancelled, and sends
/// the requests of [`users::act`]. Any of them may fail.
async fn round(rig: &mut Rig, acknowledged: &mut Vec<String>) {
    for action in ["", "pause", "cancel"] {
        rig.ready().await.unwrap();
        let Ok(file) = rig.upload(ROWS).await else { continue };
        let Ok(job) = rig.submit(&file, EPOCHS).await else { continue };
        acknowledged.push(job.clone());
        if !action.is_empty() {
            drop(rig.call(Method::POST, &format!("/v1/fine_tuning/jobs/{job}/{action}"), None).await);
        }
    }
    drop(chat(rig).await);
    users::act(rig).await.unwrap();
    resume_all(rig).await;
    drop(rig.until(&format!("{ALL_ENDED} and {REQUESTS_ENDED}"), ROUND).await);
}

/// Resumes the paused jobs.
async fn resume_all(rig: &mut Rig) {
    rig.ready().await.unwrap();
    let paused = rig.cluster.sql("select 'ftjob-' || replace(job_id::text, '-', '') from job where state = 'paused'");
    for job in paused.unwrap().lines() {
        drop(rig.call(Method::POST, &format!("/v1/fine_tuning/jobs/{job}/resume"), None).await);
    }
}

#[test]
fn the_page_names_fail_points() {
    let (names, unreached) = (BTreeSet::from_iter(names()), BTreeSet::from(UNREACHED));
    assert!(names.len() > 50 && unreached.is_subset(&names), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs programs with the feature failpoints, and half an hour: scripts/faults"]
async fn all_invariants_hold_after_a_kill_before_and_after_each_commit() {
    assert!(settings::has_fail_points(), "run by scripts/faults");
    let mut rig = Rig::start(Leases::Short).await.unwrap();
    let file = rig.upload(ROWS).await.unwrap();
    let reference = rig.submit(&file, EPOCHS).await.unwrap();
    rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
    let marks = rig.path("marks");
    fs::create_dir(&marks).unwrap();
    rig.restart(&kill_everywhere(&marks.display().to_string())).await.unwrap();

    let wanted: BTreeSet<String> = names()
        .into_iter()
        .filter(|name| !UNREACHED.contains(name))
        .flat_map(|name| ["before", "after"].map(|side| format!("{name}:{side}")))
        .collect();
    let reached = || -> BTreeSet<String> {
        let entries = fs::read_dir(&marks).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let (mut acknowledged, begun) = (vec![reference.clone()], Instant::now());
    while !wanted.is_subset(&reached()) && begun.elapsed() < REACHED_WITHIN {
        round(&mut rig, &mut acknowledged).await;
        situations::create_all(&mut rig, &mut acknowledged).await.unwrap();
    }
    rig.restart(&[]).await.unwrap();
    resume_all(&mut rig).await;
    rig.until(&format!("{ALL_ENDED} and {REQUESTS_ENDED}"), ENDS_WITHIN).await.unwrap();
    let facts = observe::facts(&mut rig).await.unwrap();
    let expected = Expected { acknowledged, reference: digits(&reference).to_owned() };
    let broken = invariants::broken(&facts, &expected);
    let reached = reached();
    let missed: Vec<_> = wanted.difference(&reached).collect();
    for (name, value, bar) in [
        ("faults_fail_points_reached", wanted.len() - missed.len(), wanted.len()),
        ("faults_fail_point_kills", reached.len(), wanted.len()),
    ] {
        figure(&json!({"figure": name, "value": value, "bar": bar}).to_string());
    }
    assert!(broken.is_empty(), "{broken:#?}\n{}", rig.logs());
    assert!(missed.is_empty(), "not reached: {missed:?}");
}
