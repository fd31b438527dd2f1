//! The controls of the guards of docs/FAULTS.md: with the guard off, an invariant is broken; with it on, the same
//! moment breaks none. Needs programs that are built with the feature `failpoints`. The control of the scheduler's term
//! is in `schedulers`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    facts::{Expected, Facts},
    invariants::{Invariant, digits},
    observe, processes,
    rig::{Leases, Rig},
    settings,
    storm::{ALL_ENDED, ENDS_WITHIN, ROWS},
};

/// The longest time until a process reaches a fail point.
const REACHED_WITHIN: Duration = Duration::from_secs(60);
/// The epochs of each job, of six steps: long enough for a few restarts of the API.
const EPOCHS: u32 = 100;
/// The times that the API is killed after it has applied a report.
const REPEATS: usize = 4;

/// Starts a platform with a training file and a job that ended undisturbed; returns the IDs of both.
async fn start() -> (Rig, String, Expected) {
    assert!(settings::has_fail_points(), "run by scripts/faults");
    let mut rig = Rig::start(Leases::Short).await.unwrap();
    let file = rig.upload(ROWS).await.unwrap();
    let reference = rig.submit(&file, EPOCHS).await.unwrap();
    rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
    let expected = Expected { reference: digits(&reference).to_owned(), acknowledged: vec![reference] };
    (rig, file, expected)
}

/// Returns the condition that a job trains and has reported so many steps.
fn trains(job: &str, steps: u32) -> String {
    let id = digits(job);
    format!("exists (select from job where job_id = '{id}' and state = 'running' and steps_done >= {steps})")
}

fn environment(fail_points: &[&str]) -> Vec<(&'static str, String)> {
    vec![("ATTUNE_FAILPOINTS", fail_points.join(";"))]
}

/// Ends all trainers, also those that outlive their scheduler.
fn kill_trainers(rig: &Rig) {
    for process in rig.processes("attune-trainer").unwrap() {
        processes::signal(process, Signal::SIGKILL);
    }
}

/// Waits until a process has left its mark.
async fn reached(mark: &Path) {
    let begun = Instant::now();
    while !mark.exists() {
        assert!(begun.elapsed() < REACHED_WITHIN, "no process reached {}", mark.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs programs with the feature failpoints: scripts/faults"]
async fn a_trainer_is_left_without_the_guard_of_its_parent() {
    assert!(settings::has_fail_points(), "run by scripts/faults");
    let mut rig = Rig::start(Leases::Short).await.unwrap();
    rig.restart(&environment(&["guard.exit_with_parent=off"])).await.unwrap();
    let file = rig.upload(10 * ROWS).await.unwrap();
    let job = rig.submit(&file, 100).await.unwrap();
    rig.until(&trains(&job, 5), ENDS_WITHIN).await.unwrap();
    rig.scheduler.kill().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let left = rig.processes("attune-trainer").unwrap();
    kill_trainers(&rig);
    let facts = Facts { processes: left, ..Facts::default() };
    assert!(!Invariant::NothingIsLeft.violations(&facts, &Expected::default()).is_empty());
}

/// Lets a zombie report: a trainer stops before its first report, outlives its scheduler, and continues while the next
/// run of its job trains. Its values are wrong: the job has another seed when it starts. Returns the violations.
async fn zombie(rig: &mut Rig, file: &str, expected: &Expected, lease: &[&str]) -> Vec<String> {
    let marks = tempfile::tempdir().unwrap();
    rig.scheduler.kill().unwrap();
    let job = rig.submit(file, EPOCHS).await.unwrap();
    let seed = |seed: u32| {
        format!("update job set spec = jsonb_set(spec, '{{seed}}', '{seed}') where job_id = '{}'", digits(&job))
    };
    rig.cluster.sql(&seed(8)).unwrap();
    let guards = [&["guard.exit_with_parent=off"][..], lease].concat();
    let mut stops = environment(&[&guards[..], &["trainer.report.send:before=stop"]].concat());
    stops.push(("ATTUNE_FAILPOINTS_ONCE", marks.path().display().to_string()));
    rig.restart(&stops).await.unwrap();
    // The scheduler must not find that the trainer hangs: it would kill it.
    reached(&marks.path().join("trainer.report.send:before")).await;
    rig.scheduler.kill().unwrap();
    rig.cluster.sql(&seed(7)).unwrap();
    let stopped = rig.processes("attune-trainer").unwrap();
    assert_eq!(stopped.len(), 1, "one trainer outlives the scheduler");
    rig.restart(&environment(&guards)).await.unwrap();
    rig.until(&trains(&job, 5), ENDS_WITHIN).await.unwrap();
    processes::signal(stopped[0], Signal::SIGCONT);
    rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
    kill_trainers(rig);
    Invariant::CurveIsKept.violations(&observe::rows(&rig.cluster).unwrap(), expected)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs programs with the feature failpoints: scripts/faults"]
async fn a_zombie_changes_a_training_curve_without_the_guard_of_the_lease() {
    let (mut rig, file, expected) = start().await;
    let fenced = zombie(&mut rig, &file, &expected, &[]).await;
    assert!(fenced.is_empty(), "{fenced:#?}\n{}", rig.logs());
    let reported = zombie(&mut rig, &file, &expected, &["guard.run_lease=off"]).await;
    assert!(!reported.is_empty(), "{}", rig.logs());
}

/// Kills the API several times, each time after it has applied a report and before it answers, so that the trainer
/// repeats the report. Returns the violations.
async fn repeated(rig: &mut Rig, file: &str, expected: &Expected, guards: &[&str]) -> Vec<String> {
    let job = rig.submit(file, EPOCHS).await.unwrap();
    rig.until(&trains(&job, 15), ENDS_WITHIN).await.unwrap();
    rig.api.kill().unwrap();
    // The first report of each process is the repeated one.
    rig.api.set_environment(&environment(&[guards, &["api.run.report:after=kill@2"]].concat()));
    for _ in 0..REPEATS {
        rig.api.start().unwrap();
        let begun = Instant::now();
        while !rig.api.has_ended().unwrap() {
            assert!(begun.elapsed() < REACHED_WITHIN, "the API applied no two reports:\n{}", rig.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    rig.api.set_environment(&environment(guards));
    rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
    Invariant::StepsCountOnce.violations(&observe::rows(&rig.cluster).unwrap(), expected)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs programs with the feature failpoints: scripts/faults"]
async fn steps_count_twice_without_the_guard_of_the_sequence() {
    let (mut rig, file, expected) = start().await;
    let once = repeated(&mut rig, &file, &expected, &[]).await;
    assert!(once.is_empty(), "{once:#?}\n{}", rig.logs());
    let twice = repeated(&mut rig, &file, &expected, &["guard.report_sequence=off"]).await;
    assert!(!twice.is_empty(), "{}", rig.logs());
}
