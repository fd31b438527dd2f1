//! Two schedulers: another one leads when the leader is killed or stopped, and a leader that continues after it was
//! deposed changes nothing.

use std::time::{Duration, Instant};

use attune_tests::figure;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    facts::Expected,
    invariants::{self, digits},
    observe, processes,
    rig::{EPOCHS, Leases, Rig},
    settings,
    storm::{ALL_ENDED, ENDS_WITHIN, ROWS},
};

/// The longest time until another scheduler leads after the leader was killed.
const LEADS_AFTER_KILL: Duration = Duration::from_secs(10);
/// The longest time until another scheduler leads after the leader was stopped: 20 s without a sign of life, and up to
/// 10 s for the leader's open transactions.
const LEADS_AFTER_STOP: Duration = Duration::from_secs(40);
/// The longest time until a deposed leader has exited: its tasks have 10 s.
const EXITS_WITHIN: Duration = Duration::from_secs(30);
/// The rows and the epochs of a job that does not end during a test.
const LONG_ROWS: usize = 2000;
const LONG_EPOCHS: u32 = 100;
/// The fail point in a pass of the queue after which the queue is planned again.
const STOP: &str = "scheduler.dispatch.reconsider:after=stop";
/// Makes a paused job need more memory than any machine has, until it is measured again, and places it behind others.
const TOO_LARGE: &str = "update job set need_bytes = 1::bigint << 55, priority = 'low' where state = 'paused'";

/// A platform with two schedulers. The first one's runs have a heartbeat of a second; those of the second one, which
/// starts one run at a time, of two.
struct Pair {
    rig: Rig,
    file: String,
    expected: Expected,
    /// The term of the first scheduler.
    term: String,
}

impl Pair {
    /// Starts the platform with fail points of the first scheduler and guards of both, and runs a job.
    async fn start(fail_points: &str, guards: &str) -> Self {
        let mut rig = Rig::start(Leases::Short).await.unwrap();
        let file = rig.upload(ROWS).await.unwrap();
        let reference = rig.submit(&file, EPOCHS).await.unwrap();
        rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
        let before = term(&rig);
        rig.restart(&[("ATTUNE_FAILPOINTS", format!("{fail_points};{guards}"))]).await.unwrap();
        rig.until(&format!("(select term > {before} from leadership)"), ENDS_WITHIN).await.unwrap();
        let environment = [
            ("ATTUNE_FAILPOINTS", guards.to_owned()),
            ("ATTUNE_LEASES__HEARTBEAT_SECONDS", "2".to_owned()),
            ("ATTUNE_LOCAL__MAX_CONCURRENT_RUNS", "1".to_owned()),
        ];
        rig.start_standby(&environment).await.unwrap();
        let expected = Expected { reference: digits(&reference).to_owned(), acknowledged: vec![reference] };
        let term = term(&rig);
        Self { rig, file, expected, term }
    }

    /// Creates a job on a training file; returns its ID.
    async fn submit(&mut self, file: &str, epochs: u32) -> String {
        let job = self.rig.submit(file, epochs).await.unwrap();
        self.expected.acknowledged.push(job.clone());
        job
    }

    /// Waits until the other scheduler leads; returns the seconds.
    async fn taken_over(&self, within: Duration) -> f64 {
        let begun = Instant::now();
        let leads = format!("(select term > {} from leadership)", self.term);
        self.rig.wait_for(&leads, within).await.unwrap();
        begun.elapsed().as_secs_f64()
    }

    /// Waits until a job trains in a run of the scheduler with this heartbeat.
    async fn trains(&self, job: &str, heartbeat_seconds: u32) {
        let trains = format!(
            "exists (select from job join run using (run_id) where job.job_id = '{}' and job.state = 'running'
                and steps_done >= 15 and heartbeat_seconds = {heartbeat_seconds})",
            digits(job)
        );
        self.rig.wait_for(&trains, ENDS_WITHIN).await.unwrap();
    }

    /// Waits until all jobs have ended, and checks that the invariants hold.
    async fn check(&mut self) {
        self.rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
        let facts = observe::facts(&mut self.rig).await.unwrap();
        let broken = invariants::broken(&facts, &self.expected);
        assert!(broken.is_empty(), "{broken:#?}\n{}", self.rig.logs());
    }
}

/// Returns the number of the current leadership.
fn term(rig: &Rig) -> String {
    rig.cluster.sql("select term from leadership").unwrap()
}

fn leads_figure(name: &str, seconds: f64, bar: Duration) {
    let value = (seconds * 10.0).round() / 10.0;
    figure(&json!({"figure": name, "value": value, "bar": bar.as_secs(), "at_most": true}).to_string());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: scripts/faults"]
async fn another_scheduler_leads_after_the_leader_is_killed() {
    let mut pair = Pair::start("", "").await;
    let file = pair.file.clone();
    let job = pair.submit(&file, EPOCHS).await;
    pair.trains(&job, 1).await;
    pair.rig.scheduler.kill().unwrap();
    let seconds = pair.taken_over(LEADS_AFTER_KILL).await;
    leads_figure("faults_standby_leads_after_kill_seconds", seconds, LEADS_AFTER_KILL);
    let ended = format!("(select state = 'succeeded' from job where job_id = '{}')", digits(&job));
    pair.rig.wait_for(&ended, ENDS_WITHIN).await.unwrap();
    pair.check().await;
}

/// Stops the leader in the middle of a pass that starts a waiting job next, until the other scheduler leads and has no
/// room for that job; then continues it. Returns the number of runs that it starts, once it has exited, and the seconds
/// until the other one led.
async fn depose(pair: &mut Pair) -> (u32, f64) {
    let (file, long) = (pair.file.clone(), pair.rig.upload(LONG_ROWS).await.unwrap());
    let endless = pair.submit(&long, LONG_EPOCHS).await;
    pair.trains(&endless, 1).await;
    let job = pair.submit(&file, EPOCHS).await;
    pair.rig.change(&job, "pause").await.unwrap();
    let paused = format!("(select state = 'paused' from job where job_id = '{}')", digits(&job));
    pair.rig.wait_for(&paused, ENDS_WITHIN).await.unwrap();
    pair.rig.cluster.sql(TOO_LARGE).unwrap();
    pair.rig.change(&job, "resume").await.unwrap();
    let seconds = pair.taken_over(LEADS_AFTER_STOP).await;
    pair.trains(&endless, 2).await;
    let id = pair.rig.scheduler.id().unwrap();
    assert!(processes::signal(id, Signal::SIGCONT));
    let begun = Instant::now();
    while !pair.rig.scheduler.has_ended().unwrap() {
        assert!(begun.elapsed() < EXITS_WITHIN, "the deposed scheduler does not exit:\n{}", pair.rig.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let late = "select count(*) from run, leadership where heartbeat_seconds = 1 and created_at > taken_at";
    let late = pair.rig.cluster.sql(late).unwrap().parse().unwrap();
    pair.rig.change(&endless, "cancel").await.unwrap();
    (late, seconds)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs programs with the feature failpoints: scripts/faults"]
async fn a_deposed_leader_that_continues_changes_nothing_and_exits() {
    assert!(settings::has_fail_points(), "run by scripts/faults");
    let mut pair = Pair::start(STOP, "").await;
    let (late, seconds) = depose(&mut pair).await;
    leads_figure("faults_standby_leads_after_stop_seconds", seconds, LEADS_AFTER_STOP);
    assert_eq!(late, 0, "runs of the deposed scheduler:\n{}", pair.rig.logs());
    pair.check().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs programs with the feature failpoints: scripts/faults"]
async fn a_deposed_leader_starts_a_run_without_the_guard_of_its_term() {
    assert!(settings::has_fail_points(), "run by scripts/faults");
    let mut pair = Pair::start(STOP, "guard.leader_term=off").await;
    let (late, _) = depose(&mut pair).await;
    assert!(late > 0, "no run of the deposed scheduler:\n{}", pair.rig.logs());
}
