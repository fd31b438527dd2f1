//! Outages of three minutes, with the default leases: of the API, then of the scheduler, while a job trains.

use std::time::Duration;

use crate::{
    facts::Expected,
    invariants::{Invariant, digits},
    observe,
    rig::{Leases, Rig},
};

/// The duration of an outage.
const OUTAGE: Duration = Duration::from_secs(180);
/// The longest time until the job trains again.
const TRAINS_WITHIN: Duration = Duration::from_secs(120);
/// The rows and the epochs of the job: 100,000 steps, more than the test waits for.
const ROWS: usize = 4000;
const EPOCHS: u32 = 100;

/// The invariants that a cancelled job can break.
const CHECKED: [Invariant; 4] =
    [Invariant::JobsEnd, Invariant::OneWholeVersion, Invariant::NothingIsLeft, Invariant::EndsAreDelivered];

/// A job, and what of it an outage must not change.
struct Training {
    rig: Rig,
    /// The job's ID, without its prefix.
    id: String,
}

impl Training {
    fn column(&self, column: &str) -> String {
        self.rig.cluster.sql(&format!("select {column} from job where job_id = '{}'", self.id)).unwrap()
    }

    /// Waits until the job trains past a step, in a run for which the condition holds.
    async fn passes(&mut self, step: u64, run: &str) {
        let passes = format!(
            "exists (select from job join run using (run_id) where job.job_id = '{}' and job.state = 'running'
                and steps_done > {step} and {run})",
            self.id
        );
        self.rig.until(&passes, TRAINS_WITHIN).await.unwrap();
    }

    /// Returns the job's last step.
    fn step(&self) -> u64 {
        self.column("steps_done").parse().unwrap()
    }

    /// Checks that no attempt counts against the job.
    fn assert_no_attempt_counts(&self) {
        assert_eq!(self.column("barren_attempts + setbacks"), "0", "{}", self.rig.logs());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes seven minutes: scripts/faults"]
async fn an_outage_of_three_minutes_loses_no_run_and_counts_no_attempt() {
    let rig = Rig::start(Leases::Default).await.unwrap();
    let file = rig.upload(ROWS).await.unwrap();
    let job = rig.submit(&file, EPOCHS).await.unwrap();
    let mut training = Training { rig, id: digits(&job).to_owned() };
    training.passes(25, "true").await;

    // The trainer waits for the API, and continues.
    let run = training.column("run_id");
    training.rig.api.kill().unwrap();
    tokio::time::sleep(OUTAGE).await;
    training.rig.ready().await.unwrap();
    let step = training.step();
    training.passes(step + 50, &format!("run_id = '{run}'")).await;
    training.assert_no_attempt_counts();

    // The trainer ends with its scheduler, and the next one resumes from its checkpoint.
    training.rig.scheduler.kill().unwrap();
    tokio::time::sleep(OUTAGE).await;
    assert_eq!(training.column("run_id"), run);
    let kept: u64 = training.rig.cluster.sql("select max(step) from checkpoint").unwrap().parse().unwrap();
    training.rig.ready().await.unwrap();
    training.passes(kept, &format!("run_id <> '{run}' and resume_id is not null")).await;
    training.assert_no_attempt_counts();
    assert_eq!(training.rig.cluster.sql("select count(*) from run").unwrap(), "2");

    let mut rig = training.rig;
    rig.change(&job, "cancel").await.unwrap();
    rig.until("not exists (select from job where finished_at is null)", TRAINS_WITHIN).await.unwrap();
    let facts = observe::facts(&mut rig).await.unwrap();
    let expected = Expected { acknowledged: vec![job], ..Expected::default() };
    let broken: Vec<String> = CHECKED.iter().flat_map(|invariant| invariant.violations(&facts, &expected)).collect();
    assert!(broken.is_empty(), "{broken:#?}\n{}", rig.logs());
}
