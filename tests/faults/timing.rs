//! The time until a dead trainer is noticed and its job runs again, with the default leases.

use std::time::{Duration, Instant};

use attune_tests::figure;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    invariants::digits,
    processes,
    rig::{Leases, Rig},
    settings,
};

/// The longest time until a dead trainer is noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);
/// The longest time until the job runs again, on a node that has its base model.
const AGAIN_WITHIN: Duration = Duration::from_secs(90);
/// The rows and the epochs of the job: 10,000 steps, more than the test waits for.
const ROWS: usize = 400;
const EPOCHS: u32 = 100;

/// Stops the trainer of the only job with a signal; returns the seconds until its run has ended and until another run
/// trains.
async fn measure(rig: &mut Rig, job: &str, signal: Signal) -> [f64; 2] {
    let run = rig.cluster.sql(&format!("select run_id from job where job_id = '{}'", digits(job))).unwrap();
    for id in rig.processes("attune-trainer").unwrap() {
        processes::signal(id, signal);
    }
    let begun = Instant::now();
    let ended = format!("exists (select from run where run_id = '{run}' and state = 'ended')");
    rig.until(&ended, AGAIN_WITHIN).await.unwrap();
    let noticed = begun.elapsed().as_secs_f64();
    let again = format!("exists (select from job where run_id <> '{run}' and state = 'running')");
    rig.until(&again, 2 * AGAIN_WITHIN).await.unwrap();
    [noticed, begun.elapsed().as_secs_f64()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_trainer_is_noticed_and_its_job_runs_again_in_time() {
    let mut rig = Rig::start(Leases::Default).await.unwrap();
    let file = rig.upload(ROWS).await.unwrap();
    let job = rig.submit(&file, EPOCHS).await.unwrap();
    // A killed process is noticed by its end; one that hangs, in the long form, by its lease.
    let mut signals = vec![Signal::SIGKILL];
    if settings::kills().is_some() {
        signals.push(Signal::SIGSTOP);
    }
    let mut longest = [0.0_f64; 2];
    for signal in signals {
        let trains = "exists (select from job where state = 'running' and steps_done >= 25)";
        rig.until(trains, Duration::from_secs(120)).await.unwrap();
        let seconds = measure(&mut rig, &job, signal).await;
        println!("{signal}: noticed after {:.1} s, training again after {:.1} s", seconds[0], seconds[1]);
        longest = [longest[0].max(seconds[0]), longest[1].max(seconds[1])];
    }
    let bars = [NOTICED_WITHIN, AGAIN_WITHIN].map(|bar| bar.as_secs());
    for (index, name) in ["faults_noticed_seconds", "faults_running_again_seconds"].into_iter().enumerate() {
        let value = (longest[index] * 10.0).round() / 10.0;
        figure(&json!({"figure": name, "value": value, "bar": bars[index], "at_most": true}).to_string());
        assert!(longest[index] <= bars[index] as f64, "{name}: {value}");
    }
    rig.scheduler.stop().unwrap();
    rig.api.stop().unwrap();
}
