//! The storm: jobs run while processes are killed, in the order of a seed.

use std::time::{Duration, Instant};

use anyhow::Result;
use attune_tests::figure;
use serde_json::json;

use crate::{
    actions::{self, chat},
    facts::Expected,
    invariants, observe,
    rig::{EPOCHS, Leases, Rig},
    schedule::{ALL, Schedule},
    settings,
};

/// The jobs that run in the short form, and that are unfinished at any time in the long one.
const JOBS: usize = 4;
/// The rows of the training file.
pub(crate) const ROWS: usize = 24;
/// The longest duration of the faults of the long form, per kill: 300 kills took 970 s on a machine with two cores, and
/// fewer than wanted after twice that time fail the test.
const KILLS_WITHIN: Duration = Duration::from_secs(6);
/// The longest time until all jobs have ended after the last fault. Attempts without a checkpoint are followed by
/// pauses of up to two minutes.
pub(crate) const ENDS_WITHIN: Duration = Duration::from_secs(600);
/// The longest time until the base model answers after that.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// The condition that all jobs have ended.
pub(crate) const ALL_ENDED: &str = "not exists (select from job where finished_at is null)";

/// The result of the faults.
#[derive(Debug, Default)]
struct Storm {
    acknowledged: Vec<String>,
    faults: usize,
    kills: usize,
}

impl Storm {
    /// Creates jobs until enough are unfinished. A request may fail while the platform does.
    async fn submit(&mut self, rig: &Rig, file: &str) -> Result<()> {
        while rig.unfinished()? < JOBS {
            match rig.submit(file, EPOCHS).await {
                Ok(job) => self.acknowledged.push(job),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn is_over(&self, begun: Instant) -> bool {
        match settings::kills() {
            None => self.faults >= ALL.len(),
            Some(kills) => self.kills >= kills || begun.elapsed() > KILLS_WITHIN * kills as u32,
        }
    }
}

/// Waits until the base model answers.
async fn answers(rig: &Rig) {
    let begun = Instant::now();
    while chat(rig).await.ok() != Some(200) {
        assert!(begun.elapsed() < ANSWERS_WITHIN, "no answer:\n{}", rig.logs());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_invariants_hold_after_faults_at_random_moments() {
    let seed = settings::seed();
    println!("FAULTS_SEED={seed}");
    let mut rig = Rig::start(Leases::Short).await.unwrap();
    let file = rig.upload(ROWS).await.unwrap();
    let reference = rig.submit(&file, EPOCHS).await.unwrap();
    rig.until(ALL_ENDED, Duration::from_secs(120)).await.unwrap();
    let mut storm = Storm { acknowledged: vec![reference.clone()], ..Storm::default() };
    let (mut schedule, begun) = (Schedule::new(seed), Instant::now());
    storm.submit(&rig, &file).await.unwrap();
    while !storm.is_over(begun) {
        let (action, pause) = schedule.next_fault();
        tokio::time::sleep(pause).await;
        println!("{:>6.1} s: {action:?}", begun.elapsed().as_secs_f64());
        storm.kills += actions::perform(&mut rig, action).await.unwrap();
        storm.faults += 1;
        if settings::kills().is_some() {
            rig.ready().await.unwrap();
            storm.submit(&rig, &file).await.unwrap();
        }
    }
    rig.heal().await.unwrap();
    rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
    answers(&rig).await;
    let facts = observe::facts(&mut rig).await.unwrap();
    let expected = Expected { acknowledged: storm.acknowledged, reference: invariants::digits(&reference).to_owned() };
    let broken = invariants::broken(&facts, &expected);
    for (name, value, at_least) in
        [("faults_kills", storm.kills, settings::kills()), ("faults_jobs", facts.jobs.len(), None)]
    {
        figure(&json!({"figure": name, "value": value, "bar": at_least.unwrap_or(1)}).to_string());
    }
    let count = broken.len();
    figure(&json!({"figure": "faults_invariants_broken", "value": count, "bar": 0, "at_most": true}).to_string());
    assert!(broken.is_empty(), "FAULTS_SEED={seed}: {broken:#?}\n{}", rig.logs());
    let wanted = settings::kills().unwrap_or(1);
    assert!(storm.kills >= wanted, "FAULTS_SEED={seed}: {} processes were killed, not {wanted}", storm.kills);
    rig.scheduler.stop().unwrap();
    rig.api.stop().unwrap();
}
